"""Interventions against the same change made in a copy's weights, and against torch; the model is left as it was."""

import copy
import io
import json
from collections.abc import Callable
from contextlib import contextmanager
from itertools import product

import pytest
import torch
from rich.console import Console
from torch import nn
from transformers.pytorch_utils import Conv1D

from inspector.bench.gender import PLACES, batches, measure
from inspector.bench.tiny import tiny_model
from inspector.inside.contributions import contributions
from inspector.inside.interventions import ablate, activations, effect, head_count, patch, scale, sites
from inspector.loading.loaded import attach
from inspector.loading.loading import load
from inspector.loop.decoding import next_logits
from inspector.parts.errors import InvariantError
from inspector.records.as_json import from_json, to_json
from inspector.records.effects import Effect, Intervention
from inspector.render.effects import effect_view
from inspector.render.text import translator

from .written import IDS as WRITTEN
from .written import ByHand, D, Encoder, Flat, Fused, H, Heads, flat, made

IDS, OTHER, SHORTER = [5, 17, 40, 8, 60, 33, 21], [9, 80, 3, 8, 60, 33, 21], [7, 70, 31]
FAMILIES = ["qwen2", "gpt2", "llama", "gemma2", "granite", "phi", "falcon", "cohere", "bert"]


def tiny_of(family):
    return load("names-expert") if family == "names-expert" else attach(tiny_model(family))


def logits(m, ids=IDS):
    with torch.no_grad():
        return m.model(torch.tensor([ids]), use_cache=False).logits[0, -1]


def by_parts(m, ids=IDS):
    with torch.no_grad():
        return next_logits(m.split, torch.tensor([ids]))


def hook_count(model):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def module_of(m, role):
    return m.modules[role]


@pytest.mark.parametrize("family", [*FAMILIES, "names-expert"])
def test_ablating_a_head_is_zero_columns_in_a_copys_output_projection(family):
    m, changed = tiny_of(family), tiny_of(family)
    o = module_of(changed, "layers.1.attn.o")
    heads, width = head_count(changed.model, o)
    assert heads == 4
    columns = slice(2 * width, 3 * width)
    with torch.no_grad():
        (o.weight.T if isinstance(o, nn.Linear) else o.weight)[columns] = 0
    with ablate(m, "layers.1.attn.head.2"):
        found = by_parts(m)
    torch.testing.assert_close(found, by_parts(changed), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(found, by_parts(m), atol=1e-4)


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "falcon", "names-expert"])
def test_scaling_is_a_copys_last_projection_scaled(family):
    m, changed = tiny_of(family), tiny_of(family)
    for layer in range(4):
        for weight in module_of(changed, f"layers.{layer}.mlp.down").parameters():
            weight.data *= 0.5
    with scale(m, "layers.*.mlp", 0.5):
        found = logits(m)
    torch.testing.assert_close(found, logits(changed), rtol=1e-6, atol=1e-6)


def test_mean_ablation_is_the_mean_over_the_positions():
    m = tiny_of("qwen2")
    hook = module_of(m, "layers.1.mlp").register_forward_hook(lambda _, i, x: x.mean(1, keepdim=True).repeat(1, x.shape[1], 1))
    expected = logits(m)
    hook.remove()
    with ablate(m, "layers.1.mlp", "mean"):
        assert torch.equal(logits(m), expected)
    assert not torch.equal(logits(m), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_patching_the_whole_stream_makes_one_run_the_other(family):
    m = tiny_of(family)
    with patch(m, "layers.2", OTHER):
        assert torch.equal(logits(m), logits(m, OTHER)) and not torch.equal(logits(m), logits(tiny_of(family)))


@pytest.mark.parametrize("role", ["layers.1.attn", "layers.1.attn.head.3", "layers.*.mlp", "embed", "final_norm", "head", "layers.0"])
@pytest.mark.parametrize("family", ["qwen2", "gpt2", "falcon"])
def test_a_models_own_activation_changes_no_bit(family, role):
    m = tiny_of(family)
    with patch(m, role, IDS):
        assert torch.equal(by_parts(m), by_parts(tiny_of(family)))


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "falcon"])
def test_prompts_of_different_lengths_are_patched_at_their_last_positions(family):
    """After the last layer positions do not meet any more: the last one is all that the logits see."""
    m = tiny_of(family)
    with patch(m, "layers.3", SHORTER) as acted:
        torch.testing.assert_close(logits(m), logits(tiny_of(family), SHORTER), rtol=1e-6, atol=1e-6)
    assert acted == {"layers.3": 1}
    with pytest.raises(ValueError, match=r"position 2: the prompts are 3 and 7 tokens long"), patch(m, "layers.3", SHORTER, 2):
        logits(m)


def test_a_position_alone_is_changed():
    m = tiny_of("qwen2")
    kept = []
    hook = module_of(m, "final_norm").register_forward_pre_hook(lambda _, i: kept.append(i[0][0]))
    with scale(m, "layers.3", 2.0, position=-2) as acted:
        logits(m)
    logits(m)
    hook.remove()
    changed, own = kept
    assert torch.equal(changed[-2], 2 * own[-2]) and torch.equal(changed[-1], own[-1]) and torch.equal(changed[:-2], own[:-2])
    assert acted == {"layers.3": 1}
    with pytest.raises(ValueError, match="no position 7"), scale(m, "layers.3", 2.0, position=[0, 7]):
        logits(m)


def test_contexts_nest_and_nothing_is_left_of_them():
    m = tiny_of("qwen2")
    before, weights = logits(m), {name: w.clone() for name, w in m.model.state_dict().items()}
    with ablate(m, "layers.3.attn.head.2"), scale(m, "layers.0.mlp", 0.5):
        both = by_parts(m)
        assert hook_count(m.model) == 8  # of each before and after its place, and the embedding, which tells how many positions there are
    one = copy.deepcopy(m.model)
    with torch.no_grad():
        one.model.layers[3].self_attn.o_proj.weight[:, 16:24] = 0
        one.model.layers[0].mlp.down_proj.weight *= 0.5
        torch.testing.assert_close(both, one(torch.tensor([IDS]), use_cache=False).logits[0, -1], rtol=1e-6, atol=1e-6)
    assert hook_count(m.model) == 0
    assert torch.equal(before, logits(m))
    assert all(torch.equal(w, weights[name]) for name, w in m.model.state_dict().items())


def test_hooks_go_when_the_block_or_the_model_raises():
    m = tiny_of("gpt2")
    with pytest.raises(KeyboardInterrupt), ablate(m, "layers.*.attn"), patch(m, "layers.0.attn.head.*", OTHER):
        raise KeyboardInterrupt
    assert hook_count(m.model) == 0
    own = m.model.transformer.ln_f.forward
    m.model.transformer.ln_f.forward = lambda x: [][0]
    with pytest.raises(IndexError):  # the run that reads the activations fails
        patch(m, "layers.0", OTHER)
    m.model.transformer.ln_f.forward = own
    for ids, why in (([], "no tokens"), ([10**6], "token id 1000000")):
        with pytest.raises(ValueError, match=why):
            patch(m, "layers.0", ids)
    assert hook_count(m.model) == 0


def test_globs_stand_for_one_part_of_a_role():
    m = tiny_of("llama")
    assert [site.role for site in sites(m, "layers.*.mlp")] == [f"layers.{i}.mlp" for i in range(4)]
    assert [site.role for site in sites(m, "layers.2.attn.head.*")] == [f"layers.2.attn.head.{h}" for h in range(4)]
    assert [site.role for site in sites(m, "layers.*")] == [f"layers.{i}" for i in range(4)]
    assert len(sites(m, "layers.*.attn.head.1")) == 4 and len(sites(m, "*.1.norm_*")) == 2


@pytest.mark.parametrize("role", ["nothing", "layers.4.attn", "layers.0.attn.head.4", "layers", "[a-z]*", "layers.0.attn.head.-1", ""])
def test_a_role_that_does_not_exist_names_some_that_do(role):
    with pytest.raises(
        ValueError, match=r"no role '.*': it has embed, .*; layers\.0 to layers\.3, with attn, .*, attn\.head\.0 to attn\.head\.3 in them$"
    ):
        ablate(tiny_of("qwen2"), role)


def test_a_component_that_is_never_run_is_said():
    m = tiny_of("llama")
    m.model.model.layers[0].self_attn.q_norm = nn.Linear(2, 2)
    for kind, value in (("ablate", "zero"), ("patch", "src")):
        with pytest.raises(ValueError, match=r"uses layers\.0\.attn\.q_norm without running it"):
            effect(m, IDS, [Intervention(kind, "layers.0.attn.q_norm", value)], {"src": OTHER})


@pytest.mark.parametrize("family", ["qwen2", "names-expert"])
def test_an_effect_is_that_of_torchs_distributions(family):
    m = tiny_of(family)
    record = effect(m, IDS, [Intervention("scale", "layers.1.attn.head.0", -1.5), Intervention("ablate", "layers.0.mlp", "mean")])
    before = by_parts(m).double()
    with scale(m, "layers.1.attn.head.0", -1.5), ablate(m, "layers.0.mlp", "mean"):
        after = by_parts(m).double()
    kl = torch.nn.functional.kl_div(after.log_softmax(-1), before.log_softmax(-1), reduction="sum", log_target=True)
    torch.testing.assert_close(record.kl, float(kl), rtol=1e-5, atol=1e-9)
    assert record.kl > 1e-4 and record.roles == {"layers.0.mlp": 7, "layers.1.attn.head.0": 7}
    for shift in record.shifts:
        torch.testing.assert_close(shift.probability_before, float(before.softmax(-1)[shift.token.id]), rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(shift.probability_after, float(after.softmax(-1)[shift.token.id]), rtol=1e-5, atol=1e-9)
    assert {int(before.argmax()), int(after.argmax())} <= {shift.token.id for shift in record.shifts}
    moves = [abs(shift.probability_after - shift.probability_before) for shift in record.shifts]
    assert moves == sorted(moves, reverse=True)
    assert record.same_hooked and record.same_afterwards
    assert from_json(Effect, json.loads(json.dumps(to_json(record)))) == record


def test_patches_are_read_from_the_model_as_it_is():
    """A patch beside an ablation that acts before it: the activation is the clean other run's."""
    m = tiny_of("qwen2")
    both = [Intervention("ablate", "layers.0.mlp", "zero"), Intervention("patch", "layers.2", "src")]
    record = effect(m, IDS, both, {"src": OTHER})
    other = logits(m, OTHER).double().softmax(-1)
    for shift in record.shifts:
        torch.testing.assert_close(shift.probability_after, float(other[shift.token.id]), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ([], "nothing to change"),
        ([Intervention("ablate", "layers.0", "noise")], "choose zero or mean"),
        ([Intervention("scale", "layers.0", float("inf"))], "finite"),
        ([Intervention("scale", "layers.0", 3e38), Intervention("scale", "layers.1", 3e38)], "no numbers"),
        ([Intervention("scale", "layers.0.attn.head.1", 2.0, 7)], "no position 7"),
    ],
)
def test_wrong_interventions_are_refused(what, said):
    with pytest.raises(ValueError, match=said):
        effect(tiny_of("qwen2"), IDS, what)


WRONG = [
    (
        lambda m: effect(m, IDS, [Intervention("melt", "layers.0", "zero")]),
        "'melt' is no kind of intervention: choose ablate, scale or patch",
    ),
    (lambda m: effect(m, IDS, [Intervention("patch", "layers.0", "there")], {"here": OTHER}), "from 'there': there are no ids for it"),
    (lambda m: effect(m, IDS, [Intervention("patch", "layers.0", "there")]), "give sources={'there': ids}"),
    (lambda m: effect(m, IDS, [Intervention("patch", "layers.0", 3)]), "from 3: give the name"),
    (lambda m: effect(m, IDS, [Intervention("scale", "layers.0", "2")]), "by '2': give a finite number"),
    (lambda m: effect(m, IDS, [Intervention("scale", "layers.0", True)]), "by True: give a finite number"),
    (lambda m: effect(m, IDS, [Intervention("ablate", "layers.0", 0)]), "with 0: choose zero or mean"),
    (lambda m: effect(m, IDS, [Intervention("ablate", "layers.0", "zero", True)]), "position True: give a whole number"),
    (lambda m: effect(m, IDS, [Intervention("ablate", "layers.0", "zero", 1.0)]), "position 1.0: give a whole number"),
    (lambda m: effect(m, IDS, [Intervention("ablate", "layers.0", "zero", "1")]), "position '1': give a whole number"),
    (lambda m: effect(m, IDS, [Intervention("ablate", "layers.0", "zero", -8)]), "no position -8"),
    (lambda m: effect(m, IDS, [Intervention("ablate", 0, "zero")]), "role 0: give a text"),
    (lambda m: effect(m, IDS, Intervention("ablate", "layers.0", "zero")), "give a list"),
    (lambda m: effect(m, IDS, ["layers.0"]), "'layers.0' is no intervention"),
    (lambda m: effect(m, [], [Intervention("ablate", "layers.0", "zero")]), "no tokens"),
    (lambda m: effect(m, [96], [Intervention("ablate", "layers.0", "zero")]), "token id 96"),
    (lambda m: effect(m, IDS, [Intervention("patch", "layers.0", "other")], {"other": []}), "no tokens"),
    (lambda m: effect(m, IDS, [Intervention("ablate", "head", "zero", 3)]), "position 3 is not sent to head .* the last position alone"),
    (lambda m: ablate(m, "layers.0", "noise"), "'noise': choose zero or mean"),
    (lambda m: ablate(m, None), "role None: give a text"),
    (lambda m: ablate(m, "layers.0", position=[]), "at least one"),
    (lambda m: ablate(m, "layers.0", position=[0, 1.5]), "position 1.5: give a whole number"),
    (lambda m: scale(m, "layers.0", "2"), "by '2': give a finite number"),
    (lambda m: scale(m, "layers.0", None), "by None: give a finite number"),
    (lambda m: scale(m, "layers.0", 2.0, False), "position False: give a whole number"),
    (lambda m: patch(m, "layers.0", "text"), "give whole numbers"),
    (lambda m: patch(m, "layers.0", [[1, 2], [3]]), "give whole numbers"),
    (lambda m: patch(m, "layers.0", []), "no tokens"),
    (lambda m: patch(m, "layers.0", torch.zeros(0, 3, dtype=torch.long)), "no tokens|one prompt"),
    (lambda m: patch(m, "layers.0", [1.0, 2.0]), "give whole numbers"),
]


@pytest.fixture(scope="module")
def qwen2():
    return tiny_of("qwen2")


@pytest.mark.parametrize(("ask", "said"), WRONG)
def test_what_says_nothing_is_one_line_in_python_too(ask, said, qwen2):
    with pytest.raises(ValueError, match=said) as refused:
        ask(qwen2)
    assert "\n" not in str(refused.value) and hook_count(qwen2.model) == 0


def test_a_proof_that_fails_is_no_wrong_request(monkeypatch):
    """What does not hold: a model that does not repeat itself, one that gives NaN, and something that is left behind."""
    what = [Intervention("ablate", "layers.0.mlp", "zero")]
    noisy = tiny_of("qwen2")
    noisy.model.model.norm.register_forward_hook(lambda _, i, x: x + torch.rand(()))
    broken = tiny_of("qwen2")
    broken.model.model.norm.register_forward_hook(lambda _, i, x: x * float("nan"))
    left = tiny_of("qwen2")
    calls = []
    left.model.model.norm.register_forward_hook(lambda _, i, x: [calls.append(1), x + (len(calls) == 4)][1])
    for m, said in ((noisy, "does not repeat itself"), (broken, "gives NaN here by itself"), (left, "has left something behind")):
        with pytest.raises(InvariantError, match=said):
            effect(m, IDS, what)
    with pytest.raises(ValueError, match="change less"):
        effect(tiny_of("qwen2"), IDS, [Intervention("scale", "layers.0", 3e38), Intervention("scale", "layers.1", 3e38)])


@pytest.mark.parametrize("position", [0, -1, 3])
def test_rows_without_a_batch_are_positions_too(position):
    """The router of Mixtral gives [T, E]: the first of its positions must not be taken for the first expert."""
    m, seen = tiny_of("mixtral"), []
    m.modules["layers.1.mlp.experts"].register_forward_pre_hook(lambda _, args: seen.append([x.clone() for x in args]))
    own = effect(m, IDS, [Intervention("scale", "layers.0.mlp.router", 1.0)])
    changed = effect(m, IDS, [Intervention("ablate", "layers.1.mlp.experts", "zero", position)])
    assert own.kl == 0 and changed.kl > 0 and changed.roles == {"layers.1.mlp.experts": 1}
    kept = [m.modules["layers.1.norm_attn"].register_forward_pre_hook(lambda _, i: rows.append(i[0][0].clone()))]
    rows = []
    logits(m)
    with scale(m, "layers.0.mlp.experts", 2.0, position) as acted:
        logits(m)
    kept[0].remove()
    differs = (rows[0] != rows[1]).any(-1)
    assert differs.nonzero().flatten().tolist() == [position % 7] and acted == {"layers.0.mlp.experts": 1}


HEADS_FIRST = ("gemma3_text", "layers.1.attn.q_norm", (1, 4, 7, 8))  # [B, H, T, K]


@pytest.mark.parametrize("position", [0, 5, -1])
def test_positions_are_found_behind_the_heads(position):
    family, role, shape = HEADS_FIRST
    m = tiny_of(family)
    own, changed = [], []
    with watching(m, role, own):
        logits(m)
    with scale(m, role, 2.0, position) as acted, watching(m, role, changed):
        logits(m)
    expected = own[0].clone()
    expected[:, :, position] *= 2
    assert own[0].shape == shape and torch.equal(changed[0], expected) and acted == {role: 1}
    with ablate(m, role, "mean") as acted, watching(m, role, changed):
        logits(m)
    assert torch.equal(changed[1], own[0].mean(2, keepdim=True).expand(shape)) and acted == {role: 7}


@pytest.mark.parametrize("what", [Intervention("scale", HEADS_FIRST[1], 2.0, 0), Intervention("ablate", HEADS_FIRST[1], "mean")])
def test_positions_that_the_size_alone_does_not_tell_are_refused(what):
    """Four heads of four tokens: either could be the positions. As a whole it can be changed all the same."""
    m = tiny_of(HEADS_FIRST[0])
    with pytest.raises(ValueError, match=r"layers\.1\.attn\.q_norm has no position.*\(1, 4, 4, 8\)"):
        effect(m, IDS[:4], [what])
    patched = effect(m, IDS[:4], [Intervention("patch", what.role, "other"), Intervention("scale", what.role, 3.0)], {"other": OTHER[:4]})
    assert patched.roles == {what.role: 4} and patched.kl > 0


def test_what_a_convolution_gives_has_its_channels_first():
    """[B, D, T and the padding]: neither 0 nor the mean over "positions" may act on channels."""
    m = tiny_of("recurrent_gemma")
    for what in (Intervention("scale", "layers.0.mixer.conv", 2.0, 0), Intervention("ablate", "layers.0.mixer.conv", "mean")):
        with pytest.raises(ValueError, match=r"layers\.0\.mixer\.conv has no position"):
            effect(m, IDS, [what])
    assert effect(m, IDS, [Intervention("patch", "layers.0.mixer.conv", "other")], {"other": OTHER}).roles == {"layers.0.mixer.conv": 7}


@contextmanager
def watching(m, role, found):
    hook = m.modules[role].register_forward_hook(lambda _, i, x: found.append(x.clone()))
    yield
    hook.remove()


# --- what a model is handed is its own ---


class Decoder(nn.Module):
    """A model of the user's: an embedding, layers, a norm; and a head."""

    def __init__(self, backbone: nn.Module, width: int):
        super().__init__()
        self.backbone, self.out = backbone, nn.Linear(width, 100)

    def forward(self, ids):
        return self.out(self.backbone(ids))


class Backbone(nn.Module):
    def __init__(self, layers, width: int, factor: Callable = lambda x: x):
        super().__init__()
        self.embedding, self.layers, self.norm, self.factor = nn.Embedding(100, width), nn.ModuleList(layers), nn.LayerNorm(width), factor

    def forward(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            x = self.factor(layer(x))
        return self.norm(x)


class Layer(nn.Module):
    def __init__(self, in_place: bool):
        super().__init__()
        self.in_place, self.mlp, self.norm_mlp = in_place, nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.LayerNorm(8)

    def forward(self, x):
        past = self.norm_mlp(x)
        if self.in_place:
            return self.mlp(past.add_(x)).add_(x)
        return self.mlp(past + x) + x


def in_place(yes):
    """A decoder that writes into all that its parts give, or does the same without."""
    torch.manual_seed(0)
    return attach(Decoder(Backbone([Layer(yes) for _ in range(3)], 8, (lambda x: x.mul_(1.5)) if yes else lambda x: x * 1.5), 8))


CHANGES = {
    "patch": lambda m, role: patch(m, role, OTHER),
    "patch at two": lambda m, role: patch(m, role, OTHER, [1, -1]),
    "patch the last": lambda m, role: patch(m, role, SHORTER),
    "zero": lambda m, role: ablate(m, role),
    "mean": lambda m, role: ablate(m, role, "mean"),
    "mean at one": lambda m, role: ablate(m, role, "mean", 2),
    "scale": lambda m, role: scale(m, role, 1.0),
    "scale at one": lambda m, role: scale(m, role, -2.0, -1),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("role", ["layers.1.mlp", "layers.*.mlp", "layers.1", "layers.0.norm_mlp", "embed"])
def test_a_model_that_writes_into_what_it_is_handed_spoils_nothing(change, role):
    """Against the same model without writing in place, pass after pass."""
    m, twin = in_place(True), in_place(False)
    with CHANGES[change](m, role), CHANGES[change](twin, role):
        expected = by_parts(twin)
        assert all(torch.equal(by_parts(m), expected) for _ in range(3))
    assert torch.equal(by_parts(m), by_parts(twin))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", ["falcon", "gpt2"])
def test_every_pass_under_an_intervention_gives_the_same_bits(family, change):
    """Falcon adds attention into what its feed-forward gives."""
    m = tiny_of(family)
    for role in ("layers.1.mlp", "layers.1.attn", "layers.1.attn.head.2", "layers.*.attn.head.*", "layers.*.mlp"):
        with CHANGES[change](m, role):
            first = by_parts(m)
            assert all(torch.equal(by_parts(m), first) for _ in range(2)), role
        with CHANGES[change](m, role):
            assert torch.equal(by_parts(m), first), role


def test_the_mean_of_a_feed_forward_can_be_written_into():
    m = tiny_of("falcon")
    hook = module_of(m, "layers.1.mlp").register_forward_hook(lambda _, i, x: x.mean(1, keepdim=True).repeat(1, x.shape[1], 1))
    expected = by_parts(m)
    hook.remove()
    record = effect(m, IDS, [Intervention("ablate", "layers.1.mlp", "mean")])
    with ablate(m, "layers.1.mlp", "mean"):
        assert torch.equal(by_parts(m), expected)
    assert record.roles == {"layers.1.mlp": 7}


def test_interventions_last_through_a_generation():
    m = tiny_of("falcon")
    with patch(m, "layers.1.mlp", OTHER), ablate(m, "layers.2.attn", "mean"):
        runs = [
            m.model.generate(torch.tensor([IDS]), max_new_tokens=5, do_sample=False, use_cache=cached)
            for cached in (True, True, False, False)
        ]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[2], runs[3])


# --- experts ---


class EagerMixture(nn.Module):
    """Experts as a list, each called with the rows of the tokens that chose it: as transformers' Mixtral was written."""

    def __init__(self, width: int, n_experts: int, n_chosen: int):
        super().__init__()
        self.gate, self.n_chosen = nn.Linear(width, n_experts, bias=False), n_chosen
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(width, 12), nn.SiLU(), nn.Linear(12, width)) for _ in range(n_experts))

    def forward(self, x_BTD):
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        weights_NK, chosen_NK = self.gate(x_ND).softmax(-1).topk(self.n_chosen)
        out_ND = torch.zeros_like(x_ND)
        for e, expert in enumerate(self.experts):
            place, token = torch.where(torch.eq(chosen_NK.T, e))
            if len(token):
                out_ND.index_add_(0, token, expert(x_ND[token]) * weights_NK[token, place, None])
        return out_ND.view_as(x_BTD)


class EagerLayer(nn.Module):
    def __init__(self, n_chosen: int):
        super().__init__()
        self.norm_mlp, self.mlp = nn.LayerNorm(16), EagerMixture(16, 4, n_chosen)

    def forward(self, x):
        x = x + 0.3 * x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]  # what stands for attention
        return x + self.mlp(self.norm_mlp(x))


def eager(n_chosen=2):
    torch.manual_seed(1)
    return attach(Decoder(Backbone([EagerLayer(n_chosen) for _ in range(3)], 16), 16))


NOT_SENT = r"no (position is sent|token of (this prompt|the prompt that is put in) goes) to layers\.\d\.mlp\.experts\.\d"


def sent(m, layer, expert, ids):
    """The positions that a mixture sends to an expert, in the order of its rows, by its gate's choice; and what the expert gives all."""
    mixture, found = m.modules[f"layers.{layer}.mlp"], []
    hook = mixture.register_forward_pre_hook(lambda _, args: found.append(args[0][0].clone()))
    by_parts(m, ids)
    hook.remove()
    with torch.no_grad():
        if hasattr(mixture, "n_chosen"):  # who chose it first, who chose it second …
            positions = torch.where(torch.eq(mixture.gate(found[0]).topk(mixture.n_chosen).indices.T, expert))[1].tolist()
        else:
            positions = (mixture.gate(found[0][None]).experts_BTK[0] == expert).any(-1).nonzero().flatten().tolist()
        return positions, mixture.experts[expert](found[0])


@pytest.mark.parametrize("make", [eager, lambda: eager(1), lambda: load("gpt-moe")], ids=["eager", "eager, one chosen", "native"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_an_expert_is_patched_by_token_where_both_prompts_send_it(make, layer):
    m = make()
    ids, other = [id % m.vocab_size for id in [*IDS, 11, 12, 13]], [id % m.vocab_size for id in [*OTHER, 14, 12, 13]]
    acted_somewhere = 0
    for expert in range(4):
        role = f"layers.{layer}.mlp.experts.{expert}"
        (own, _), (theirs, given_TD) = sent(m, layer, expert, ids), sent(m, layer, expert, other)
        both = [p for p in own if p in theirs]

        def by_hand(_, args, x, own=own, both=both, given_TD=given_TD):
            result = x.clone()
            for p in both:
                result[own.index(p)] = given_TD[p]
            return result

        if not both:
            with pytest.raises(ValueError, match=NOT_SENT):
                effect(m, ids, [Intervention("patch", role, "other")], {"other": other})
            continue
        hook = m.modules[role].register_forward_hook(by_hand)
        expected = by_parts(m, ids)
        hook.remove()
        with patch(m, role, other) as acted:
            torch.testing.assert_close(by_parts(m, ids), expected, rtol=1e-5, atol=1e-5)  # the experts ran other numbers of rows at once
        record = effect(m, ids, [Intervention("patch", role, "other")], {"other": other})
        differ = [p for p in both if not torch.equal(given_TD[p], sent(m, layer, expert, ids)[1][p])]
        assert record.roles == dict(acted) and record.same_afterwards and len(differ) <= record.roles[role] <= len(both)
        acted_somewhere += record.roles[role]
    assert acted_somewhere


@pytest.mark.parametrize("make", [eager, lambda: load("gpt-moe")], ids=["eager", "native"])
def test_prompts_of_different_lengths_meet_at_their_last_token_in_an_expert_too(make):
    m = make()
    ids, shorter = [id % m.vocab_size for id in IDS], [id % m.vocab_size for id in (7, 70, 33)]
    met = 0
    for layer, expert in product((0, 2), range(4)):
        role = f"layers.{layer}.mlp.experts.{expert}"
        (own, _), (theirs, given_TD) = sent(m, layer, expert, ids), sent(m, layer, expert, shorter)
        if 6 not in own or 2 not in theirs:
            with pytest.raises(ValueError, match=NOT_SENT):
                effect(m, ids, [Intervention("patch", role, "other")], {"other": shorter})
            continue
        met += 1
        there = torch.arange(len(own))[:, None] == own.index(6)
        hook = m.modules[role].register_forward_hook(lambda _, i, x, row=given_TD[2], there=there: torch.where(there, row, x))
        expected = by_parts(m, ids)
        hook.remove()
        with patch(m, role, shorter) as acted:
            torch.testing.assert_close(by_parts(m, ids), expected, rtol=1e-5, atol=1e-5)
        assert acted == {role: 1}
    assert met


def test_one_row_of_another_prompt_is_not_put_in_for_all():
    m = load("gpt-moe")
    ids, nothing = m.encode("Анна Красновск"), m.encode("")
    assert len(nothing) == 1
    with pytest.raises(ValueError, match=NOT_SENT):
        effect(m, ids, [Intervention("patch", "layers.3.mlp.experts.1", "")], {"": nothing})
    with pytest.raises(ValueError, match=r"position 3: the prompts are 1 and 15 tokens long"):
        effect(m, ids, [Intervention("patch", "layers.3.mlp.experts.2", "", 3)], {"": nothing})


@pytest.mark.parametrize("make", [eager, lambda: load("gpt-moe")], ids=["eager", "native"])
def test_an_expert_is_changed_at_a_position_that_is_sent_to_it(make):
    m = make()
    ids = [id % m.vocab_size for id in IDS]
    for expert in range(4):
        role = f"layers.1.mlp.experts.{expert}"
        own, _ = sent(m, 1, expert, ids)
        for position in (0, 3, 6):
            what = Intervention("scale", role, 3.0, position)
            if position not in own:
                with pytest.raises(ValueError, match=rf"position {position} is not sent to|no token of this prompt goes"):
                    effect(m, ids, [what])
                continue
            rows = []
            with scale(m, role, 3.0, position - 7) as acted, watching(m, role, rows):
                by_parts(m, ids)
            by_row = [i for i, (a, b) in enumerate(zip(rows[0], sent_rows(m, role, ids), strict=True)) if not torch.equal(a, b)]
            assert by_row == [own.index(position)] and acted == {role: 1} == effect(m, ids, [what]).roles
        if own:
            rows, plain = [], sent_rows(m, role, ids)
            with ablate(m, role, "mean") as acted, watching(m, role, rows):
                by_parts(m, ids)
            torch.testing.assert_close(rows[0], plain.mean(0, keepdim=True).expand_as(plain))
            assert acted == {role: len(own) if len(own) > 1 else acted[role]}
    with pytest.raises(ValueError, match="has no position 7"):
        effect(m, ids, [Intervention("scale", "layers.1.mlp.experts.*", 3.0, 7)])


def sent_rows(m, role, ids):
    rows = []
    with watching(m, role, rows):
        by_parts(m, ids)
    return rows[0]


def test_parts_of_an_expert_have_its_rows():
    m = load("gpt-moe")
    ids, other = m.encode("Анна Красновск"), m.encode("Иван Красновск")
    whole = effect(m, ids, [Intervention("patch", "layers.3.mlp.experts.1", "other")], {"other": other})
    last = effect(m, ids, [Intervention("patch", "layers.3.mlp.experts.1.down", "other")], {"other": other})
    assert last.kl == whole.kl > 0 and [*last.roles.values()] == [*whole.roles.values()] == [5]


def test_rows_of_a_batch_are_sent_to_an_expert_together():
    m = eager()
    two, other = torch.tensor([IDS, OTHER]), torch.tensor([OTHER, IDS])
    assert sent(m, 0, 1, IDS)[0] != sorted(sent(m, 0, 1, IDS)[0])  # not even in order
    for role in ("layers.0.mlp.experts.1", "layers.1.mlp.experts.2", "layers.1.mlp.router", "layers.1.mlp"):
        with torch.no_grad(), patch(m, role, other):
            both = m.model(two)
        for row in range(2):
            with torch.no_grad(), patch(m, role, other[row]):
                torch.testing.assert_close(both[row : row + 1], m.model(two[row : row + 1]), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="give one prompt, or as many"), patch(m, "layers.1.mlp.experts.2", torch.tensor([IDS] * 3)):
        m.model(two)


def test_equal_tokens_are_told_apart_by_their_order():
    """Without attention between them two equal tokens have equal rows: interchangeable, and each is counted."""
    m = eager()
    ids = [9, 9, 9, 9]
    for expert in range(4):
        own, _ = sent(m, 0, expert, ids)
        if own:
            assert own == [0, 1, 2, 3]
            with scale(m, f"layers.0.mlp.experts.{expert}", 2.0) as acted:
                by_parts(m, ids)
            assert acted == {f"layers.0.mlp.experts.{expert}": 4}


@pytest.mark.parametrize(
    ("family", "role"),
    [
        ("mixtral", "layers.1.mlp.experts.each"),
        ("llama4_text", "layers.1.mlp.experts"),
        ("zaya", "layers.1.mlp.experts.each"),
        ("jetmoe", "layers.1.mlp.gate_up"),
    ],
)
def test_rows_that_cannot_be_told_by_position_are_not_patched(family, role):
    """Sorted by expert, scaled before, several to a token."""
    with pytest.raises(ValueError, match=rf"{role} .*(cannot be told|several rows for a token).*: patch the component around it"):
        effect(tiny_of(family), IDS, [Intervention("patch", role, "other")], {"other": OTHER})


def test_experts_that_are_one_module_are_patched_by_position():
    assert effect(tiny_of("dbrx"), IDS, [Intervention("scale", "layers.1.mlp.router", 2.0, 3)]).roles == {"layers.1.mlp.router": 1}
    for family in ("mixtral", "qwen2_moe", "deepseek_v3"):
        m = tiny_of(family)
        for role in ("layers.1.mlp.experts", "layers.1.mlp.shared.down" if family != "mixtral" else "layers.1.mlp"):
            rows, given = [], []
            with watching(m, role, given):
                logits(m, OTHER)
            with patch(m, role, OTHER) as acted, watching(m, role, rows):
                logits(m)
            assert torch.equal(rows[0], given[0]) and acted == {role: 7}


def test_batches_are_read_row_by_row():
    m = tiny_of("gpt2")
    rows = torch.tensor([IDS, OTHER])
    found = activations(m, sites(m, "layers.1.attn.head.2"), rows)["layers.1.attn.head.2"]
    one = activations(m, sites(m, "layers.1.attn.head.2"), OTHER)["layers.1.attn.head.2"]
    assert found.shape == (2, 7, 8)
    torch.testing.assert_close(found[1:], one, rtol=1e-5, atol=1e-6)
    assert isinstance(module_of(m, "layers.1.attn.o"), Conv1D)


def test_the_places_of_a_prompt_in_the_gender_bench():
    m = load("names-qwen2")
    todo = batches(m, 20)
    assert sum(len(batch.female_BT) for batch in todo) == 20
    for batch in todo:
        texts = [[m.texts.token(int(id)).text for id in row] for row in batch.female_BT]
        found = [i for place in PLACES[:-1] for i in batch.positions(place)]
        assert found == list(range(1, batch.female_BT.shape[1])) and batch.positions("everywhere") is None
        (space,) = batch.positions("space")
        assert all(row[space] == " " for row in texts)
        assert m.texts.token(batch.masculine).text in ("</s>", "и") and m.texts.token(batch.feminine).text == "а"


def test_the_gender_of_a_surname_is_read_by_the_last_attention_from_the_end_of_the_given_name():
    result = measure(load("names-qwen2"), pairs=6, samples=2)
    moved = result["moved"]
    assert result["lead"]["female"] > 0 > result["lead"]["male"]
    assert moved["layers.2"]["its last letter"] > 0.95 and moved["layers.2"]["last position"] < 0.05
    assert moved["layers.3.attn"]["last position"] > 0.95 and moved["layers.3.mlp"]["its last letter"] == 0
    assert result["ablated"][0]["roles"] == [] and result["ablated"][0]["female"] == 1
    without = result["ablated"][-2]
    assert (without["roles"], without["fill"]) == (["layers.3.attn"], "zero") and without["female"] < 0.5


def test_the_gender_bench_wants_letters():
    with pytest.raises(ValueError, match=r"token ids|letter by letter"):
        batches(tiny_of("qwen2"), 2)


WOVEN = dict(fused=lambda: Fused(), halves=lambda: Fused("halves"), by_hand=ByHand, woven=lambda: ByHand(woven=True), one_by_one=Heads)


@pytest.mark.parametrize("kind", WOVEN)
def test_a_head_of_an_attention_whose_model_does_not_say_how_many_there_are_is_found_by_its_columns(kind):
    m = flat(made(Flat, attention=WOVEN[kind]))
    out = m.modules["layers.1.attn.o"]
    K = D // H
    columns = list(range(2, D, H)) if kind == "woven" else list(range(2 * K, 3 * K))

    def without(_, given):
        x = given[0].clone()
        x[..., columns] = 0
        return (x,)

    hook = out.register_forward_pre_hook(without)
    expected = m.model(torch.tensor([WRITTEN]))
    hook.remove()
    with ablate(m, "layers.0.attn"), ablate(m, "layers.1.attn.head.2"):  # under another one, which leaves nothing of attention
        pass
    with ablate(m, "layers.1.attn.head.2"):
        assert torch.equal(m.model(torch.tensor([WRITTEN])), expected)
    with ablate(m, "layers.1.attn"), ablate(m, "layers.1.attn.head.*"):
        pass
    heads = [term for term in contributions(m, WRITTEN, heads=True).terms if ".attn.head." in term.role]
    whole = [term for term in contributions(m, WRITTEN).terms if term.role.endswith(".attn")]
    bias = [term.logit for term in contributions(m, WRITTEN, heads=True).terms if term.role.endswith(".bias") and ".attn." in term.role]
    assert len(heads) == 2 * H
    assert sum(t.logit for t in heads) + sum(bias) == pytest.approx(sum(t.logit for t in whole), rel=1e-5, abs=1e-6)


def test_heads_that_cannot_be_told_apart_are_refused_in_one_line():
    class Mixed(ByHand):
        """Its heads are mixed before the projection."""

        def __init__(self):
            super().__init__()
            self.o_proj, self.mix = self._modules.pop("out_proj"), nn.Parameter(torch.randn(D, D))

        def out_proj(self, y):
            return self.o_proj(y @ self.mix)

    for model in (made(Encoder), made(Flat, attention=Mixed)):
        with pytest.raises(ValueError, match=r"take attn whole|has no role") as error:
            sites(flat(model), "layers.0.attn.head.1")
        assert "\n" not in str(error.value)


@torch.no_grad()
def test_every_call_of_a_shared_block_is_changed_and_patched_and_that_is_said():
    shared, apart = flat(made(Flat, n=1, times=3)), made(Flat, n=3)
    for name in ("wte", "wpe", "ln_f", "head"):
        getattr(apart, name).load_state_dict(getattr(shared.model, name).state_dict())
    for block in apart.blocks:
        block.load_state_dict(shared.model.blocks[0].state_dict())
    apart = flat(apart)
    for what, sources in (
        ("ablate", {}),
        ("patch", {"other": [8, 3, 1, 30, 4, 7, 39, 2]}),
    ):
        value = "other" if sources else "zero"
        one = effect(shared, WRITTEN, [Intervention(what, "layers.0.mlp", value)], sources)
        three = effect(apart, WRITTEN, [Intervention(what, "layers.*.mlp", value)], sources)
        assert one.kl == pytest.approx(three.kl, rel=1e-6) and one.calls == {"layers.0.mlp": 3} and three.calls == {}
        screen = Console(width=160, file=io.StringIO())
        screen.print(effect_view(one, translator("en")))
        assert "changed in every call: layers.0.mlp × 3" in screen.file.getvalue()
    with pytest.raises(ValueError, match="several times for one token"):
        activations(shared, sites(shared, "layers.0.mlp"), WRITTEN)


def test_the_head_of_a_flat_model_is_changed_as_any_part():
    m = flat(made(Flat))
    assert effect(m, WRITTEN, [Intervention("scale", "head", 2.0)]).kl > 0
    assert effect(m, WRITTEN, [Intervention("ablate", "layers.0.attn", "zero")]).roles == {"layers.0.attn": len(WRITTEN)}
