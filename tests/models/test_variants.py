"""The variants as whole models: counts, registration, checkpoints, independence, and that each can learn."""

import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from inspector.models import VARIANTS, adapter, load_checkpoint, save_checkpoint, to_native, to_transformers, variants
from inspector.models.adapter import ADAPTERS, BUILDERS, arguments_of
from inspector.models.attention import causal_mask
from inspector.models.block import apart
from inspector.training.loop import checkpoint_activations

SIZES = dict(vocab_size=50, d_model=32, n_layers=2, n_heads=4, max_seq_len=24)
FLOAT64 = dict(rtol=1e-10, atol=1e-12)


def built(name: str, **changes):
    """A random model whose norms and gates are not at their starting values, in float64 and evaluation mode."""
    torch.manual_seed(0)
    model = VARIANTS[name](**(SIZES | changes)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def ids(rows: int = 3, length: int = 9) -> torch.Tensor:
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(1))


def test_a_builder_has_at_most_30_lines():
    """Of code: its arguments' list and docstring are what it says, not what it does."""
    for name, build in VARIANTS.items():
        lines = inspect.getsource(build).splitlines()
        end_of_arguments = next(i for i, line in enumerate(lines) if line.startswith(") ->"))
        assert len(lines) <= 40, name
        assert len(lines) - end_of_arguments <= 12, name


D, L, V, FF = 32, 2, 50, 40
GQA = D * D * 2 + 2 * D * 16  # q and o, k and v of two heads of width 8
MLA = D * 4 * (8 + 4) + D * (16 + 4) + 16 + 16 * 4 * (8 + 8) + 4 * 8 * D  # q, latents with the shared key, its norm, k and v, o
GLU = 3 * D * FF
MOE = 4 * GLU + 2 * 4 * D  # four experts, and a gate with its noise
DEPTH = 3 * D + 2 * D * D  # three norms and the projection of a depth, without its block


@pytest.mark.parametrize(
    ("name", "block", "depths"),
    [
        ("gpt", GQA + GLU + 2 * D, 0),
        ("gpt-moe", GQA + MOE + 2 * D, 0),
        ("gpt-mla", MLA + GLU + 2 * D, 0),
        ("gpt-mtp", GQA + GLU + 2 * D, 1),
        ("gpt-moe-mla-mtp", MLA + MOE + 2 * D, 1),
    ],
)
def test_number_of_parameters_is_the_sum_of_the_parts(name, block, depths):
    model = VARIANTS[name](**SIZES, d_ff=FF)
    assert model.get_num_params() == V * D + L * block + D + depths * (DEPTH + block)
    assert model.get_num_params(non_embedding=True) == model.get_num_params() - V * D


@pytest.mark.parametrize("name", VARIANTS)
def test_auto_classes_know_the_model_type(name):
    config = AutoConfig.for_model(f"inspector-{name}", **SIZES)
    model = AutoModelForCausalLM.from_config(config)
    assert type(model) is ADAPTERS[name]
    assert model.num_parameters() == VARIANTS[name](**SIZES).get_num_params()
    assert config.hidden_size == 32 and config.num_hidden_layers == 2


def test_the_names_of_the_classes_are_those_that_checkpoints_were_saved_with():
    """A new variant adds a line here; a line that stands here does not change."""
    assert {name: cls.__name__ for name, cls in ADAPTERS.items()} == {
        "expert": "ExpertForCausalLM",
        "gpt": "GPTForCausalLM",
        "gpt-moe": "GPTMoEForCausalLM",
        "gpt-mla": "GPTMLAForCausalLM",
        "gpt-mtp": "GPTMTPForCausalLM",
        "gpt-moe-mla-mtp": "GPTMoEMLAMTPForCausalLM",
        "qwen2": "NativeQwen2ForCausalLM",
        "deepseek-v3": "NativeDeepseekV3ForCausalLM",
    }


@pytest.mark.parametrize("name", BUILDERS)
def test_a_configuration_takes_what_the_builder_takes_with_its_defaults(name):
    config_class = ADAPTERS[name].config_class
    assert config_class.__name__ == ADAPTERS[name].__name__.replace("ForCausalLM", "Config")
    assert config_class().use_cache is False
    for argument, parameter in arguments_of(name).items():
        default = 10_000 if argument == "vocab_size" else parameter.default
        assert getattr(config_class(), argument) == default
        if isinstance(default, float):
            assert config_class(**{argument: 0.5}).arguments()[argument] == 0.5


@pytest.mark.parametrize("name", BUILDERS)
def test_a_configuration_answers_to_the_usual_names_of_what_it_has(name):
    config, arguments = ADAPTERS[name].config_class(), arguments_of(name)
    assert config.max_position_embeddings == arguments["max_seq_len"].default
    assert hasattr(config, "num_key_value_heads") == ("n_kv_heads" in arguments)
    assert hasattr(config, "num_experts") == hasattr(config, "num_experts_per_tok") == ("n_experts" in arguments)


@pytest.mark.parametrize("name", BUILDERS)
def test_classes_and_configurations_survive_pickling(name):
    adapter_class = ADAPTERS[name]
    for cls in (adapter_class, adapter_class.config_class):
        assert pickle.loads(pickle.dumps(cls)) is cls is getattr(adapter, cls.__name__)
        assert BUILDERS[name].__name__ in cls.__doc__
    config = adapter_class.config_class(d_model=24, n_heads=3)
    again = pickle.loads(pickle.dumps(config))
    assert type(again) is type(config) and again.to_dict() == config.to_dict()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("file", ["folder", "weights.pt"])
def test_checkpoint_gives_the_same_model_again(name, file, tmp_path):
    model = built(name).float()
    save_checkpoint(model, tmp_path / file)
    again = load_checkpoint(tmp_path / file)
    assert again.variant == name and again.config == model.config
    assert torch.equal(again(ids()), model(ids()))


@pytest.mark.parametrize("name", VARIANTS)
def test_auto_class_loads_the_folder(name, tmp_path):
    model = built(name).float()
    save_checkpoint(model, tmp_path / "folder")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    assert torch.equal(loaded(ids()).logits, model(ids()))
    assert torch.equal(to_native(loaded)(ids()), model(ids()))


@pytest.mark.parametrize("name", VARIANTS)
def test_adapter_shares_the_modules_of_the_native_model(name):
    model = built(name)
    adapter = to_transformers(model)
    assert list(adapter.state_dict()) == list(model.state_dict())
    assert adapter.backbone is model.backbone and adapter.lm_head is model.lm_head
    assert adapter.lm_head.weight is adapter.backbone.embed_tokens.weight


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_changing_a_future_token_leaves_earlier_logits_unchanged(name):
    model, tokens = built(name), ids(1)
    before = model(tokens)
    tokens[0, 6] = (tokens[0, 6] + 1) % 50
    after = model(tokens)
    torch.testing.assert_close(after[:, :6], before[:, :6], **FLOAT64)
    assert not torch.allclose(after[:, 6:], before[:, 6:])


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_rows_of_a_batch_are_independent(name):
    model, tokens = built(name), ids()
    torch.testing.assert_close(model(tokens[1:2]), model(tokens)[1:2], **FLOAT64)


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(name, side):
    model, tokens = built(name), ids(1)
    pad = torch.zeros(1, 4, dtype=torch.long)
    real = torch.ones(1, 9, dtype=torch.bool)
    order = (0, 1) if side == "left" else (1, 0)
    padded = torch.cat([(pad, tokens)[i] for i in order], dim=1)
    mask = torch.cat([(pad.bool(), real)[i] for i in order], dim=1)
    logits = model(padded, mask)
    torch.testing.assert_close(logits[:, 4:] if side == "left" else logits[:, :9], model(tokens), **FLOAT64)


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_native_generation_equals_transformers(name):
    model, tokens = built(name).float(), ids(2, 4)
    expected = to_transformers(model).generate(tokens, max_new_tokens=8, do_sample=False, use_cache=False, eos_token_id=None)
    assert torch.equal(model.generate(tokens, 8, temperature=0), expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_of_a_block_are_those_of_finite_differences(name):
    """The block as it stands in the model, norms, residuals and feed-forward included."""
    model = built(name, d_model=8, n_heads=2, n_layers=1, d_ff=6)
    block = model.backbone.layers[0]
    x = torch.randn(1, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: apart(block(x, causal_mask(3)[None, None]))[0], x)


@pytest.mark.parametrize("name", [name for name in VARIANTS if "mtp" in name])
def test_gradients_of_a_depth_are_those_of_finite_differences(name):
    model = built(name, d_model=8, n_heads=2, n_layers=1, d_ff=6)
    depth = model.mtp[0]
    hidden, embedded = (torch.randn(1, 3, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    places = model.backbone.rotation(torch.arange(3)[None], torch.float64)
    assert torch.autograd.gradcheck(lambda h, e: depth(h, e, causal_mask(3)[None, None], places)[0], (hidden, embedded))


@pytest.mark.parametrize("name", VARIANTS)
def test_one_batch_can_be_overfitted(name):
    torch.manual_seed(0)
    model = to_transformers(VARIANTS[name](**SIZES, dropout=0.0)).train()
    tokens = ids(4, 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        out = model(tokens, output_mtp=True)
        loss = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        for k, logits in enumerate(out.mtp_logits or (), 1):
            loss = loss + F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, k + 1 :].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    first = F.cross_entropy(torch.zeros(1, 50), torch.zeros(1, dtype=torch.long))
    assert loss.item() < first.item() / 20
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_gradient_checkpointing_gives_the_same_gradients(name):
    torch.manual_seed(0)
    model = to_transformers(VARIANTS[name](**SIZES, dropout=0.2)).train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            checkpoint_activations(model)
        torch.manual_seed(1)
        model.zero_grad()
        model(ids()).logits.square().mean().backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("gpt", dict(n_layers=0), "n_layers=0"),
        ("gpt", dict(n_kv_heads=3), "n_heads=4 is not a multiple of n_kv_heads=3"),
        ("gpt", dict(d_model=30), "d_model=30 is not a multiple of n_heads=4"),
        ("gpt", dict(d_model=12, n_heads=4), "width of 3 cannot be turned"),
        ("gpt", dict(d_ff=0), "d_ff=0"),
        ("gpt-moe", dict(n_chosen=5), "5 of 4 experts"),
        ("gpt-moe", dict(gate="loud"), "gate='loud'"),
        ("gpt-mla", dict(qk_rope_head_dim=3), "width of 3 cannot be turned"),
        ("gpt-mtp", dict(mtp_depth=0), "mtp_depth=0"),
    ],
)
def test_sizes_that_do_not_fit_are_an_error(name, changes, said):
    with pytest.raises(ValueError, match=said):
        VARIANTS[name](**(SIZES | changes))


def test_variants_share_what_they_do_not_vary():
    """The same seed gives gpt and gpt-mtp the same backbone."""
    models = []
    for name in ("gpt", "gpt-mtp"):
        torch.manual_seed(0)
        models.append(variants.VARIANTS[name](**SIZES))
    shapes = [{name: p.shape for name, p in model.backbone.state_dict().items()} for model in models]
    assert shapes[0] == shapes[1]
