"""Tracing: components against transformers' hidden states and torch; NaN and infinity are found where they were planted."""

import io
import json
import math
import os
import time
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from inspector.bench.tiny import tiny_model
from inspector.files import MANIFEST, is_empty, locked, settle
from inspector.inside import tracing
from inspector.inside.tracing import statistics, trace
from inspector.loading.loaded import attach
from inspector.loading.loading import load
from inspector.loop.decoding import next_logits
from inspector.models import ExpertModel
from inspector.parts.errors import InvariantError
from inspector.parts.roles import BLOCKS, chosen, fit, roles
from inspector.parts.splitting import SplitError, split
from inspector.parts.watching import Clock, by_hand
from inspector.records.as_json import from_json, to_json
from inspector.records.inside import Trace
from inspector.render.inside import trace_view
from inspector.render.text import translator

from .written import IDS as WRITTEN
from .written import Flat, PastCall, TiedHead, flat, made

IDS = [5, 9, 20, 33, 41, 7, 60]
SHORT = [3, 7, 11, 5]  # for the models over a few letters
FAMILIES = ("qwen2", "gpt2", "llama", "gemma2", "bert", "mixtral", "bloom")


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def plant(module: nn.Module, value: float, *where: int) -> None:
    with torch.no_grad():
        module.weight[where] = value


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_blocks_are_the_hidden_states_that_transformers_gives(family, tmp_path):
    m = attach(tiny_model(family))
    result = trace(m, IDS, ("layers.*", "head"), tmp_path / "out")
    with torch.no_grad():
        reference = m.model(torch.tensor([IDS]), output_hidden_states=True).hidden_states
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert set(index) == {"head"} | {f"layers.{i}" for i in range(4)}
    names = {file.name for file in (tmp_path / "out").iterdir()} - {MANIFEST}
    assert names == {"index.json"} | {entry["file"] for entry in index.values()}
    for i in range(3):  # the last of transformers' hidden states has been normed
        entry = index[f"layers.{i}"]
        saved = load_file(tmp_path / "out" / entry["file"])[f"layers.{i}"]
        assert torch.equal(saved, reference[i + 1])
        assert entry["shape"] == list(saved.shape) and f"torch.{entry['dtype']}" == str(saved.dtype)
        numbers = next(row.output for row in result.components if row.role == f"layers.{i}")
        wide = reference[i + 1].double()
        expected = (float(wide.mean()), float(wide.square().mean().sqrt()), float(wide.min()), float(wide.max()))
        assert (numbers.mean, numbers.rms, numbers.min, numbers.max) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    saved = load_file(tmp_path / "out/head.safetensors")["head"]
    assert torch.equal(saved[0, -1].float(), next_logits(m.split, torch.tensor([IDS])))


@pytest.mark.parametrize("name", ["names-qwen2", "names-expert"])
def test_the_components_of_an_embedded_model_come_in_running_order(name):
    m = load(name)
    result = trace(m, m.encode("Крас"))
    layers = [role for i in range(4) for role in (f"layers.{i}", f"layers.{i}.attn", f"layers.{i}.mlp")]
    assert [row.role for row in result.components] == ["embed", *layers, "final_norm", "head"]
    assert result.not_finite is None and result.prompt[1].text == "К"
    by_role = {row.role: row for row in result.components}
    assert by_role["layers.1"].name.endswith("layers.1") and by_role["head"].output.shape == (1, 1, m.vocab_size)
    assert by_role["layers.0"].seconds >= by_role["layers.0.attn"].seconds + by_role["layers.0.mlp"].seconds
    assert result.seconds >= sum(by_role[f"layers.{i}"].seconds for i in range(4)) > 0
    assert from_json(Trace, json.loads(json.dumps(to_json(result)))) == result


def test_every_role_of_many_families_is_traced():
    for family in ("gemma3", "jamba", "deepseek_v3", "rwkv"):
        m = attach(tiny_model(family))
        seen = {row.role for row in trace(m, IDS, ("**",)).components}
        assert seen <= {*m.components, *(role for role in seen if "#" in role)} and {"layers.0", "final_norm", "head"} <= seen


def test_a_component_that_runs_twice_has_two_rows():
    m = attach(tiny_model("llama"))
    layers = m.model.model.layers
    layers[2] = layers[1]
    rows = [row.role for row in trace(m, IDS, ("layers.*",)).components]
    assert rows == ["layers.0", "layers.1", "layers.1#2", "layers.3"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_statistics_are_torchs(dtype):
    x = torch.randn(3, 50, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    numbers, wide = statistics(x), x.double()
    expected = (float(wide.mean()), float(wide.square().mean().sqrt()), float(wide.min()), float(wide.max()))
    assert (numbers.mean, numbers.rms, numbers.min, numbers.max) == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert numbers.shape == (3, 50, 7) and f"torch.{numbers.dtype}" == str(dtype) and numbers.finite


def test_statistics_of_numbers_that_are_not_finite_count_them_and_describe_the_rest():
    numbers = statistics(torch.tensor([[1.0, math.nan, 3.0], [math.inf, -math.inf, -2.0]]))
    assert (numbers.nan, numbers.inf, numbers.min, numbers.max) == (1, 2, -2.0, 3.0) and not numbers.finite
    assert numbers.mean == pytest.approx(2 / 3) and numbers.rms == pytest.approx(math.sqrt(14 / 3))
    nothing = statistics(torch.full((2,), math.nan))
    assert nothing.nan == 2 and all(map(math.isnan, (nothing.mean, nothing.rms, nothing.min, nothing.max)))


@pytest.mark.parametrize("size", [1e30, 3e38, 1e-30])
def test_statistics_survive_squares_and_sums_outside_of_float32(size):
    numbers = statistics(torch.full((1, 100), size))
    assert [numbers.rms, numbers.mean] == pytest.approx([size, size], rel=1e-5, abs=0) and numbers.finite


@pytest.mark.parametrize(
    ("glob", "role", "fits"),
    [
        ("layers.*", "layers.3", True),
        ("layers.*", "layers.3.attn", False),
        ("layers.*.attn", "layers.12.attn", True),
        ("layers.?", "layers.12", False),
        ("layers.**", "layers.3.attn.q", True),
        ("**", "embed", True),
        ("**.q", "layers.0.attn.q", True),
        ("layers.1", "layers.11", False),
        ("layers.[01]", "layers.1", False),
    ],
)
def test_globs(glob, role, fits):
    assert fit(glob, role) is fits


def test_a_role_that_fits_nothing_is_refused_with_some_that_would(tiny):
    m = tiny("qwen2")
    with pytest.raises(
        ValueError, match=r"fits nothing in tiny; it has embed, final_norm, head; layers.0 to layers.1, with attn, mlp, .* attn.q, "
    ):
        trace(m, SHORT, ("layers.*", "layers.9.*"))
    assert "head" in chosen(m.components, BLOCKS, m.origin.name)  # a default that this model lacks is no mistake: layers.*.mixer
    m.model.model.layers[0].mlp.forward = lambda x: x
    with pytest.raises(ValueError, match="calls none of these modules"):
        trace(m, SHORT, ("layers.0.mlp.act",))


def test_an_empty_or_too_long_prompt_is_refused(tiny):
    m = tiny("expert", context=8)
    with pytest.raises(ValueError, match="no tokens"):
        trace(m, [])
    with pytest.raises(ValueError, match="at most 8"):
        trace(m, [1] * 9)


def test_a_folder_with_something_in_it_is_left_alone(tiny, tmp_path):
    (tmp_path / "here").mkdir()
    trace(tiny("qwen2"), SHORT, ("embed",), tmp_path / "here")
    before = sorted((tmp_path / "here").iterdir())
    for folder, why in ((tmp_path / "here", "not empty"), (before[0], "a file")):
        with pytest.raises(ValueError, match=why):
            trace(tiny("qwen2"), SHORT, ("embed",), folder)
    assert sorted((tmp_path / "here").iterdir()) == before


def test_files_are_written_while_the_model_runs_and_leave_nothing_behind_when_it_breaks(tiny, tmp_path, monkeypatch):
    m = tiny("qwen2")
    written, finished = [], []
    m.model.model.layers[1].register_forward_hook(lambda *_: finished.append(list(written)))
    monkeypatch.setattr(tracing, "save_file", lambda tensors, file: written.extend(tensors))
    trace(m, SHORT, ("layers.*",), tmp_path / "out")
    assert finished[-1] == ["layers.0"]  # there before the next layer ended

    def full(tensors, file):
        file.write_bytes(b"half")
        if len(list(file.parent.iterdir())) == 2:
            raise OSError("No space left on device")

    monkeypatch.setattr(tracing, "save_file", full)
    before = hooks(m.model)
    with pytest.raises(OSError, match="No space"):
        trace(m, SHORT, tensors=tmp_path / "broken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"] and hooks(m.model) == before


@pytest.mark.parametrize("way", ["full", "interrupted after", "killed"])
def test_tensors_are_all_there_or_none_wherever_their_writing_fails(tiny, tmp_path, break_at, way):
    m, k = tiny("qwen2"), 0
    while break_at(k, way, lambda k=k: trace(m, SHORT, ("layers.?",), tmp_path / str(k))):
        settle(tmp_path / str(k))
        if is_empty(tmp_path / str(k)):
            trace(m, SHORT, ("layers.?",), tmp_path / str(k))
        assert sorted(os.listdir(tmp_path / str(k))) == [MANIFEST, "index.json", "layers.0.safetensors", "layers.1.safetensors"]
        assert all(load_file(tmp_path / str(k) / f"layers.{i}.safetensors")[f"layers.{i}"].shape == (1, 4, 16) for i in (0, 1))
        k += 1
    assert k > 12


def test_a_full_disk_and_another_process_are_said_in_one_line(tiny, tmp_path, said_of_a_full_disk):
    m = tiny("qwen2")
    said = said_of_a_full_disk(100, lambda: trace(m, SHORT, tensors=tmp_path / "out"))
    assert said == f"{tmp_path / 'out'} cannot be written: File too large: make room, or give another place"
    assert not (tmp_path / "out").exists()
    with locked(tmp_path / "out"), pytest.raises(ValueError, match="out is being written to by another process"):
        trace(m, SHORT, tensors=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_hooks_are_gone_afterwards_also_after_an_exception(tiny):
    m = tiny("expert")
    trace(m, SHORT)
    assert hooks(m.model) == 0

    def broken(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        by_hand(m.split, torch.tensor([SHORT]), m.components, after=broken)
    assert hooks(m.model) == 0


def test_what_watching_takes_is_counted_in_no_time(tiny):
    def slow(call):
        time.sleep(0.05)

    m = tiny("qwen2")
    parts = chosen(m.components, BLOCKS, m.origin.name)
    seconds = by_hand(m.split, torch.tensor([SHORT]), parts, after=slow, clock=Clock(m.device)).seconds
    whole = seconds.pop("")
    assert len(seconds) == 9 and whole < 9 * 0.05 and max(seconds.values()) <= whole


def test_a_pass_that_does_not_repeat_is_not_shown(tiny):
    m = tiny("qwen2")
    layer = m.model.model.layers[1].mlp
    own = layer.forward
    layer.forward = lambda x: own(x) + torch.rand_like(x)
    with pytest.raises(InvariantError, match="did not give the same bits"):
        trace(m, SHORT)


def traced_with_nan(model, globs=BLOCKS):
    with pytest.raises(SplitError, match="inspector trace"):
        split(model)
    m = attach(model, finite=False)
    assert m.split.probe == 0
    return trace(m, IDS, globs).not_finite


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "llama", "gemma2"])
def test_a_nan_in_the_weights_is_found_in_the_smallest_component(family):
    model = tiny_model(family)
    found = roles(model, split(model).backbone_name)
    name = next(name for name, role in found.items() if role == "layers.2.mlp.down")
    plant(model.get_submodule(name), math.nan, 3, 4)
    found = traced_with_nan(model)
    assert (found.role, found.name, found.position, found.weights) == ("layers.2.mlp.down", name, 0, ("weight",))
    assert found.input.finite and found.output.nan == len(IDS) and found.token.id == IDS[0]


def test_a_nan_in_an_embedding_is_found_at_its_token():
    model = ExpertModel(vocab_size=96, d_model=16, n_layers=2, n_heads=2, d_ff=32).eval()
    plant(model.backbone.embed_tokens, math.nan, 33, 1)
    found = trace(attach(model, finite=False), IDS).not_finite
    assert (found.role, found.position, found.token.id, found.input) == ("embed", 3, 33, None)


def test_an_infinity_between_two_components_is_said_to_come_from_there():
    model = ExpertModel(vocab_size=96, d_model=16, n_layers=2, n_heads=2, d_ff=32).eval()
    plant(model.backbone.embed_tokens, 3e38, 20, 1)  # finite, and times √16 not
    found = trace(attach(model, finite=False), IDS).not_finite
    assert (found.role, found.position, found.weights) == ("layers.0.attn.q", 2, ()) and found.input.inf == 1


def test_an_overflow_of_finite_weights_is_found_with_its_input():
    model = tiny_model("llama")
    plant(model.model.layers[1].mlp.down_proj, 3e38)
    found = traced_with_nan(model)
    assert (found.role, found.position, found.weights) == ("layers.1.mlp.down", 0, ()) and found.input.finite and not found.output.finite


def test_a_nan_of_the_head_is_the_heads():
    model = tiny_model("llama")
    plant(model.lm_head, math.nan, 5, 0)
    found = traced_with_nan(model)
    assert (found.role, found.position, found.output.nan) == ("head", len(IDS) - 1, 1)


@pytest.mark.parametrize("globs", ["layers.*", [], [3]])
def test_roles_are_a_list_of_globs(globs, tiny):
    with pytest.raises(ValueError, match=r"give a list of at least one role or glob"):
        trace(tiny("qwen2"), SHORT, globs)


def test_every_part_of_a_flat_model_is_a_row_and_so_is_a_head_that_is_a_function():
    tied = flat(made(TiedHead), head=lambda model, hidden_BTD: hidden_BTD @ model.wte.weight.T)
    names = ["embed", *(f"layers.{i}{part}" for i in range(2) for part in ("", ".attn", ".mlp")), "final_norm", "head"]
    for m in (flat(made(Flat)), tied):
        record = trace(m, WRITTEN)
        assert [row.role for row in record.components] == names and record.apart == 0 and record.not_shown == ()
    assert record.components[-1].output.shape == (1, len(WRITTEN), 40) and tied.split.describe() == record.components[-1].name
    tied.model.wte.weight.data[3, 0] = torch.inf  # no token of the prompt: the head alone reads it
    assert trace(replace(tied), WRITTEN).not_finite.role == "head"


def test_parts_that_run_past_their_call_are_rows_and_shared_ones_a_row_for_each_call():
    rows = [row.role for row in trace(flat(made(PastCall)), WRITTEN).components]
    assert rows == ["embed", "layers.0.attn", "layers.0.mlp", "layers.1.attn", "layers.1.mlp", "final_norm", "head"]
    rows = [row.role for row in trace(flat(made(Flat, n=1, times=3)), WRITTEN, ["layers.*.attn"]).components]
    assert rows == ["layers.0.attn", "layers.0.attn#2", "layers.0.attn#3"]


def test_modules_that_no_row_shows_are_counted_and_said_in_both_languages():
    class Odd(Flat):
        def __init__(self):
            super().__init__()
            self.zebra, self.idle = torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)

        def forward(self, ids):
            x = self.blocks[0](self.wte(ids) + self.wpe(torch.arange(ids.shape[1])))
            return self.head(self.ln_f(torch.nn.functional.linear(x, self.zebra.weight)))

    record = trace(flat(made(Odd)), WRITTEN)
    assert record.not_shown == ("zebra",) and from_json(Trace, json.loads(json.dumps(to_json(record)))) == record
    for language, said in (("en", "not shown: 1 module whose weights act"), ("ru", "не показаны модули (1)")):
        screen = Console(width=200, file=io.StringIO())
        screen.print(trace_view(record, 200, translator(language)))
        assert said in screen.file.getvalue() and "zebra" in screen.file.getvalue()
