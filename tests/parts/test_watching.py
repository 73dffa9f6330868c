"""The one hook engine: what it shows, what it replaces, and that nothing is left of it; against torch's own hooks and generate()."""

import io

import pytest
import torch
from rich.console import Console
from torch import nn

from inspector.bench.tiny import tiny_model
from inspector.inside.interventions import effect
from inspector.inside.tracing import trace
from inspector.loading.loaded import attach
from inspector.models import VARIANTS
from inspector.parts.errors import InvariantError
from inspector.parts.watching import (
    Clock,
    Watch,
    alike,
    apart,
    by_hand,
    close,
    copied,
    find_past_call,
    first_tensor,
    submodules,
    substituted,
    unnamed,
    unwatched,
)
from inspector.records.effects import Intervention
from inspector.render.effects import effect_view
from inspector.render.text import translator

IDS = torch.tensor([[5, 9, 20, 33]])


def hook_count(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def test_calls_are_shown_in_order_with_what_they_were_given_and_gave():
    model, begun, ended = tiny_model("llama"), [], []
    parts = {"layer": model.model.layers[1], "down": model.model.layers[1].mlp.down_proj, "norm": model.model.norm}
    torchs = {}

    def keep(role):
        def hook(module, given, output):
            torchs[role] = given, output

        return hook

    handles = [module.register_forward_hook(keep(role)) for role, module in parts.items()]
    with Watch(parts, begun.append, ended.append) as watch:
        logits(model)
    for handle in handles:
        handle.remove()
    assert [(call.role, call.index, call.depth) for call in begun] == [("layer", 0, 0), ("down", 1, 1), ("norm", 2, 0)]
    assert [call.role for call in ended] == ["down", "layer", "norm"] and watch.calls == dict(layer=1, down=1, norm=1)
    for call in begun:
        assert call.module is parts[call.role] and first_tensor(call.output) is first_tensor(torchs[call.role][1])
        assert call.args == torchs[call.role][0]
    assert hook_count(model) == 0


def test_a_part_that_runs_twice_has_two_calls():
    model, begun = tiny_model("llama"), []
    model.model.layers[2] = model.model.layers[0]
    with Watch({"layers.0": model.model.layers[0]}, begun.append) as watch:
        logits(model)
    assert [(call.name, call.number) for call in begun] == [("layers.0", 1), ("layers.0#2", 2)] and watch.calls["layers.0"] == 2


def test_inputs_and_outputs_can_be_replaced_and_watches_nest():
    model = tiny_model("llama")
    head = model.lm_head
    own = logits(model)

    def halved(call):
        return substituted(call.args, {id(call.args[0]): call.args[0] / 2}), call.options

    def doubled(call):
        return call.output * 2

    with Watch({"head": head}, before=halved):
        half = logits(model)
        with Watch({"head": head}, after=doubled):
            assert torch.equal(logits(model), own)  # a power of two has no rounding, and the map no bias
    assert not torch.equal(half, own)
    weight = head.weight.clone()
    with torch.no_grad():
        head.weight.copy_(weight / 2)
        assert torch.equal(logits(model), half)


@pytest.mark.parametrize("where", ["before", "after", "model"])
def test_hooks_go_when_something_raises_and_the_calls_around_it_are_not_shown(where):
    model, ended = tiny_model("llama"), []
    parts = {"layer": model.model.layers[1], "down": model.model.layers[1].mlp.down_proj}

    def broken(call):
        if getattr(call, "role", "down") == "down":
            raise RuntimeError("planted")

    functions = dict(before=broken) if where == "before" else dict(after=broken if where == "after" else ended.append)
    if where == "model":
        parts["down"].forward = broken
    with pytest.raises(RuntimeError, match="planted"), Watch(parts, **functions) as watch:
        logits(model)
    assert hook_count(model) == 0 and ended == [] and watch.running == []


def test_several_roles_of_one_module_each_have_calls_of_their_own():
    model, ended = tiny_model("llama"), []
    layer = model.model.layers[0]
    with Watch({"a": layer, "b": layer}, after=lambda call: ended.append((call.role, call.index))) as watch:
        logits(model)
    assert ended == [("a", 0), ("b", 1)] and watch.calls == dict(a=1, b=1)


def test_what_ctrl_c_breaks_off_is_forgotten():
    model = tiny_model("llama")

    def interrupt(call):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Watch({"layers.0": model.model.layers[0]}, before=interrupt) as watch:
        logits(model)
    assert watch.running == [] and hook_count(model) == 0


def test_no_hook_stays_where_a_part_takes_none():
    model = tiny_model("llama")
    with pytest.raises(AttributeError), Watch({"layers.0": model.model.layers[0], "head": None}):
        pass
    assert hook_count(model) == 0


def test_without_a_clock_nothing_is_kept_of_a_call():
    model = tiny_model("llama")
    with Watch({"layers.0": model.model.layers[0]}) as watch:
        logits(model)
    assert watch.spans == {} and watch.pauses == [] and watch.running == []


def test_it_serves_a_generation_with_caches_and_finds_every_pass():
    model, lengths = tiny_model("qwen2"), []

    def see(call):
        lengths.append(first_tensor(call.given).shape[1])

    settings = dict(max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None)
    plain = model.generate(IDS, use_cache=True, **settings)
    with Watch({"layers.0": model.model.layers[0]}, before=see):
        assert torch.equal(model.generate(IDS, use_cache=True, **settings), plain)
        assert lengths == [4, 1, 1]
        lengths.clear()
        model.generate(IDS, use_cache=False, **settings)
        assert lengths == [4, 5, 6]


def test_of_nested_outputs_the_first_numbers_of_an_embedding_the_ids_of_a_gate_the_weights_by_expert():
    ids, mask, x = torch.tensor([[1, 2]]), torch.ones(2, dtype=torch.bool), torch.ones(1, 2)
    assert first_tensor((None, mask, [ids, {"a": x}])) is x and first_tensor((ids, mask)) is ids and first_tensor((None, "a")) is None
    gate = VARIANTS["gpt-moe"](vocab_size=20, d_model=16, n_layers=1, n_heads=2).eval().backbone.layers[0].mlp.gate
    routing = gate(torch.randn(1, 3, 16))
    gates = first_tensor(routing)
    assert gates.shape == (1, 3, 4) and torch.allclose(gates.sum(-1), torch.ones(1, 3)) and ((gates > 0).sum(-1) == 2).all()


def test_substituting_keeps_the_form_of_what_was_given():
    old, new = torch.zeros(2), torch.ones(2)
    values = (None, [old, 3], {"a": old, "b": {"c": old}})
    assert substituted(values, {id(old): new}) == (None, [new, 3], {"a": new, "b": {"c": new}})
    output = tiny_model("llama")(IDS, use_cache=False)
    other = substituted(output, {id(output.logits): new})
    assert type(other) is type(output) and other.logits is new and output.logits is not new


class Body(nn.Module):
    """torch's own encoder layers, which have a fast path that hooks shut."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(40, 32)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True) for _ in range(2))

    def forward(self, ids):
        x, mask = self.embedding(ids), nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return x


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.out = Body(), nn.Linear(32, 40)

    def forward(self, ids):
        return self.out(self.body(ids))


def test_a_model_that_hooks_drive_off_its_fast_path_is_told_apart_from_one_that_does_not_repeat_itself():
    model = Encoder().eval()
    with torch.no_grad():
        plain = model(IDS)
        with Watch(submodules(model)):
            watched = model(IDS)
        assert not torch.equal(plain, watched)  # else this test is about nothing
        assert 0 < apart("a", plain, watched, lambda: model(IDS)) < 1e-5
        assert apart("a", plain, plain, lambda: pytest.fail("run again for nothing")) == 0
        with pytest.raises(InvariantError, match="does not repeat itself"):
            apart("a", plain, watched, lambda: model(IDS) + torch.rand(40))
        with pytest.raises(InvariantError, match="something else when it is watched"):
            apart("a", plain, watched * 1.01, lambda: model(IDS))


def test_views_of_such_a_model_say_how_far_the_watched_pass_is_from_the_model():
    m = attach(Encoder().eval())
    record = trace(m, IDS, ("layers.*",))
    with torch.no_grad():
        own_1TV = m.model(IDS)
        with Watch(m.components):
            assert record.apart == float((m.model(IDS).double() - own_1TV.double()).abs().max()) > 0
    own_V = own_1TV[0, -1]
    shift = effect(m, IDS, [Intervention("scale", "layers.1", 1.5)])
    assert not shift.same_hooked and shift.same_afterwards and shift.kl > 1e-4 and 0 < shift.apart < 1e-5
    screen = Console(width=200, file=io.StringIO())
    screen.print(effect_view(shift, translator("en")))
    assert "Proved" not in screen.file.getvalue() and f"differ by {shift.apart:.1e}" in screen.file.getvalue()
    assert {s.token.id: s.logit_before for s in shift.shifts}[int(own_V.argmax())] == float(own_V.max())  # the model is the plain pass
    assert trace(attach(tiny_model("llama")), IDS).apart == 0


def test_times_leave_out_what_the_watching_does_and_hold_what_is_inside():
    m = attach(tiny_model("llama"))
    seconds = by_hand(m.split, IDS, m.components, clock=Clock(m.device)).seconds
    assert seconds[""] > seconds["layers.0"] > seconds["layers.0.mlp"] > seconds["layers.0.mlp.down"] > 0
    assert seconds[""] > sum(seconds[f"layers.{i}"] for i in range(4)) + seconds["head"]
    assert by_hand(m.split, IDS, m.components).seconds == {}


def test_an_accelerator_is_timed_by_events_that_are_read_together_at_the_end(monkeypatch):
    """No accelerator is here: events that take the next of growing numbers, and a wait that is counted."""
    made, waits = [], []

    class Event:
        def __init__(self, device, enable_timing):
            assert device.type == "cuda" and enable_timing

        def record(self):
            assert not waits
            made.append(self)
            self.moment = float(len(made))

        def elapsed_time(self, other):
            assert waits
            return 1000 * (other.moment - self.moment)

    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: waits.append(1))
    m = attach(tiny_model("llama"))
    parts = {role: m.components[role] for role in ("layers.0", "layers.0.attn", "layers.1", "head")}
    seconds = by_hand(m.split, IDS, parts, after=lambda call: None, clock=Clock(torch.device("cuda"))).seconds
    assert len(waits) == 2 and len(made) == 2 + 3 * len(parts)  # begin, end, and the end of what is done there; the pass itself
    # moments: pass 1, layers.0 2, attn 3, its end 4 and 5, layers.0's end 6 and 7, layers.1 8 to 9 and 10, head 11 to 12 and 13, pass 14
    assert seconds == {"": 13 - 4, "layers.0": 4 - 1, "layers.0.attn": 1, "layers.1": 1, "head": 1}


class Reusing(nn.Module):
    """A head that writes into the same memory in every pass, as a graph that an accelerator replays does."""

    def __init__(self, own: nn.Module):
        super().__init__()
        self.own, self.memory = own, {}

    def forward(self, hidden):
        logits = self.own(hidden)
        return self.memory.setdefault(tuple(logits.shape), torch.empty_like(logits)).copy_(logits)


def test_a_pass_is_kept_where_the_next_one_writes_into_the_same_memory():
    model = tiny_model("llama")
    model.lm_head = Reusing(model.lm_head)
    m = attach(model)
    first = by_hand(m.split, IDS).logits_BTV
    other = by_hand(m.split, IDS + 1).logits_BTV
    assert not torch.equal(first, other) and torch.equal(first, by_hand(m.split, IDS).logits_BTV)
    before = effect(m, IDS[0], [Intervention("scale", "layers.0.mlp", 3.0)])
    assert before.kl > 0 and before.shifts[0].probability_before != before.shifts[0].probability_after


def test_copies_share_no_memory_with_what_is_copied():
    x = torch.ones(3)
    values = (x, [x, {"a": x.view(3, 1), "b": 1}], None)
    made = copied(values)
    x.zero_()
    assert made[0].sum() == made[1][0].sum() == made[1][1]["a"].sum() == 3 and made[1][1]["b"] == 1 and made[2] is None


INF, NAN = torch.inf, torch.nan


@pytest.mark.parametrize(
    ("a", "b", "equal", "near"),
    [
        ([1.0, -INF], [1.0, -INF], True, True),
        ([1.0, INF], [1.0 + 1e-6, INF], False, True),
        ([1.0, -INF], [1.1, -INF], False, False),  # an infinity is no size that makes all others rounding
        ([1.0, -INF], [1.0, INF], False, False),
        ([1.0, -INF], [1.0, torch.finfo(torch.float32).min], False, False),
        ([1.0, INF], [1.0, 2.0], False, False),
        ([-INF, -INF], [-INF, -INF], True, True),
        ([1.0, NAN], [1.0, NAN], True, False),
        ([1.0, NAN], [1.0, 0.0], False, False),
        ([0.0, -0.0], [0.0, 0.0], True, True),
        ([], [], True, True),
        ([1.0], [1.0, 1.0], False, False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_infinities_are_equal_to_themselves_alone_and_close_to_nothing_else(a, b, equal, near, dtype):
    a, b = torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype)
    assert (alike(a, b), close(a, b), alike(b, a), close(b, a)) == (equal, near, equal, near)


def test_a_masked_model_that_computes_otherwise_when_watched_is_told_by_how_much():
    plain = torch.tensor([1.0, -INF])
    assert apart("m", plain, plain + 1e-6, plain.clone) == pytest.approx(1e-6, rel=0.1)
    with pytest.raises(InvariantError, match=r"differ by up to 0\.5"):
        apart("m", plain, plain + 0.5, plain.clone)


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm = nn.Linear(32, 32), nn.LayerNorm(32)

    def forward(self, x):
        return self.norm.forward(self.up(x))


class PastCall(nn.Module):
    """Runs a part as ``part.forward(x)`` now and by calling it then."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.inner, self.seq = nn.Embedding(40, 32), Inner(), nn.Sequential(nn.Linear(32, 32), nn.GELU())
        self.out = nn.Linear(32, 40)

    def forward(self, ids):
        x = self.embedding(ids)
        x = x + self.inner.forward(x)
        x = x + self.seq.forward(x)
        return self.out(x + self.inner(x))


@torch.no_grad()
def test_what_runs_past_its_call_is_seen_once_each_time_it_runs_and_the_model_stays_as_it_is():
    model = PastCall().eval()
    own = model(IDS)
    with Watch(submodules(model)) as before:
        model(IDS)
    assert before.calls["inner"] == 1 and before.calls["seq"] == 0 and before.calls["inner.norm"] == 0  # else this test is about nothing
    find_past_call(model, lambda: model(IDS))
    begun, ended = [], []
    with Watch(submodules(model), begun.append, ended.append) as watch:
        assert torch.equal(model(IDS), own)
    assert (watch.calls["inner"], watch.calls["inner.norm"], watch.calls["seq"], watch.calls["seq.0"], watch.calls["out"]) == (
        2,
        2,
        1,
        1,
        1,
    )
    assert [(c.name, c.depth) for c in begun][1:4] == [("inner", 0), ("inner.up", 1), ("inner.norm", 1)] and len(ended) == len(begun)
    assert all("forward" not in module.__dict__ for module in model.modules()) and hook_count(model) == 0 and not watch.running


@torch.no_grad()
def test_what_runs_past_its_call_can_be_changed_and_watches_nest_there_as_elsewhere():
    model = PastCall().eval()
    find_past_call(model, lambda: model(IDS))
    first = lambda call: ((call.args[0] * 0 + 1,), {})  # noqa: E731
    seen = []
    with Watch({"norm": model.inner.norm}, before=first), Watch({"norm": model.inner.norm}, before=lambda c: seen.append(c.args[0])):
        changed = model(IDS)
    assert len(seen) == 2 and all(bool((x == 1).all()) for x in seen)
    x = model.embedding(IDS)
    ones = model.inner.norm(torch.ones_like(x))
    x = x + ones
    x = x + model.seq(x)
    assert torch.equal(changed, model.out(x + ones))


def test_a_run_past_the_call_that_raises_leaves_nothing_behind():
    model = PastCall().eval()
    find_past_call(model, lambda: model(IDS))

    def fail(call):
        raise RuntimeError("on purpose")

    for before, after in ((fail, None), (None, fail)):
        with pytest.raises(RuntimeError, match="on purpose"), Watch({"seq": model.seq}, before, after) as watch:
            model(IDS)
        assert not watch.running and hook_count(model) == 0 and "forward" not in model.seq.__dict__
    with Watch({"seq": model.seq}) as watch:
        model(IDS)
    assert watch.calls == dict(seq=1)


def test_models_of_transformers_are_run_no_more_to_find_what_runs_past_its_call():
    find_past_call(tiny_model("llama"), lambda: pytest.fail("run for nothing"))
    model = tiny_model("llama")
    assert unnamed(model, {"all": model}, lambda: pytest.fail("run for nothing")) == ()


class Stopped(BaseException):
    pass


class Around(nn.Module):
    """A body and a head side by side, in one module of the model."""

    def __init__(self):
        super().__init__()
        self.net = PastCall()

    def forward(self, ids):
        return self.net(ids)


def stopped(model, ids):
    def stop(*_):
        raise Stopped

    hook = model.net.out.register_forward_pre_hook(stop)
    try:
        model(ids)
    except Stopped:
        pass
    finally:
        hook.remove()


def test_calls_that_are_broken_off_are_forgotten_and_what_comes_next_stands_where_it_is():
    model, begun, ended = Around().eval(), [], []
    with Watch(submodules(model), begun.append, ended.append, Clock(torch.device("cpu"))) as watch:
        with Watch.broken_off():
            stopped(model, IDS)
        assert not watch.running
        watch.call("head", model.net.out, torch.zeros(1, 4, 32))
        model(IDS)
        assert not watch.running
    head, again = next(call for call in begun if call.role == "head"), next(call for call in begun if call.name == "net#2")
    assert head.depth == 0 and again.depth == 0 and again in ended
    assert not any(call.name == "net" for call in ended) and "net" not in watch.seconds() and "net#2" in watch.seconds()
    assert all(seconds >= 0 for seconds in watch.seconds().values()) and hook_count(model) == 0


def test_passes_aside_are_seen_by_no_watch_and_others_by_later_ones_alone():
    model, begun, ended, later = Around().eval(), [], [], []
    with Watch(submodules(model), begun.append, ended.append) as watch:
        with Watch.aside():
            model(IDS)
        with unwatched(), Watch({"net": model.net}, later.append):
            model(IDS)
        assert not begun and not ended and [call.name for call in later] == ["net"]
        model(IDS)
    assert watch.calls["net"] == 1 and len(begun) == len(ended) and not watch.running and not Watch.active


class Unnamed(nn.Module):
    """Parts that run as modules, a weight of the model's own, and one that is used without its module running."""

    def __init__(self):
        super().__init__()
        self.embedding, self.seen, self.used, self.idle = nn.Embedding(40, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.scale, self.lstm = nn.Parameter(torch.ones(8)), nn.LSTM(8, 8, batch_first=True)

    def forward(self, ids):
        x = nn.functional.linear(self.seen(self.embedding(ids)), self.used.weight.T)
        return self.lstm(x * self.scale)[0] @ self.embedding.weight.T


def test_modules_whose_weights_are_used_while_no_part_runs_are_named():
    model = Unnamed()
    parts = dict(embed=model.embedding, seen=model.seen, used=model.used)
    assert unnamed(model, parts, lambda: model(IDS)) == ("", "used", "lstm")
    assert unnamed(model, parts | dict(mixer=model.lstm), lambda: model(IDS)) == ("", "used")
