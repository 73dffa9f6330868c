"""Interventions against the same change made in a copy's weights, and against torch; the model is left as it was."""

import copy
import json

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from inspector.bench.gender import PLACES, batches, measure
from inspector.bench.tiny import tiny_model
from inspector.inside.interventions import ablate, activations, effect, head_count, patch, scale, sites
from inspector.loading.loaded import attach
from inspector.loading.loading import load
from inspector.loop.decoding import next_logits
from inspector.records.as_json import from_json, to_json
from inspector.records.effects import Effect, Intervention

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
        assert hook_count(m.model) == 4  # before and after each of the two
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
    with pytest.raises(ValueError, match="no positions"):
        effect(tiny_of("mixtral"), IDS, [Intervention("ablate", "layers.0.mlp.router", "mean")])


def test_globs_stand_for_one_part_of_a_role():
    m = tiny_of("llama")
    assert [site.role for site in sites(m, "layers.*.mlp")] == [f"layers.{i}.mlp" for i in range(4)]
    assert [site.role for site in sites(m, "layers.2.attn.head.*")] == [f"layers.2.attn.head.{h}" for h in range(4)]
    assert [site.role for site in sites(m, "layers.*")] == [f"layers.{i}" for i in range(4)]
    assert len(sites(m, "layers.*.attn.head.1")) == 4 and len(sites(m, "*.1.norm_*")) == 2


@pytest.mark.parametrize("role", ["nothing", "layers.4.attn", "layers.0.attn.head.4", "layers", "[a-z]*", "layers.0.attn.head.-1", ""])
def test_a_role_that_does_not_exist_names_some_that_do(role):
    with pytest.raises(ValueError, match=r"no role '.*': it has layers\.0 to layers\.3, with .*attn.*attn\.head\.0 to attn\.head\.3"):
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


@pytest.mark.parametrize("position", [0, -1, 3])
def test_an_activation_without_positions_has_none_of_them(position):
    """The router of Mixtral gives [T, E]: the first of its positions must not be taken for the first expert."""
    with pytest.raises(ValueError, match=rf"layers.1.mlp.router has no position {position}: its activation is of shape \(7, 4\)"):
        effect(tiny_of("mixtral"), IDS, [Intervention("ablate", "layers.1.mlp.router", "zero", position)])


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
