"""Code that comes with a checkpoint: of older style it runs as it did, and what does not run says which line of it, and why."""

import json

import pytest
import torch
from safetensors.torch import save_file

import inspector
from inspector.loading.finding import LoadError
from inspector.loading.loading import load
from inspector.loading.outlining import outlined
from inspector.parts.outputs import forward
from inspector.parts.splitting import SplitError

CONFIG = """
from transformers import PretrainedConfig


class TinyConfig(PretrainedConfig):
    model_type = "tiny_of_its_own"

    def __init__(self, vocab_size=64, hidden_size=16, num_hidden_layers=2, **more):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        super().__init__(**more)
"""
MODEL = """
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from .configuration_tiny import TinyConfig
{imports}


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(d), nn.Linear(d, d)

    def forward(self, x):
        mean = torch.ones(x.shape[1], x.shape[1], dtype=x.dtype, device=x.device).tril()
        return x + self.mix(mean / mean.sum(-1, keepdim=True) @ self.norm(x))


class TinyPreTrainedModel(PreTrainedModel):
    config_class, base_model_prefix = TinyConfig, "model"
    {shared}


class TinyModel(TinyPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config.hidden_size) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        {built}

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, use_cache=None, **more):
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x))


class TinyForCausalLM(TinyPreTrainedModel):
    {tied}

    def __init__(self, config):
        super().__init__(config)
        self.model = TinyModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        {built}

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        self.model.embed_tokens = value

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def forward(self, {taken}):
        h = self.model(input_ids)[0]
        return {given}

    {more}
"""
TAKEN = "input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None, use_cache=None, return_dict=None"
PARTS = dict(
    imports="",
    shared="pass",
    tied="pass",
    built="self.post_init()",
    taken=TAKEN,
    given="CausalLMOutputWithPast(logits=self.lm_head(h))",
    more="",
)
CLASSES = {"AutoConfig": "configuration_tiny.TinyConfig", "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM"}


def written(folder, tie=False, auto_map=CLASSES, **parts):
    """Writes a checkpoint with code of its own, of which ``parts`` are replaced; returns the folder's name."""
    text = MODEL
    for name, part in (PARTS | parts).items():
        text = text.replace(f"{{{name}}}", part)
    (folder / "configuration_tiny.py").write_text(CONFIG)
    (folder / "modeling_tiny.py").write_text(text)
    config = dict(model_type="tiny_of_its_own", architectures=["TinyForCausalLM"], auto_map=auto_map, eos_token_id=2)
    sizes = dict(vocab_size=64, hidden_size=16, num_hidden_layers=2, tie_word_embeddings=tie)
    (folder / "config.json").write_text(json.dumps(config | sizes))
    random = torch.Generator().manual_seed(0)
    weights = {"embed_tokens.weight": (64, 16), "norm.weight": (16,), "norm.bias": (16,)}
    for layer in ("layers.0.", "layers.1."):
        weights |= {f"{layer}norm.weight": (16,), f"{layer}norm.bias": (16,), f"{layer}mix.weight": (16, 16), f"{layer}mix.bias": (16,)}
    values = {f"model.{name}": torch.randn(shape, generator=random) for name, shape in weights.items()}
    if not tie:
        values["lm_head.weight"] = torch.randn(64, 16, generator=random)
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


OLDER = {
    "as it should be": dict(),
    "tied, a list": dict(tie=True, tied='_tied_weights_keys = ["lm_head.weight"]'),
    "tied, a dict": dict(tie=True, tied='_tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}'),
    "tied, nothing listed": dict(tie=True),
    "no post_init": dict(built="pass"),
    "no post_init, tied": dict(built="pass", tie=True, tied='_tied_weights_keys = ["lm_head.weight"]'),
    "init_weights": dict(built="self.init_weights()"),
    "a tuple": dict(given="(self.lm_head(h),)"),
    "no use_cache": dict(
        taken="input_ids=None, past=None, attention_mask=None, labels=None",
        more='def prepare_inputs_for_generation(self, input_ids, past=None, **more):\n        return {"input_ids": input_ids}',
    ),
}


@pytest.mark.parametrize("style", OLDER)
def test_code_of_older_style_runs_with_the_weights_of_the_file(tmp_path, style):
    m = load(written(tmp_path, **OLDER[style]), trust_remote_code=True)
    assert m.unused == () and not any(one.kind in ("missing", "ties") for one in m.notices)
    embedded = m.model.get_input_embeddings().weight
    assert (m.model.lm_head.weight is embedded) == OLDER[style].get("tie", False)
    random = torch.Generator().manual_seed(0)
    assert torch.equal(embedded.detach(), torch.randn(64, 16, generator=random))
    assert inspector.verify(m, [1, 5], inspector.Sampling(temperature=0), 3).level == "bitwise"


def test_a_class_that_knows_of_no_cache_is_not_told_of_one(tmp_path):
    m = load(written(tmp_path, **OLDER["no use_cache"]), trust_remote_code=True)
    with pytest.raises(TypeError, match="use_cache"):
        m.model(torch.tensor([[1, 5]]), use_cache=False)
    assert forward(m.model, torch.tensor([[1, 5]])).logits.shape == (1, 2, 64)


BROKEN = {
    "import of another version": (
        dict(imports="from transformers.pytorch_utils import NoSuchThing"),
        r"imports 'NoSuchThing' from transformers.pytorch_utils \(modeling_tiny.py, line 7\), which transformers [\d.]+ does not have",
    ),
    "module of another version": (
        dict(imports="from transformers.generation_utils import GenerationMixin"),
        r"imports 'generation_utils' from transformers \(modeling_tiny.py, line 7\)",
    ),
    "package that is absent": (dict(imports="import a_package_that_is_not_here"), "pip install a_package_that_is_not_here"),
    "an error": (dict(imports="1 / 0"), "its own code fails in modeling_tiny.py, line 7: ZeroDivisionError: division by zero: correct it"),
    "no Python": (dict(imports="def ("), r"its own code does not parse: modeling_tiny.py, line 7: "),
    "a method of the base class": (
        dict(built="self.post_init(); self.masks = self.get_head_mask(None, 2)"),
        r"asks TinyModel for 'get_head_mask' \(modeling_tiny.py, line 31\), which transformers [\d.]+ does not have: .* older version",
    ),
    "a name of its own": (
        dict(built="self.post_init(); self.total = self.scale", more="def other(self):\n        self.scale = 1"),
        r"its own code fails in modeling_tiny.py, line 31: AttributeError: 'TinyModel' object has no attribute 'scale'",
    ),
    "no configuration": (
        dict(auto_map={"AutoModelForCausalLM": CLASSES["AutoModelForCausalLM"]}),
        "for AutoModelForCausalLM, and none for AutoCo",
    ),
    "no model": (dict(auto_map={"AutoConfig": CLASSES["AutoConfig"]}), 'write "AutoModelForCausalLM": "FILE.CLASS" into its auto_map'),
    "no classes": (dict(auto_map="modeling_tiny.TinyForCausalLM"), "auto_map='modeling_tiny.TinyForCausalLM': it must be an object"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_code_that_cannot_run_says_which_line_and_why(tmp_path, case):
    parts, told = BROKEN[case]
    name = written(tmp_path, **parts)
    for asked in (load, outlined):  # to run it, and for its tree
        with pytest.raises(LoadError, match=told) as raised:
            asked(name, trust_remote_code=True)
        assert "\n" not in str(raised.value) and ".:" not in str(raised.value)


def test_what_a_pass_asks_of_an_older_transformers_is_named(tmp_path):
    caches = "from transformers.cache_utils import DynamicCache"
    given = "(DynamicCache.from_legacy_cache(past_key_values), CausalLMOutputWithPast(logits=self.lm_head(h)))[1]"
    name = written(tmp_path, imports=caches, given=given)
    with pytest.raises(SplitError, match=r"asks DynamicCache for 'from_legacy_cache' \(modeling_tiny.py, line \d+\), .* an older version"):
        load(name, trust_remote_code=True)


@pytest.mark.parametrize("case", ["as it should be", "tied, a list"])
def test_code_does_not_run_unless_it_is_trusted(tmp_path, case):
    name = written(tmp_path, imports="raise SystemExit('it ran')", **OLDER[case])
    for asked in (load, outlined):
        with pytest.raises(LoadError, match="it brings code of its own: read it, then add --trust-remote-code"):
            asked(name)
