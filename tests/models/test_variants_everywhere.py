"""Every verb with every native variant: saved to a folder, and used as a user does."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from inspector.cli import main
from inspector.models import VARIANTS
from inspector.models.adapter import arguments_of
from inspector.records.as_json import from_json
from inspector.records.comparison import Divergence, Verdict
from inspector.records.inside import Trace

PROMPT = "абвга"
VIEWS = {"experts": "n_experts", "latents": "kv_lora_rank", "further": "mtp_depth"}  # of inspector trace, and whose they are
PARTS = {  # the views that it adds by itself
    variant: tuple(view for view, argument in VIEWS.items() if argument in arguments_of(variant)) for variant in VARIANTS
}
TITLES = {"experts": "Experts: where each token went", "latents": "Latents: what is kept", "further": "Further ahead"}


@pytest.fixture
def inspector(monkeypatch, capfd):
    """Runs the command in this process; gives its standard output."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")

    def call(*arguments, code=0) -> str:
        monkeypatch.setattr(sys, "argv", ["inspector", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        output, error = capfd.readouterr()
        assert exit.value.code == code, error
        return output if code != 2 else error

    return call


@pytest.fixture(params=VARIANTS)
def saved(request, tiny, tmp_path):
    """A variant's name, and the folder of a tiny checkpoint of it with its tokenizer."""
    m = tiny(request.param)
    m.model.save_pretrained(tmp_path / "model")
    m.tokenizer.save_pretrained(tmp_path / "model")
    return request.param, tmp_path / "model"


def test_tree_run_and_verify(inspector, saved):
    variant, folder = saved
    assert "act on each token" in (text := inspector("tree", folder)) and "no known role" not in text
    assert ("◀ MTP" in text) == ("MTP predicts" in text) == variant.endswith("mtp")
    assert "0 of" in inspector("tree", folder, "--diff", folder)
    assert len(json.loads(inspector("run", folder, PROMPT, "--greedy", "--max-new-tokens", 3, "--json", "-"))["steps"]) == 3
    for options in (["--greedy"], ["--temperature", 0.8, "--seed", 3], ["--dtype", "float64"], ["--dtype", "bfloat16"]):
        written = inspector("verify", folder, PROMPT, "--max-new-tokens", 5, *options, "--json", "-")
        assert from_json(Verdict, json.loads(written)).level == "bitwise"


def test_trace_shows_by_itself_what_the_variant_has(inspector, saved, tmp_path):
    variant, folder = saved
    for dtype in ("float32", "float64", "bfloat16"):
        record = from_json(Trace, json.loads(inspector("trace", folder, PROMPT, "--dtype", dtype, "--json", "-")))
        assert tuple(name for name in TITLES if getattr(record, name) is not None) == PARTS[variant]
    text = inspector("trace", folder, PROMPT)
    assert tuple(name for name, title in TITLES.items() if title in text) == PARTS[variant]
    chosen = inspector("trace", folder, PROMPT, "--role", "**", "--tensors", tmp_path / "tensors")
    assert not any(title in chosen for title in TITLES.values())
    roles = json.loads((tmp_path / "tensors" / "index.json").read_text())
    assert ("layers.1.mlp.router" in roles) == ("moe" in variant) and not any(role.startswith("mtp") for role in roles)
    assert "the last row equals" in inspector("trace", folder, PROMPT, "--lens")
    assert "layer 1, head 2" in inspector("trace", folder, PROMPT, "--attention", "--head", "1.2")


def test_what_is_not_so_is_explained_and_the_rest_is_shown(inspector, saved, monkeypatch):
    variant, folder = saved
    for name in ("experts", "latents", "further"):
        monkeypatch.setattr(f"inspector.inside.{name}.near", lambda a, b: False)
        text = inspector("trace", folder, PROMPT, code=int(name in PARTS[variant]))
        assert ("Not shown" in text) == (name in PARTS[variant]) and "final_norm" in text
        assert tuple(other for other, title in TITLES.items() if title in text) == tuple(o for o in PARTS[variant] if o != name)
        record = json.loads(inspector("trace", folder, PROMPT, "--json", "-", code=int(name in PARTS[variant])))
        assert record[name] is None
        monkeypatch.undo()
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setenv("LC_ALL", "C.UTF-8")


def test_contributions_and_interventions(inspector, saved):
    variant, folder = saved
    assert "layers.2.attn" in inspector("contributions", folder, PROMPT)
    assert "layers.2.attn.head.3" in inspector("contributions", folder, PROMPT, "--heads")
    for role in ("layers.1.attn.head.2", "layers.1.mlp", *(["layers.*.mlp.experts.*"] if "moe" in variant else [])):
        effect = json.loads(inspector("intervene", folder, PROMPT, "--ablate", role, "--json", "-"))
        assert effect["same_hooked"] and effect["same_afterwards"] and effect["kl"] > 0
        all_experts = effect
    patched = json.loads(inspector("intervene", folder, PROMPT, "--patch", "layers.1.attn", "--from", "деклм", "--json", "-"))
    assert patched["kl"] > 0
    if "moe" in variant:
        record = json.loads(inspector("trace", folder, PROMPT, "--json", "-"))
        roles = {
            f"layers.{i}.mlp.experts.{e}": load for i, one in enumerate(record["experts"]["mixtures"]) for e, load in enumerate(one["load"])
        }
        assert {role: count > 0 for role, count in all_experts["roles"].items()} == {role: load > 0 for role, load in roles.items()}
        for idle in (role for role, load in roles.items() if load == 0):
            assert f"no token of this prompt goes to {idle}" in inspector("intervene", folder, PROMPT, "--ablate", idle, code=2)
        assert "a choice of experts" in inspector("intervene", folder, PROMPT, "--ablate", "layers.1.mlp.router", code=2)
    if variant.endswith("mtp"):
        assert "uses mtp.0.attn without running it" in inspector("intervene", folder, PROMPT, "--ablate", "mtp.0.attn", code=2)


def changed_copy(folder, copy, name, change):
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = load_file(copy / "model.safetensors")
    weights[name] = change(weights[name])
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_diverge_and_mutate(inspector, saved, tmp_path):
    variant, folder = saved
    assert "No component of B introduces more than rounding" in inspector("diverge", folder, folder, PROMPT, "--max-new-tokens", 4)
    for dtype in ("float64", "bfloat16"):  # a choice of experts may flip, in A as in B
        inspector("diverge", folder, folder, PROMPT, "--dtype-b", dtype, "--max-new-tokens", 4)
    changes = {"self_attn.o_proj.weight": "layers.1.attn.o"}
    if "moe" in variant:
        changes |= {f"mlp.experts.{e}.down_proj.weight": f"layers.1.mlp.experts.{e}.down" for e in (0, 1)}
        changes["mlp.gate.weight"] = "layers.1.mlp.router"  # experts are sent other tokens then
    for i, (name, place) in enumerate(changes.items()):
        other = changed_copy(folder, tmp_path / f"b{i}", f"backbone.layers.1.{name}", lambda w: w.flip(0).contiguous())
        result = json.loads(inspector("diverge", folder, other, PROMPT, "--max-new-tokens", 4, "--json", "-", code=1))
        found = from_json(Divergence, result)
        assert found.place.name == place and (found.only_a, found.only_b, found.reshaped) == ((), (), ())
        assert "gate" not in name or found.notes == ("rerouted",)
    rows = json.loads(inspector("mutate", folder, "rope-layout", "gate-up", "query-bias", "--json", "-"))
    assert [row["expected"] is not None for row in rows] == [True, True, False]


def test_weights_on_disk_and_the_benchmarks(inspector, saved, tmp_path):
    variant, folder = saved
    spread = ("--max-memory", "cpu=30KB")
    written = json.loads(inspector("verify", folder, PROMPT, "--greedy", "--max-new-tokens", 3, *spread, "--json", "-"))
    assert from_json(Verdict, written).level == "bitwise"
    record = from_json(Trace, json.loads(inspector("trace", folder, PROMPT, *spread, "--json", "-")))
    assert tuple(name for name in TITLES if getattr(record, name) is not None) == PARTS[variant]
    assert json.loads(inspector("bench", "loop", folder, "--rounds", 1, "--json", "-"))["rows"][0]["context"] == 32
    assert json.loads(inspector("bench", "trace", folder, "--rounds", 1, "--json", "-"))["rows"]


def test_the_lesson_takes_it_as_its_native_model(saved, monkeypatch, capfd, tmp_path):
    import inference

    _, folder = saved
    monkeypatch.setenv("COLUMNS", "120")
    arguments = dict(model="names-qwen2", expert=str(folder), expert_prompt="аб", greedy=True, max_new_tokens=2, language="en")
    inference.main(**arguments, json_path=tmp_path / "out.json")
    assert [v["level"] for v in json.loads((tmp_path / "out.json").read_text())["verdicts"]] == ["bitwise"] * 2
    assert "bitwise" in capfd.readouterr().out


def test_no_weight_was_changed_by_looking(tiny):
    import inspector

    m = tiny("gpt-moe-mla-mtp")
    before = {name: weight.clone() for name, weight in m.model.state_dict().items()}
    for look in (inspector.experts, inspector.latents, inspector.further, inspector.trace):
        look(m, [3, 7, 11])
    assert all(torch.equal(weight, before[name]) for name, weight in m.model.state_dict().items())
