"""Published checkpoints in our own modules, against transformers' models of the same files: tiny random ones of each family."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from inspector.cli import main
from inspector.compare.divergence import diverge
from inspector.compare.original import beside_original
from inspector.compare.verifying import verify
from inspector.loading.finding import ASSETS, LoadError
from inspector.loading.loading import load
from inspector.loading.outlining import outlined
from inspector.models import load_checkpoint, save_checkpoint, to_native
from inspector.models.mtp import further_logits
from inspector.parts.heads import own_logits
from inspector.records.generation import Sampling
from tests.models.test_families import CONFIGS, DEEPSEEKS, GROUPED

IDS = torch.arange(3, 67)[None]
SHORT = [5, 7, 11, 13, 17, 19, 23]


@cache
def random_model(family: str):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config((CONFIGS | DEEPSEEKS)[family]()).eval()
    with torch.no_grad():
        for name, weight in (*model.named_parameters(), *model.named_buffers()):
            if "inv_freq" not in name:
                weight.add_(torch.randn_like(weight) * 0.05)
    return model


@pytest.fixture
def saved(tmp_path):
    """A function: family → a folder with a checkpoint of it, as transformers saves it."""

    def save(family: str, **how) -> Path:
        folder = tmp_path / family.replace(" ", "-")
        random_model(family).save_pretrained(folder, **how)
        return folder

    return save


def both(folder: Path, **how):
    """The checkpoint in transformers' modules, and in ours."""
    return load(str(folder), **how), load(str(folder), native=True, **how)


@pytest.mark.parametrize("family", CONFIGS)
def test_logits_of_a_loaded_checkpoint_are_transformers_bit_for_bit(family, saved):
    theirs, ours = both(saved(family))
    assert type(ours.model).__module__ == "inspector.models.adapter" and beside_original(theirs, ours, IDS).level == "bitwise"
    tied = ours.model.lm_head.weight is ours.model.backbone.embed_tokens.weight
    assert tied == theirs.model.config.tie_word_embeddings and not ours.model.training
    assert ours.context_length == theirs.context_length and ours.vocab_size == theirs.vocab_size


@pytest.mark.parametrize("family", DEEPSEEKS)
def test_deepseek_is_the_same_but_for_rounding_and_both_errors_are_told(family, saved):
    theirs, ours = both(saved(family))
    beside = beside_original(theirs, ours, IDS)
    assert beside.level in ("bitwise", "rounding") and (beside.level == "bitwise" or min(beside.error_compiled, beside.error_plain) > 0)
    ours.model.backbone.layers[1].mlp.gate.scale *= 1.01
    assert beside_original(theirs, ours, IDS).level in ("tokens", "different")


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama 3.1", "mistral", "deepseek_v3"])
def test_diverge_finds_nothing_and_generate_agrees(family, saved):
    theirs, ours = both(saved(family))
    found = diverge(theirs, ours, SHORT, 6)
    assert found.place is None and found.flip is None
    verdicts = [verify(m, SHORT, Sampling(seed=3), 6) for m in (theirs, ours)]
    assert verdicts[1].level in ("bitwise", "rounding") and verdicts[0].tokens_hand == verdicts[1].tokens_hand


def test_gradients_of_loaded_weights_agree(saved):
    theirs, ours = both(saved("qwen2"))
    for m in (theirs, ours):
        own_logits(m.model, IDS)[..., 5].sum().backward()
    expected = {name: p.grad for name, p in theirs.model.named_parameters()}
    for ours_name, name in (
        ("backbone.embed_tokens.weight", "model.embed_tokens.weight"),
        ("backbone.layers.2.self_attn.k_proj.bias", "model.layers.2.self_attn.k_proj.bias"),
        ("backbone.layers.0.norm_mlp.weight", "model.layers.0.post_attention_layernorm.weight"),
    ):
        found = dict(ours.model.named_parameters())[ours_name].grad
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-5 * float(expected[name].abs().max()))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_weights_run_in_the_dtype_that_is_asked_for(dtype, saved):
    folder = saved("qwen2")
    theirs, ours = both(folder, dtype=dtype)
    assert {p.dtype for p in ours.model.parameters()} == {getattr(torch, dtype)}
    difference = (own_logits(theirs.model, IDS) - own_logits(ours.model, IDS)).abs().max()
    assert difference == 0 if dtype != "float64" else difference < 1e-5  # RMSNorm of transformers stays in float32


def test_the_bias_of_a_gate_stays_in_float32(saved):
    theirs, ours = both(saved("deepseek_v3"), dtype="bfloat16")
    biases = [{b.dtype for name, b in m.model.named_buffers() if name.endswith("e_score_correction_bias")} for m in (theirs, ours)]
    assert biases == [{torch.float32}] * 2
    assert (own_logits(theirs.model, IDS) - own_logits(ours.model, IDS)).abs().max() < 0.1


def plain(folder: Path) -> dict:
    return load_file(folder / "model.safetensors")


def with_prefix(folder: Path) -> None:
    save_file({f"module.{name}": weight for name, weight in plain(folder).items()}, folder / "model.safetensors")


def both_ties(folder: Path) -> None:
    weights = plain(folder)
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")


def untied_in_the_file(folder: Path) -> None:
    weights = plain(folder)
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"] * 1.5}, folder / "model.safetensors")


def as_pickle(folder: Path) -> None:
    torch.save(plain(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def of_another_dtype(folder: Path) -> None:
    save_file({name: weight.double() for name, weight in plain(folder).items()}, folder / "model.safetensors")


def with_leftovers(folder: Path) -> None:
    more = {"score.weight": torch.zeros(2, 64), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    save_file(plain(folder) | more, folder / "model.safetensors")


def base_alone(folder: Path) -> None:
    AutoModel.from_pretrained(folder).save_pretrained(folder)


CHANGES = [with_prefix, both_ties, untied_in_the_file, as_pickle, of_another_dtype, with_leftovers, base_alone]


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_files_hold_is_read_and_told_as_for_transformers_model(change, saved):
    folder = saved("qwen2")
    change(folder)
    theirs, ours = both(folder)
    assert torch.equal(own_logits(theirs.model, IDS), own_logits(ours.model, IDS))
    assert [one for one in ours.notices if one.kind != "native"] == list(theirs.notices) and ours.unused == theirs.unused
    skeleton, _, told = outlined(str(folder), native=True)
    assert told == tuple(one for one in ours.notices if one in told) and skeleton.config.model_type == "inspector-qwen2"


def test_shards_are_read(saved):
    folder = saved("deepseek_v3", max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    theirs, ours = both(folder)
    torch.testing.assert_close(own_logits(ours.model, IDS), own_logits(theirs.model, IDS), rtol=1e-5, atol=3e-6)


def without_one(folder: Path) -> None:
    weights = plain(folder)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors")


def reshaped(folder: Path) -> None:
    weights = plain(folder)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(weights | {name: weights[name][:-1].contiguous()}, folder / "model.safetensors")


def of_whole_numbers(folder: Path) -> None:
    weights = plain(folder)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(weights | {name: weights[name].to(torch.int8)}, folder / "model.safetensors")


def damaged(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:3000])


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("change", [without_one, reshaped, of_whole_numbers, damaged, without_weights])
def test_weights_that_are_not_the_models_are_refused_in_the_same_words(change, saved):
    folder = saved("qwen2")
    change(folder)
    said = []
    for native in (False, True):
        with pytest.raises(LoadError) as error:
            load(str(folder), native=native)
        said.append(str(error.value))
    assert said[0] == said[1]


def setting(folder: Path, **settings) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def test_what_has_no_native_form_is_refused_by_name(saved, tmp_path):
    qwen = saved("qwen2")
    tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    (tmp_path / "own.py").write_text("def make(): ...")
    for name, how, part in (
        (tmp_path / "gpt2", {}, "model_type='gpt2'"),
        (f"{tmp_path / 'own.py'}:make", {}, "no native form"),
        (qwen, dict(device_map="auto"), "--device-map"),
        (qwen, dict(max_memory={"cpu": 10**9}), "--max-memory"),
    ):
        with pytest.raises(LoadError, match=part):
            load(str(name), native=True, **how)
    for settings, part in (
        (dict(quantization_config=dict(quant_method="gptq", bits=4)), "quantization_config"),
        (dict(rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=2.0)), "rope_type='dynamic'"),
        (dict(hidden_act="gelu"), "hidden_act='gelu'"),
    ):
        own = shutil.copytree(qwen, tmp_path / part.replace("'", "-"))
        with pytest.raises(LoadError, match=part):
            load(str(setting(own, **settings)), native=True)
        assert any(part in one.english for one in [*outlined(str(own))[2], *refused_tree(own)])


def refused_tree(folder: Path):
    with pytest.raises(LoadError) as error:
        outlined(str(folder), native=True)
    yield type("Said", (), dict(english=str(error.value)))


def test_an_adapter_is_refused_by_name(saved, tmp_path):
    peft = pytest.importorskip("peft")
    folder = saved("qwen2")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), peft.LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(LoadError, match="an adapter has no native form"):
        load(str(tmp_path / "adapter"), native=True)


def test_a_sliding_window_is_said_and_longer_prompts_are_refused(saved):
    folder = setting(saved("mistral"), sliding_window=40)
    theirs, ours = both(folder)
    assert any("sliding_window" in one.english for one in ours.notices) and ours.context_length == 40
    assert torch.equal(own_logits(theirs.model, IDS[:, :40]), own_logits(ours.model, IDS[:, :40]))
    assert not torch.equal(own_logits(theirs.model, IDS), own_logits(ours.model, IDS))  # there it would be another model
    with pytest.raises(ValueError, match="at most 40"):
        ours.prompt(IDS)


def test_what_the_checkpoint_ships_comes_along(tmp_path):
    folder = shutil.copytree(ASSETS / "names-qwen2", tmp_path / "names")
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}а")
    settings = dict(eos_token_id=[2, 7], do_sample=True, temperature=0.5, top_k=9, repetition_penalty=1.1)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    theirs, ours = both(folder)
    assert theirs.stop_ids == ours.stop_ids == (2, 7) and theirs.checkpoint_settings() == ours.checkpoint_settings()
    assert theirs.encode("Крас") == ours.encode("Крас") and theirs.origin == ours.origin
    (folder / "generation_config.json").unlink()
    assert [m.stop_ids for m in both(folder)] == [load("names-qwen2").stop_ids] * 2


def test_further_predictions_come_along_where_the_checkpoint_has_them(saved):
    """DeepSeek's checkpoints hold them as layers behind the last; transformers' model has no place for them."""
    folder = saved("halves, one group")
    weights = plain(folder)
    layer = {n.removeprefix("model.layers.2."): w for n, w in weights.items() if n.startswith("model.layers.2.")}
    own = {"enorm.weight": torch.rand(64), "hnorm.weight": torch.rand(64), "eh_proj.weight": torch.randn(64, 128)}
    own |= {"shared_head.norm.weight": torch.rand(64), "embed_tokens.weight": weights["model.embed_tokens.weight"].clone()}
    more = {f"model.layers.3.{name}": weight.clone() for name, weight in (layer | own).items()}
    save_file(weights | more, folder / "model.safetensors")
    theirs, ours = both(folder)
    assert len(ours.model.mtp) == 1 and torch.equal(ours.model.mtp[0].norm.weight, own["shared_head.norm.weight"])
    torch.testing.assert_close(own_logits(ours.model, IDS), own_logits(theirs.model, IDS), rtol=1e-5, atol=3e-6)
    native = to_native(ours.model)
    (logits,), _ = further_logits(native, IDS, native.backbone(IDS).last_hidden_state)
    assert logits.shape == (1, 63, 97)


def test_native_models_are_native_anyway():
    plain, native = load("gpt-moe"), load("gpt-moe", native=True)
    ids = torch.tensor([plain.encode("Анна")])
    assert type(plain.model) is type(native.model) and torch.equal(own_logits(plain.model, ids), own_logits(native.model, ids))
    assert plain.notices == native.notices


def test_what_was_loaded_is_saved_as_a_native_checkpoint(saved, tmp_path):
    ours = load(str(saved("llama 3.1")), native=True)
    save_checkpoint(to_native(ours.model), tmp_path / "native")
    again = load_checkpoint(tmp_path / "native")
    with torch.no_grad():
        assert torch.equal(again(IDS), own_logits(ours.model, IDS)) and again.config["rope_scaling"]["factor"] == 8.0
    loaded = load(str(tmp_path / "native"))
    assert torch.equal(own_logits(loaded.model, IDS), own_logits(ours.model, IDS))


PEAKS = """
import re, sys, threading, time
from inspector.loading.loading import load
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
small, large, *dtypes = sys.argv[1:]
for dtype in dtypes:
    load(small, dtype=dtype, native=True)  # what is imported when it is first needed is no memory of the weights
for dtype in dtypes:
    before, peak, ended = anonymous(), [0], threading.Event()
    def watch():
        while not ended.is_set():
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.001)
    watcher = threading.Thread(target=watch)
    watcher.start()
    model = load(large, dtype=dtype, native=True).model
    ended.set()
    watcher.join()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    print((max(peak[0], anonymous()) - before) / weights)
    del model
"""


def peaks(small: Path, large: Path, *dtypes: str) -> list[float]:
    """By how much loading ``large`` raises the peak of anonymous memory in each dtype, in parts of the weights as they run.

    A ``small`` checkpoint of the same kind was loaded before, of which hardly any memory is left to be taken once more.
    """
    command = [sys.executable, "-c", PEAKS, str(small), str(large), *dtypes]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return list(map(float, subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()))


def in_two_files(folder: Path, **sizes) -> Path:
    """A Llama in bfloat16 with weights of any kind, in two files."""
    with torch.device("meta"):
        model = tf.LlamaForCausalLM(tf.LlamaConfig(**GROUPED | sizes)).bfloat16()
    weights = {
        name: torch.full(weight.shape, 0.01 * i, dtype=torch.bfloat16) for i, (name, weight) in enumerate(model.state_dict().items())
    }
    model.config.save_pretrained(folder)
    halves = [dict(list(weights.items())[i::2]) for i in (0, 1)]
    for i, part in enumerate(halves):
        save_file(part, folder / f"model-{i + 1:05}-of-00002.safetensors")
    names = {name: f"model-{i + 1:05}-of-00002.safetensors" for i, part in enumerate(halves) for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps(dict(weight_map=names)))
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is told by Linux")
def test_loading_takes_hardly_more_memory_than_the_weights(tmp_path):
    """60 million weights in bfloat16, which run as they are, or in float32: 240 MB."""
    large = in_two_files(tmp_path / "large", hidden_size=1024, intermediate_size=4096, num_hidden_layers=4, vocab_size=2000)
    small = in_two_files(tmp_path / "small")
    kept, cast = peaks(small, large, "bfloat16", "float32")
    assert kept <= 0.5  # those that need no cast stay in the files; a product in bfloat16 has one of them in another order meanwhile
    assert 0.9 <= cast <= 1.15  # below 1: some pages that the loads before gave back to malloc are taken again


@pytest.mark.slow
def test_the_full_size_stand_in_is_transformers_model_bit_for_bit(standin, tmp_path):
    assert 0.9 <= peaks(in_two_files(tmp_path / "small"), standin, "float32")[0] <= 1.15
    theirs = AutoModelForCausalLM.from_pretrained(standin, dtype=torch.float32).eval()
    ours, ids = load(str(standin), native=True), torch.arange(300)[None]
    with torch.no_grad():
        assert torch.equal(ours.model(ids).logits, theirs(ids).logits)


@pytest.fixture
def inspector(monkeypatch, capfd):
    """Runs the command in this process; gives its standard output."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments, code=0) -> str:
        monkeypatch.setattr(sys, "argv", ["inspector", *arguments, "--lang", "en"])
        with pytest.raises(SystemExit) as exit:
            main()
        output, error = capfd.readouterr()
        assert exit.value.code == code, error
        return re.sub(r"\s+", " ", output)

    return call


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["tree", "names-qwen2", "--native"], "self_attn GroupedQueryAttention"),
        (["run", "names-qwen2", "Крас", "--native", "--max-new-tokens", "2"], "run in our own modules"),
        (["verify", "names-qwen2", "Крас", "--native", "--seed", "3"], "bitwise · names-qwen2"),
        (["trace", "names-qwen2", "Крас", "--native"], "the watched pass gave the bits of the unwatched one"),
        (["trace", "names-qwen2", "Крас", "--native", "--attention", "--head", "3.2"], "head"),
        (["contributions", "names-qwen2", "Крас", "--native", "--heads", "--top", "4"], "attn"),
        (["intervene", "names-qwen2", "Крас", "--native", "--ablate", "layers.3.mlp"], "layers.3.mlp"),
        (["diverge", "names-qwen2", "names-qwen2", "Крас", "--native-b"], "No component of B introduces more than rounding"),
        (["mutate", "names-qwen2", "norm-eps", "--native"], "run in our own modules"),
        (["bench", "lines"], "the forward pass"),
    ],
)
def test_every_verb_takes_it(arguments, part, inspector):
    assert part in inspector(*arguments)
