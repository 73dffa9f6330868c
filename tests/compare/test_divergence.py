"""Where two models part: what is named, what is called rounding, and that nothing is left behind in the models."""

import copy
import io
import json
import math

import pytest
import torch
from rich.console import Console
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from inspector.bench.tiny import tiny_model
from inspector.compare import divergence
from inspector.compare.divergence import Kept, condensed, differences, diverge, record, rounding_of, worst
from inspector.loading.loaded import Loaded, attach
from inspector.parts.precision import in_dtype
from inspector.parts.splitting import Split
from inspector.parts.watching import Call, states
from inspector.records.as_json import from_json, to_json
from inspector.records.comparison import ComponentGap, Divergence, Gap, Place
from inspector.records.generation import Origin
from inspector.render.parting import divergence_report
from inspector.render.text import translator

IDS = [3, 7, 1, 12, 5, 9]
FAMILIES = ("qwen2", "expert", "gpt2", "llama", "gemma2")


@pytest.fixture
def pair(tiny):
    """A function: family → a tiny model and a copy of it."""

    def build(family: str) -> tuple[Loaded, Loaded]:
        model = tiny(family).model if family in ("qwen2", "expert") else tiny_model(family)
        return tuple(attach(m, origin=Origin(name, "python")) for m, name in ((model, "one"), (copy.deepcopy(model), "two")))

    return build


def module(m: Loaded, part: str) -> nn.Module:
    """The module in layer 1 whose name ends so."""
    return next(module for name, module in m.model.named_modules() if ".1." in name and name.endswith(part))


def bits(model: nn.Module) -> dict:
    return {name: (t.dtype, t.data_ptr(), t.clone()) for name, t in (*model.named_parameters(), *model.named_buffers())}


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def same_bits(model: nn.Module, before: dict) -> bool:
    now = bits(model)
    return all(now[name][:2] == old[:2] and torch.equal(now[name][2], old[2]) for name, old in before.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_models_differ_nowhere_and_stay_as_they_are(family, pair):
    a, b = pair(family)
    before = [bits(m.model) for m in (a, b)]
    result = diverge(a, b, IDS)
    assert (result.place, result.gap, result.flip, result.differing) == (None, None, None, ())
    assert [c.role for c in result.components[:2]] != [] and result.components[-1].role == "logits"
    assert all(gap.difference == 0 for c in result.components for gap in (c.input, c.output) if gap)
    assert result.logits_difference == 0 < result.logits_rounding < 1e-4
    assert all(same_bits(m.model, old) and hooks(m.model) == 0 for m, old in zip((a, b), before, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_precision_is_rounding_whichever_comes_first(family, dtype, pair):
    a, b = pair(family)
    own = [(m, name, t.clone()) for m in b.model.modules() for name, t in m._buffers.items() if name in m._non_persistent_buffers_set]
    b.model.to(dtype)
    for m, name, t in own:
        m._buffers[name] = t  # as where transformers loads a checkpoint: RoPE's frequencies keep their precision
    for first, second in ((a, b), (b, a)):
        result = diverge(first, second, IDS)
        assert result.place is None and result.logits_difference > 0
        assert max(c.output.difference for c in result.components if c.output) > 0
    assert (result.dtype_a, result.dtype_b) == (str(dtype).removeprefix("torch."), "float32")


def test_bfloat16_hides_no_bug(pair):
    a, b = pair("llama")
    b.model.to(torch.bfloat16)
    module(b, "o_proj").weight.data *= 1.2
    assert diverge(a, b, IDS).place == Place("layers.1.attn.o")


@pytest.mark.parametrize(
    ("family", "part", "role"),
    [
        ("qwen2", "down_proj", "layers.1.mlp.down"),
        ("qwen2", "k_proj", "layers.1.attn.k"),
        ("expert", "norm_mlp", "layers.1.norm_mlp"),
        ("gpt2", "attn.c_attn", "layers.1.attn.qkv"),
        ("gemma2", "post_feedforward_layernorm", "layers.1.norm_mlp_post"),
    ],
)
def test_a_difference_planted_in_one_weight_is_found_there_and_is_inherited_elsewhere(family, part, role, pair):
    a, b = pair(family)
    weight = module(b, part).weight
    weight.data.view(-1)[3] += 0.01
    result = diverge(a, b, IDS)
    assert result.place == Place(role) and result.gap.introduced and result.gap.difference > 1e-4
    assert result.differing == tuple(r for r in ("layers.1", "layers.1.attn", "layers.1.mlp", role) if role.startswith(r))
    assert hooks(b.model) == 0
    later = next(c for c in result.components if c.role == "final_norm")
    assert later.output.difference == 0 < later.together


@torch.no_grad()
def test_the_numbers_are_those_of_the_component_run_by_hand(pair):
    a, b = pair("llama")
    module(b, "up_proj").weight.data[0, 0] += 0.5
    seen = []
    hook = module(a, "up_proj").register_forward_hook(lambda m, args, output: seen.append((args[0], output)))
    a.model(torch.tensor([IDS]))
    hook.remove()
    (x, y), gap = seen[0], diverge(a, b, IDS).gap
    difference = (module(b, "up_proj")(x) - y).abs().amax(-1)[0]
    exact = copy.deepcopy(module(a, "up_proj")).double()(x.double())
    own = (exact - y.double()).abs().amax(-1)[0]
    assert gap.difference == pytest.approx(float(difference[gap.token]))
    assert gap.rounding >= float(own[gap.token]) > 0 and gap.rounding < 1e-6


def test_one_step_of_a_weight_is_rounding(pair):
    a, b = pair("llama")
    weight = module(b, "down_proj").weight
    weight.data = torch.nextafter(weight.data, torch.tensor(torch.inf))
    assert diverge(a, b, IDS).place is None


def test_blocks_that_do_the_same_agree_however_they_are_arranged(pair):
    a, b = pair("llama")
    for model, implementation in ((a.model, "sdpa"), (b.model, "eager")):
        model.set_attn_implementation(implementation)
    norm = module(b, "input_layernorm").weight
    for part in ("q_proj", "k_proj", "v_proj"):  # the norm's weights go into the projections after it
        module(b, part).weight.data *= norm.data
    norm.data.fill_(1.0)
    result = diverge(a, b, IDS)
    assert result.place is None and 0 < result.logits_difference < 1e-4


def test_what_is_done_after_the_last_part_or_between_them_is_said_so(pair):
    a, b = pair("qwen2")
    mlp, own = module(b, "mlp"), module(b, "mlp").forward
    mlp.forward = lambda x: own(x) * 1.1
    assert diverge(a, b, IDS).place == Place(
        "layers.1.mlp", ("layers.1.mlp.gate", "layers.1.mlp.act", "layers.1.mlp.up", "layers.1.mlp.down")
    )
    assert diverge(a, b, IDS).place.name == "layers.1.mlp →"
    mlp.forward = own
    act = module(b, "mlp").act_fn
    mlp.forward = lambda x: mlp.down_proj(act(mlp.gate_proj(x)) + mlp.up_proj(x))
    assert diverge(a, b, IDS).place == Place(
        "layers.1.mlp", ("layers.1.mlp.gate", "layers.1.mlp.act", "layers.1.mlp.up"), "layers.1.mlp.down"
    )


class Shifted(nn.Module):
    """A GPT-2 whose positions begin at 1, and whose logits have a factor."""

    def __init__(self, inner: nn.Module, shift: int, factor: float):
        super().__init__()
        self.transformer, self.lm_head, self.shift, self.factor = inner.transformer, inner.lm_head, shift, factor
        self.config = inner.config

    def forward(self, ids):
        places = torch.arange(ids.shape[1])[None] + self.shift
        return self.lm_head(self.transformer(ids, position_ids=places, use_cache=False).last_hidden_state) * self.factor


@pytest.mark.parametrize(("shift", "factor", "name"), [(0, 1.0, None), (1, 1.0, "→ embed_pos"), (0, 0.9, "→ logits")])
def test_what_stands_outside_of_every_module_is_named_by_what_comes_next(shift, factor, name, pair):
    a, b = pair("gpt2")
    result = diverge(a, attach(Shifted(b.model, shift, factor), split=b.split), IDS)
    assert (result.place and result.place.name) == name


def test_roles_of_one_model_only_and_other_shapes_are_said(tiny):
    a, b = tiny("qwen2"), tiny("expert")
    result = diverge(a, b, IDS)
    assert result.only_a == ("layers.0–1.mlp.gate",) and result.only_b == ()
    assert "layers.0–1.attn.k 1×6×8 ≠ 1×6×16" in result.reshaped
    assert result.place == Place("embed")


def test_models_of_different_depth_part_where_the_shorter_ends():
    torch.manual_seed(0)
    sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_attention_heads=2, num_key_value_heads=2)
    long = Qwen2ForCausalLM(Qwen2Config(**sizes, num_hidden_layers=3, initializer_range=0.5)).eval()
    short = copy.deepcopy(long)
    short.model.layers = short.model.layers[:2]
    short.model.config.num_hidden_layers = 2
    result = diverge(attach(long), attach(short), IDS)
    assert result.only_a == ("layers.2",)
    assert result.place == Place("", ("layers.1",), "final_norm") and result.place.name == "→ final_norm"


def test_a_block_that_runs_twice_is_held_against_the_two_that_run_in_its_turns(pair):
    a, b = pair("llama")
    b.model.model.layers[2] = b.model.model.layers[1]
    result = diverge(a, b, IDS)
    assert (result.only_a, result.only_b, result.notes) == ((), (), ("in turn",)) and result.place == Place("layers.2.norm_attn")
    c = attach(copy.deepcopy(a.model))
    c.model.model.layers[2].load_state_dict(c.model.model.layers[1].state_dict())  # the same computation, unrolled
    for one, other in ((b, c), (c, b)):
        result = diverge(one, other, IDS)
        assert result.place is None and result.notes == ("in turn",) and result.logits_difference == 0
        assert [c.role for c in result.components if c.role.startswith("layers")][1:3] in (
            ["layers.1", "layers.1#2"],
            ["layers.1", "layers.2"],
        )
    c.model.model.layers[2].mlp.up_proj.weight.data *= 1.1
    assert diverge(b, c, IDS).place == Place("layers.1.mlp.up#2") and diverge(c, b, IDS).place == Place("layers.2.mlp.up")


def test_a_block_that_runs_twice_in_both_is_compared_call_by_call(pair):
    a, b = pair("llama")
    for m in (a, b):
        m.model.model.layers[2] = m.model.model.layers[1]
    result = diverge(a, b, IDS)
    assert result.place is None and result.notes == () and "layers.1#2" in [c.role for c in result.components]
    module(b, "mlp.up_proj").weight.data *= 1.1
    assert diverge(a, b, IDS).place == Place("layers.1.mlp.up")
    a, b = pair("llama")
    for m, times in ((a, 1.0), (b, 1.1)):  # what differs in the second call alone
        m.model.model.layers[2] = m.model.model.layers[1]
        own = m.model.model.layers[1].mlp.forward
        turns = [0]

        def forward(x, own=own, turns=turns, times=times):
            turns[0] += 1
            return own(x) * (times if turns[0] % 2 == 0 else 1.0)

        m.model.model.layers[1].mlp.forward = forward
    assert diverge(a, b, IDS).place.component == "layers.1.mlp#2"


def test_frequencies_of_rope_keep_their_precision_where_transformers_keeps_it(pair):
    model = pair("llama")[0].model
    rotary, weight = model.model.rotary_emb, model.lm_head.weight
    with in_dtype(model, torch.bfloat16, constants=False):
        assert (rotary.inv_freq.dtype, weight.dtype) == (torch.float32, torch.bfloat16)
    with in_dtype(model, torch.float64, constants=False):
        assert (rotary.inv_freq.dtype, weight.dtype) == (torch.float64, torch.float64)
    assert rotary.inv_freq.dtype == weight.dtype == torch.float32


def test_the_rounding_of_angles_at_far_positions_is_expected():
    """The same frequencies by another formula differ in the last bit, and a thousand tokens on by more than a product's rounding."""
    torch.manual_seed(0)
    heads = dict(num_attention_heads=2, num_key_value_heads=2)
    config = Qwen2Config(vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=2, initializer_range=0.5, **heads)
    a = Qwen2ForCausalLM(config).eval()
    b = copy.deepcopy(a)
    b.model.rotary_emb.inv_freq = torch.nextafter(b.model.rotary_emb.inv_freq, torch.tensor(0.0))
    ids = torch.randint(0, 32, (1500,)).tolist()
    result = diverge(attach(a), attach(b), ids, 1)
    assert result.place is None and result.logits_difference > 1e-5
    b.model.rotary_emb.inv_freq *= 1.0001
    assert diverge(attach(a), attach(b), ids, 1).place.name == "layers.0.attn → o"


def test_a_norm_that_computes_in_float32_whatever_it_is_given_has_rounding_too(pair):
    a, _ = pair("llama")
    module(a, "input_layernorm").weight.data.fill_(1.0)
    own, logits = record(a, torch.tensor([IDS]))
    own["logits"] = Kept([logits])
    (rows,) = rounding_of(a, torch.float32, own, torch.tensor([IDS]), ["layers.1.norm_attn"], ["layers.1.norm_attn"])
    assert 1e-9 < rows["layers.1.norm_attn", "output"].max() < 1e-5


def test_of_a_model_only_the_components_of_one_level_are_held(pair, monkeypatch):
    """A prompt of 2,048 tokens has more activations than the model has weights."""
    a, b = pair("llama")
    module(b, "down_proj").weight.data.view(-1)[3] += 0.01
    held = []

    def recorded(m, ids_1T, keep=None):
        calls, logits_1TV = record(m, ids_1T, keep)
        assert all(
            call.output.is_meta is (role not in keep) and call.states[0].is_meta is (role not in keep) for role, call in calls.items()
        )
        held.append(keep)
        return calls, logits_1TV

    monkeypatch.setattr(divergence, "record", recorded)
    assert diverge(a, b, IDS).place.name == "layers.1.mlp.down"
    layers = [f"layers.{i}" for i in range(4)]
    inside = [f"layers.1.{part}" for part in ("norm_attn", "attn", "norm_mlp", "mlp")]
    assert held[:4] == [(), (), ["embed", *layers, "final_norm", "head"], inside]
    assert held[4] == [f"layers.1.mlp.{part}" for part in ("gate", "act", "up", "down")] and len(held) == 5


@pytest.mark.parametrize("at_once", [1, 20, 10**9])
def test_differences_are_the_same_however_many_rows_are_compared_at_once(at_once, monkeypatch):
    monkeypatch.setattr(divergence, "AT_ONCE", at_once)
    a = torch.tensor([[[1.0, math.inf, 2.0], [math.nan, 0.0, 0.0], [-math.inf, 1.0, 4.0], [1.0, 1.0, 1.0]]])
    b = torch.tensor([[[1.5, math.inf, 0.0], [0.0, 0.0, 0.0], [math.inf, 1.0, 1.0], [1.0, 1.0, 1.0]]])
    assert differences(a, b).tolist() == [2.0, math.inf, math.inf, 0.0]
    assert differences(a, b[0]).tolist() == [2.0, math.inf, math.inf, 0.0]
    assert differences(torch.tensor([[3, 5]]), torch.tensor([[3, 9]])).tolist() == [0.0, 4.0]  # ids


def test_a_padded_vocabulary_is_compared_on_what_both_have(pair):
    a, b = pair("llama")
    b.model.resize_token_embeddings(104, mean_resizing=False)
    result = diverge(a, attach(b.model), IDS)
    assert result.place is None and result.logits_difference == 0 and result.flip is None
    assert result.reshaped == ("head 1×6×96 ≠ 1×6×104",)


def test_the_flipped_token_is_the_first_that_greedy_decoding_chooses_differently(pair):
    a, b = pair("gpt2")
    module(b, "attn.c_proj").weight.data *= 0.5
    result = diverge(a, b, IDS, max_new_tokens=40)
    ids = list(IDS)
    while True:
        logits = [m.model(torch.tensor([ids])).logits[0, -1] for m in (a, b)]
        best = [int(side.argmax()) for side in logits]
        if best[0] != best[1]:
            break
        ids.append(best[0])
    flip, step = result.flip, len(ids) - len(IDS)
    assert (flip.step, flip.a.id, flip.b.id, result.compared_steps) == (step, *best, step + 1)
    assert flip.margin_a == pytest.approx(float(logits[0][best[0]] - logits[0][best[1]]), rel=1e-4) and flip.margin_b > 0
    first = a.model(torch.tensor([IDS])).logits[0, -1].topk(2).values
    assert result.margin_a == pytest.approx(float(first[0] - first[1]), rel=1e-4)


def test_the_record_comes_back_from_json(pair):
    a, b = pair("qwen2")
    module(b, "down_proj").weight.data[0, 0] = torch.nan
    result = diverge(a, attach(b.model, split=b.split), IDS, 2)
    assert result.gap.difference == torch.inf
    written = json.dumps(to_json(result), allow_nan=False)
    again = from_json(Divergence, json.loads(written))
    assert json.dumps(to_json(again), allow_nan=False) == written and (again.components, again.place) == (result.components, result.place)


@pytest.mark.parametrize(
    ("ids", "steps", "part"),
    [
        ([3, 96], 5, "token id 96: one has the ids 0 to 95"),
        ([-1], 5, "token id -1"),
        ([], 5, "no tokens"),
        ([1] * 65, 5, "at most 64"),
        (IDS, 0, "max_new_tokens=0"),
    ],
)
def test_what_cannot_be_fed_to_both_is_refused(ids, steps, part, pair):
    with pytest.raises(ValueError, match=part):
        diverge(*pair("llama"), ids, steps)


class Single(nn.Module):
    """A layer that computes in float32 alone, in a way that float64 does not bear."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(16))
        self.table = [torch.eye(16)]

    def forward(self, x):
        return x @ self.weight @ self.table[0]


def test_an_a_that_does_not_run_in_float64_is_refused_and_left_as_it_was(pair):
    a, b = pair("expert")
    module(a, "mlp").up_proj = nn.Sequential(Single(), module(a, "mlp").up_proj)
    before = bits(a.model)
    with pytest.raises(ValueError, match=r"one does not run in float64.*name the other model first"):
        diverge(a, b, IDS)
    assert same_bits(a.model, before) and hooks(a.model) == hooks(b.model) == 0
    assert diverge(b, a, IDS).place is None


def test_hooks_go_when_a_model_breaks_off_in_the_middle(pair):
    a, b = pair("llama")

    def breaks(*args, **options):
        raise KeyError("in the middle")

    module(b, "mlp").forward = breaks
    with pytest.raises(KeyError):
        diverge(a, b, IDS)
    assert hooks(a.model) == hooks(b.model) == 0


def test_tokenizers_that_differ_are_said(tiny):
    a, b = tiny("qwen2"), tiny("qwen2")
    assert diverge(a, b, IDS).notes == () and diverge(a, b, IDS).tokens[0].text == a.texts.token(3).text
    b.tokenizer.add_tokens(["zz"])
    assert diverge(a, b, IDS).notes == ("other vocabulary",)
    assert diverge(attach(a.model), b, IDS).notes == ("ids of b",)
    assert diverge(a, attach(b.model), IDS).notes == ()


def test_the_worst_row_is_that_of_the_largest_ratio_not_of_the_largest_difference():
    tensor = torch.tensor([[[1000.0, 1.0], [1.0, 1.0], [2.0, 0.5]]])
    own = [torch.tensor([1e-3, 1e-6, 0.0], dtype=torch.float64)]
    gap = worst(torch.tensor([1e-3, 1e-4, 0.0]), own, tensor, 2**-23, 3)
    assert gap == Gap(pytest.approx(1e-4), pytest.approx(2e-6), 1) and gap.introduced
    # a row that is exact by chance has the rounding of the others in proportion to its numbers, and at least half a step
    assert worst(torch.tensor([0.0, 0.0, 1e-6]), own, tensor, 2**-23, 3) == Gap(pytest.approx(1e-6), pytest.approx(2e-6), 2)
    assert worst(torch.tensor([1.0]), [], torch.tensor([[8.0]]), 2**-23, 2) == Gap(1.0, 2**-21, None)
    assert worst(torch.tensor([0.0, torch.inf]), [], torch.tensor([[1.0], [2.0]]), 2**-23, 2).difference == torch.inf
    # positions are numbers, one a row, without rounding
    assert worst(torch.tensor([1.0, 1.0]), [], torch.tensor([[0, 1]]), 2**-23, 2) == Gap(1.0, 0.0, 0)


def test_hidden_states_are_told_from_masks_and_residuals_go_with_them():
    x, residual, mask, allowed = torch.ones(1, 3, 4), torch.zeros(1, 3, 4), torch.ones(1, 1, 3, 3), torch.ones(3, dtype=torch.bool)

    def given(*args, **options) -> Call:
        return Call("layers.0", None, args, options, number=1, index=0, depth=0)

    assert [id(t) for t in states(given(allowed, x, attention_mask=mask, residual=residual))] == [id(x), id(residual)]
    assert states(given(torch.tensor([[1, 2]])))[0].tolist() == [[1, 2]] and states(given()) == []


def test_roles_of_many_layers_are_one_line():
    lines = ["embed_pos", *(f"layers.{i}.attn.q" for i in (0, 1)), "layers.5", "layers.5.attn", "layers.6.mlp.down 1×2 ≠ 1×3"]
    assert condensed(lines) == ("embed_pos", "layers.0–1.attn.q", "layers.5", "layers.6.mlp.down 1×2 ≠ 1×3")


def test_differing_leaves_out_what_is_inherited():
    rounding, bug = Gap(1e-7, 1e-7, 0), Gap(1.0, 1e-7, 0)
    parts = (("embed", rounding, rounding), ("layers.0", bug, rounding), ("layers.1", rounding, bug), ("layers.2", bug, rounding))
    components = tuple(ComponentGap(role, given, made, 0.0) for role, given, made in parts)
    d = Divergence("a", "b", "float32", "float32", (), Place("", ("embed",), "layers.0"), components, (), (), (), 0, 0, 0, 0, 1, None)
    assert d.differing == ("layers.0", "layers.1") and d.gap is bug
    assert [Place("head").name, Place("", ("a",), "b").name, Place("x", ("x.a",)).name, Place("x", (), "x.b").name] == [
        "head",
        "→ b",
        "x →",
        "x → b",
    ]


@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_a_model_that_writes_into_what_it_is_given_is_compared_like_any_other(factor, pair):
    """What is put in is a copy: A's tensors stay what they are for the runs by which rounding is measured."""
    a, b = pair("llama")
    with torch.no_grad():
        b.model.model.layers[1].mlp.down_proj.weight.mul_(factor)
    expected = diverge(a, b, IDS)
    for layer in b.model.model.layers:
        own = layer.forward
        layer.forward = lambda x, *args, own=own, **options: [given := x.clone(), x.zero_(), own(given, *args, **options)][2]
    assert diverge(a, b, IDS) == expected
    assert (expected.place is None) == (factor == 1)


def test_logits_of_one_model_on_both_sides_are_its_own_of_either_run():
    model = tiny_model("llama")
    own, memory, passes = model.lm_head.forward, {}, []

    def head(x):
        passes.append(1)
        logits = own(x) + (len(passes) == 2)  # the second pass is another one
        return memory.setdefault(tuple(logits.shape), torch.empty_like(logits)).copy_(logits)

    m = attach(model)
    model.lm_head.forward = head
    assert diverge(m, m, IDS, 1).logits_difference == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("steps", [0, -1, True, 2.5, "3", None])
def test_steps_that_are_none_are_refused(steps, pair):
    with pytest.raises(ValueError, match=r"max_new_tokens=.*: give a whole number from 1 up"):
        diverge(*pair("qwen2"), IDS, steps)


def test_ids_that_one_of_two_vocabularies_lacks_are_refused():
    fewer = tiny_model("gpt2")
    fewer.resize_token_embeddings(50)
    large, small = attach(tiny_model("llama")), attach(fewer)
    for models in ((large, small), (small, large)):
        with pytest.raises(ValueError, match=r"token id 60: .* has the ids 0 to 49"):
            diverge(*models, [3, 60])
        with pytest.raises(ValueError, match="no tokens"):
            diverge(*models, [])


class Hidden(nn.Module):
    """A model that uses the weights of a module without running it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.zebra, self.final_norm, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 20)

    def hidden(self, ids):
        return self.final_norm(torch.nn.functional.linear(self.embed(ids), self.zebra.weight))

    def forward(self, ids):
        return self.head(self.hidden(ids))


def test_what_is_not_compared_is_said_before_two_models_are_called_the_same():
    def opened():
        model = Hidden().eval()
        return attach(model, split=Split(model.hidden, model.head, "", ("head",), probe=8, last_alone=False))

    a, b = opened(), opened()
    same = diverge(a, b, IDS)
    assert same.place is None and same.unnamed_a == same.unnamed_b == ("zebra",)
    assert from_json(Divergence, json.loads(json.dumps(to_json(same)))) == same
    b.model.zebra.weight.data *= 1.1
    other = diverge(a, b, IDS)
    assert other.place == Place("", ("embed",), "final_norm")
    for result, language, said in (
        (same, "en", "No component of B that was compared introduces more than rounding."),
        (same, "ru", "Ни одна часть B из тех, что сравнивались"),
        (other, "en", "Not compared alone: 1 module of B with weights"),
        (other, "ru", "Отдельно не сравнивались модули B"),
    ):
        screen = Console(width=200, file=io.StringIO())
        screen.print(divergence_report(result, translator(language)))
        assert said in screen.file.getvalue() and "zebra" in screen.file.getvalue()
        assert "each block gives A's output" not in screen.file.getvalue()


class WrittenBlock(nn.Module):
    """A layer of a model as people write it: a norm and a linear map for positions and for width, each beside a residual."""

    def __init__(self):
        super().__init__()
        self.ln1, self.qkv, self.proj, self.ln2 = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8), nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))

    def forward(self, x):
        q, k, v = (one[:, None] for one in self.qkv(self.ln1(x)).chunk(3, -1))
        x = x + self.proj(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0])
        return x + self.mlp(self.ln2(x))


class WrittenGPT(nn.Module):
    """Embedding, blocks, norm and head side by side."""

    def __init__(self, way: str):
        super().__init__()
        torch.manual_seed(0)
        blocks = [WrittenBlock() for _ in range(3)]
        self.wte, self.way = nn.Embedding(20, 8), way
        self.blocks = nn.Sequential(*blocks) if way == "Sequential" else nn.ModuleList(blocks)
        self.ln_f, self.head = nn.LayerNorm(8), nn.Linear(8, 20)

    def forward(self, ids):
        x = self.wte(ids)
        if self.way == "Sequential":
            return self.head(self.ln_f(self.blocks(x)))
        for block in self.blocks:
            x = block.forward(x) if self.way == "past their call" else block(x)
        return self.head(self.ln_f(x))


@pytest.mark.parametrize("way", ["ModuleList", "Sequential", "past their call"])
def test_layers_of_a_model_as_people_write_it_are_named(way):
    a, b = (attach(WrittenGPT(way)) for _ in "ab")
    assert diverge(a, b, IDS).place is None
    with torch.no_grad():
        b.model.blocks[1].mlp[2].weight.mul_(1.1)
    assert diverge(a, b, IDS).place.name == "layers.1.mlp.down"
