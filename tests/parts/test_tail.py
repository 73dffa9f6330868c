"""Tests of models without a module for their backbone: their own forward, stopped where the head begins, and taken up there."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inspector
from inspector.compare.divergence import diverge
from inspector.inside.contributions import contributions
from inspector.loading.loaded import attach
from inspector.parts.errors import NoSumError
from inspector.parts.heads import own_logits
from inspector.parts.limits import context_length
from inspector.parts.outputs import gives
from inspector.parts.roles import roles
from inspector.parts.splitting import SplitError, split
from inspector.parts.traits import traits
from inspector.parts.watching import Watch, by_hand, submodules

from . import flat_models as models

V, D = models.V, models.D
BOOK = dict(vocab_size=V, context_length=64, emb_dim=D, n_layers=2, drop_rate=0.1)


def build(make) -> nn.Module:
    """A random model, weights large enough that logits are not all near 0."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


def ids_of(*shape, size=V):
    return torch.randint(0, size, shape, generator=torch.Generator().manual_seed(sum(shape)))


# name → (model, what the head does, what reads the model's own logits in what it returns for ids [B, T])
WHOLE = {
    "module dict, tied": (models.ModuleDictGPT, "Linear(32→50, tied)", lambda m, ids: m(ids, ids)[0]),
    "list of heads": (models.ListOfHeads, "Linear(32→50, bias)", lambda m, ids: m(ids)[0]),
    "a book's": (lambda: models.BookGPT(BOOK), "Linear(32→50)", lambda m, ids: m(ids)),
    "a Llama in one file": (models.OneFileLlama, "Linear(32→50, tied)", lambda m, ids: m(ids, ids)),
    "a tutorial's, batch first": (
        lambda: models.TutorialTransformer(True),
        "Linear(32→50, bias) → log_softmax",
        lambda m, ids: m(ids),
    ),
    "a tutorial's, time first": (
        models.TutorialTransformer,
        "Linear(32→50, bias) → log_softmax → [T, B] → [B, T]",
        lambda m, ids: m(ids.T).transpose(0, 1),
    ),
    "a tutorial's, time first, logits": (
        lambda: models.TutorialTransformer(log=False),
        "Linear(32→50, bias) → [T, B] → [B, T]",
        lambda m, ids: m(ids.T).transpose(0, 1),
    ),
    "a library's": (models.TransformerWrapper, "Linear(32→50)", lambda m, ids: m(ids)),
    "LSTM": (models.Recurrent, "Linear(32→50, bias)", lambda m, ids: m(ids)[0]),
    "GRU": (lambda: models.Recurrent(nn.GRU, False), "Linear(32→50, bias)", lambda m, ids: m(ids)),
    "recurrence, rows": (
        models.ReshapedRecurrent,
        "Linear(32→50, bias) → log_softmax",
        lambda m, ids: m(ids).view(*ids.shape, -1),
    ),
    "state space": (models.StateSpace, "@ embedding.weight[50×32]", lambda m, ids: m(ids)),
    "decoder of itself": (models.DecoderOfItself, "Linear(32→50, bias)", lambda m, ids: m(ids)),
    "experts": (models.ExpertsGPT, "Linear(32→50)", lambda m, ids: m(ids)[0]),
    "rows": (models.AlwaysFlattened, "Linear(32→50)", lambda m, ids: m(ids).view(*ids.shape, -1)),
    "heads, first": (lambda: models.Heads("first"), "Linear(32→50, bias)", lambda m, ids: m(ids)[0]),
    "heads, last": (lambda: models.Heads("last"), "Linear(32→50, bias)", lambda m, ids: m(ids)),
    "one map twice": (models.Twice, "Linear(32→32)", lambda m, ids: m(ids)),
    "convolution": (lambda: models.Convolved(True), "Conv1d", lambda m, ids: m(ids)),
    "convolution [B, V, T]": (lambda: models.Convolved(False), "Conv1d", lambda m, ids: m(ids).transpose(1, 2)),
    "time first inside": (models.TimeFirst, "Linear(32→50)", lambda m, ids: m(ids)),
    "time first at the end": (lambda: models.TimeFirst(False), "Linear(32→50)", lambda m, ids: m(ids).transpose(0, 1)),
    "own numbers": (models.Deep, "Linear(32→50) → ÷ 2 → + bias[50]", lambda m, ids: m(ids)),
    "catches": (models.Catching, "Linear(32→50)", lambda m, ids: m(ids)),
    "checkpoint": (lambda: models.Checkpointed(False), "Linear(32→50)", lambda m, ids: m(ids)),
    "checkpoint, reentrant": (lambda: models.Checkpointed(True), "Linear(32→50)", lambda m, ids: m(ids)),
    "nested": (lambda: models.Nested(models.Flat()), "Linear(32→50)", lambda m, ids: m(ids)),
    "nested twice": (lambda: models.Nested(models.Nested(models.Tied("@"))), "@ wte.weight[50×32]", lambda m, ids: m(ids)),
    "parameters alone": (models.Weights, "@ W[32×50]", lambda m, ids: m(ids)),
    "buffers alone": (lambda: models.Weights(True), "@ W[32×50]", lambda m, ids: m(ids)),
    "one-hot": (lambda: models.Weights(one_hot=True), "@ W[32×50]", lambda m, ids: m(ids)),
    "as wide as its vocabulary": (lambda: models.Flat(D, D), "Linear(32→32)", lambda m, ids: m(ids)),
    "as many tokens as the probe has": (lambda: models.Flat(7), "Linear(32→7)", lambda m, ids: m(ids)),
    "as many tokens as the other probe": (lambda: models.Flat(8), "Linear(32→8)", lambda m, ids: m(ids)),
    "two tokens": (lambda: models.Flat(2), "Linear(32→2)", lambda m, ids: m(ids)),
    "one token": (lambda: models.Flat(1), "Linear(32→1)", lambda m, ids: m(ids)),
    "three tokens": (lambda: models.Flat(3), "Linear(32→3)", lambda m, ids: m(ids)),
    "as wide as the probe": (lambda: models.Flat(V, 8), "Linear(8→50)", lambda m, ids: m(ids)),
}


@pytest.mark.parametrize("name", WHOLE)
@torch.no_grad()
def test_a_flat_model_splits_and_its_parts_are_the_model_bit_for_bit(name):
    make, words, own = WHOLE[name]
    model = build(make)
    parts = split(model)
    assert (parts.backbone_name, parts.describe(), parts.probe) == ("", words, 40)
    size = own(model, torch.zeros(1, 2, dtype=torch.long)).shape[-1]
    for shape in ((1, 1), (1, 5), (3, 17), (2, 2)):
        ids = ids_of(*shape, size=size)
        assert torch.equal(parts.head(parts.backbone(ids)), own(model, ids)), shape
        assert torch.equal(own_logits(model, ids), own(model, ids))
    assert parts.backbone(ids_of(2, 6, size=size)).shape[:2] == (2, 6)
    assert not any(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("@", "@ wte.weight[50×32]"),
        ("matmul", "@ wte.weight[50×32]"),
        ("linear", "@ wte.weight[50×32]"),
        ("einsum", "@ wte.weight[50×32]"),
        ("scaled", "@ wte.weight[50×32] → × 0.37"),
        ("rows", "@ wte.weight[50×32]"),
        ("capped", "@ wte.weight[50×32] → softcap 5"),
    ],
)
@torch.no_grad()
def test_a_head_without_a_module_is_the_models_own_code(way, words):
    model = build(lambda: models.Tied(way))
    parts = split(model)
    assert (parts.backbone_name, parts.head_names, parts.tied) == ("", (), True)
    assert parts.describe() == words
    for shape in ((1, 1), (3, 17)):
        ids = ids_of(*shape)
        assert torch.equal(parts.head(parts.backbone(ids)), model(ids))
        # the final norm is the backbone's, and what stands before the linear map
        assert torch.equal(parts.backbone(ids), model.hidden(ids) * (D**-0.5 if way == "scaled" else 1))


@pytest.mark.parametrize("make", [lambda: models.Heads("mean"), models.HalfHeads, models.LowRank])
@torch.no_grad()
def test_a_head_of_several_modules_is_the_models_own_code(make):
    model = build(make)
    parts, ids, other = split(model), ids_of(2, 9), torch.randn(2, 9, D)
    assert len(parts.head_names) > 1 and "wte" not in parts.head_names
    assert torch.equal(parts.backbone(ids), model.hidden(ids))
    assert torch.equal(parts.head(parts.backbone(ids)), model(ids))
    given = []
    with Watch({name: model.get_submodule(name) for name in parts.head_names}, lambda call: given.append(call.given[0])):
        logits = parts.head(other)
    assert all(one is other for one in given if one.shape[-1] == D)  # what a watch sees of the head is no dummy's
    model.hidden = lambda _: other
    assert torch.equal(logits, model(ids))


@torch.no_grad()
def test_a_table_of_logits_has_nothing_left_to_do():
    model = build(models.Bigram)
    parts, ids = split(model), ids_of(2, 9)
    assert torch.equal(parts.head(parts.backbone(ids)), model.table(ids)) and parts.describe() == "nothing"
    assert not parts.mixes and parts.causal


@pytest.mark.parametrize("name", ["a tutorial's, batch first", "a library's", "checkpoint", "state space"])
@torch.no_grad()
def test_a_watch_sees_every_call_once_and_leaves_nothing(name):
    model = build(WHOLE[name][0])
    parts, ids, calls, own = split(model), ids_of(1, 6), [], []
    with Watch(submodules(model), own.append):
        model(ids)
    with Watch(submodules(model), calls.append) as watch:
        logits = parts.head(parts.backbone(ids))
        assert not watch.running
    assert [call.name for call in calls] == [call.name for call in own]
    assert [call.depth for call in calls] == [call.depth for call in own]
    # torch's own encoder computes otherwise while it is watched
    assert torch.allclose(by_hand(parts, ids).logits_BTV, logits[:, -1:] if parts.last_alone else logits, atol=1e-6)


@torch.no_grad()
def test_a_watch_may_change_what_the_head_is_given_and_count_its_functions():
    """What a watch does between the modules is no function of the model's."""
    model = build(lambda: models.Tied("@"))
    parts, ids = split(model), ids_of(1, 6)
    with Watch({"ln_f": model.ln_f}, after=lambda call: (call.output * 2).clone()):
        assert torch.equal(parts.backbone(ids), 2 * model.hidden(ids) / 2)
        doubled = parts.head(parts.backbone(ids))
    assert torch.equal(doubled, model(ids) * 2)


def test_gradients_flow_through_both_parts():
    model = build(lambda: models.Tied("capped"))
    parts, ids = split(model), ids_of(1, 6)
    parts.head(parts.backbone(ids)).sum().backward()
    assert model.blocks[0].mlp[0].weight.grad.abs().sum() > 0


@torch.no_grad()
def test_a_pass_that_breaks_off_leaves_nothing():
    model = build(lambda: models.Tied("@"))
    parts = split(model)
    with pytest.raises(IndexError):
        parts.backbone(torch.tensor([[V]]))
    with pytest.raises(RuntimeError):
        parts.head(torch.zeros(1, 3, 5))
    assert not any(module._forward_hooks or "forward" in vars(module) for module in model.modules())
    assert not Watch.blind and not Watch.busy and not Watch.active and not torch.overrides._get_current_function_mode_stack()


@torch.no_grad()
def test_a_step_costs_one_pass_where_the_head_is_a_module():
    model = build(models.Flat)
    parts, calls = split(model), []
    with Watch(submodules(model), calls.append):
        for module in model.modules():
            module.register_forward_pre_hook(lambda module, given: calls.append(module))
        calls.clear()
        parts.head(parts.backbone(ids_of(1, 6)))
    assert calls.count(model.blocks[0]) == 1 and parts.head is model.head


# Outputs


@pytest.mark.parametrize("form", models.FORMS)
@torch.no_grad()
def test_logits_are_found_in_whichever_form(form):
    model = build(lambda: models.Formed(form))
    parts = split(model)
    for shape in ((1, 1), (1, 5), (5, 1), (3, 17)):
        ids = ids_of(*shape)
        own = model.head(model.hidden(ids))
        assert torch.equal(own_logits(model, ids), own) and torch.equal(parts.head(parts.backbone(ids)), own)
    assert parts.head is model.head and not parts.last_alone


@pytest.mark.parametrize("way", models.LAST)
@pytest.mark.parametrize("head", [True, False], ids=["module", "function"])
@pytest.mark.parametrize("targets", [None, "targets", "y", "labels"])
@pytest.mark.parametrize("loss", ["ok", "raises"])
@torch.no_grad()
def test_a_model_that_gives_the_last_position_alone_is_split_for_that(way, head, targets, loss):
    model = build(lambda: models.LastAlone(way, head, targets, loss))
    parts, ids = split(model), ids_of(1, 9)
    assert parts.last_alone
    assert torch.equal(parts.backbone(ids), model.hidden(ids))
    own = model(ids)
    own = (own[0] if isinstance(own, tuple) else own).reshape(1, 1, V)
    assert torch.equal(parts.head(parts.backbone(ids)[:, -1:]), own)
    assert parts.head(parts.backbone(ids)).shape == (1, 9, V)
    whole = own_logits(model, ids)
    assert whole.shape == (1, 9 if targets and loss == "ok" else 1, V)


def test_a_model_that_reads_rows_of_positions_has_the_context_and_the_positions_of_its_table():
    model = build(models.TutorialTransformer)
    assert context_length(model) is None  # read as [B, T], every row has one position
    m = attach(model)
    assert m.split.sequence_first and m.context_length == models.T
    assert [fact.kind for fact in dict(traits(model, roles(model, "", m.split.head_names)))["positions"]] == ["learned"]


@pytest.mark.parametrize("way", models.LAST)
@pytest.mark.parametrize("head", [True, False], ids=["module", "function"])
@torch.no_grad()
def test_of_a_model_that_computes_all_logits_and_gives_the_last_ones_the_head_is_given_all_positions(way, head):
    model = build(lambda: models.LastOfAll(way, head))
    parts = split(model)
    assert not parts.last_alone and parts.describe() == ("Linear(32→50)" if head else "@ wte.weight[50×32]")
    assert not head or parts.head is model.head
    for length in (1, 2, 5, 9, 30):
        ids = ids_of(1, length)
        logits = parts.head(parts.backbone(ids))
        assert logits.shape == (1, length, V) and torch.equal(logits[:, -1], model(ids).reshape(1, V))
        torch.testing.assert_close(logits, model.logits(model.hidden(ids)))


class ByRows(nn.Linear):
    """A row alone is summed in another precision, as kernels may choose another way for it."""

    def forward(self, x):
        return super().forward(x) if x.shape[:-1].numel() > 1 else F.linear(x.double(), self.weight.double()).float()


class LastOfAll(models.Flat):
    """It makes all logits and gives the last."""

    def __init__(self):
        super().__init__()
        self.head = ByRows(D, V, bias=False)

    def forward(self, ids):
        return self.head(self.hidden(ids))[:, -1]


@torch.no_grad()
def test_of_a_model_that_makes_all_logits_and_gives_the_last_the_head_is_given_all_positions():
    model = build(LastOfAll)
    parts, ids = split(model), ids_of(1, 9)
    hidden = parts.backbone(ids)
    assert not torch.equal(parts.head(hidden[:, -1:])[:, 0], model(ids))
    assert not parts.last_alone and torch.equal(parts.head(hidden)[:, -1], model(ids))
    m = inspector.attach(model)
    assert inspector.verify(m, [1, 5, 7], inspector.Sampling(temperature=0), max_new_tokens=3).level == "bitwise"


@torch.no_grad()
def test_the_last_of_a_recurrence_is_split():
    model = build(models.LastOfRecurrent)
    parts, ids = split(model), ids_of(2, 9)
    assert parts.last_alone and parts.head is model.fc
    assert torch.equal(parts.head(parts.backbone(ids)[:, -1:])[:, 0], model(ids))


def test_of_two_maps_in_turn_the_one_that_widens_is_the_head():
    model = build(lambda: models.Heads("first"))
    model.heads = nn.ModuleList([nn.Sequential(nn.Linear(D, 8), nn.Linear(8, V))])
    assert split(model).describe() == "Linear(8→50, bias)"


# What is said of a model


class Softmaxed(models.Flat):
    def __init__(self, end):
        super().__init__()
        self.last = end

    def end(self, logits):
        return self.last(logits)


SOFT = {
    "log_softmax": (lambda x: x.log_softmax(-1), "log-probabilities", "log_softmax"),
    "x - logsumexp": (lambda x: x - x.logsumexp(-1, keepdim=True), "log-probabilities", "log_softmax"),
    "scaled": (lambda x: (x / 4).log_softmax(-1), "log-probabilities", None),
    "softmax": (lambda x: x.softmax(-1), "probabilities", "softmax → log"),
    "nn.Softmax": (nn.Softmax(dim=-1), "probabilities", "softmax → log"),
    "nn.LogSoftmax": (nn.LogSoftmax(dim=-1), "log-probabilities", "log_softmax"),
}


@pytest.mark.parametrize("name", SOFT)
@torch.no_grad()
def test_a_softmax_inside_is_an_operation_and_said(name):
    end, what, word = SOFT[name]
    model = build(lambda: Softmaxed(end))
    parts, ids = split(model), ids_of(2, 9)
    assert parts.gives == what and (word is None or parts.describe() == f"Linear(32→50) → {word}")
    logits = parts.head(parts.backbone(ids))
    assert torch.equal(logits, own_logits(model, ids))
    assert torch.allclose(logits.softmax(-1), model.head(model.hidden(ids)).div(4 if name == "scaled" else 1).softmax(-1), atol=1e-6)


def test_logits_are_no_probabilities():
    assert gives(torch.randn(1, 8, 50)) == "logits" and gives(torch.zeros(1, 8, 1)) == "logits"
    assert gives(torch.rand(1, 8, 50)) == "logits" and gives(-torch.rand(1, 8, 50)) == "logits"


class Future(models.Flat):
    def hidden(self, ids):
        x = super().hidden(ids)
        return x + x.mean(1, keepdim=True)


def test_a_model_that_reads_the_future_is_said_to():
    assert not split(build(Future)).causal
    assert split(build(models.Flat)).causal


UNSTEADY = {
    "F.dropout": ("hidden", lambda m, x: F.dropout(x, 0.1), r"F\.dropout\(\) without training=self\.training draws"),
    "noise": ("hidden", lambda m, x: x + torch.randn_like(x), r"torch\.randn_like\(\) draws"),
    "a cache": ("hidden", lambda m, x: x + remembered(m, x), "cache changed meanwhile"),
    "a list": ("hidden", lambda m, x: x + listed(m, x), "past changed meanwhile"),
    "a counter": ("hidden", lambda m, x: x + counted(m), "steps changed meanwhile"),
    "batch norm": ("hidden", lambda m, x: m.batch_norm(x), "seen changed meanwhile"),
    "a buffer": ("hidden", lambda m, x: x + m.seen.add_(1.0), "seen changed meanwhile"),
}


def remembered(model, x):
    last, model.cache = getattr(model, "cache", torch.zeros(D)), x.mean((0, 1))
    return last


def listed(model, x):
    model.past.append(x.mean((0, 1)))
    return sum(model.past) / 2


def counted(model):
    model.steps += 1
    return model.steps


class Unsteady(models.Flat):
    def __init__(self, way):
        super().__init__()
        self.way, self.past, self.steps = way, [], 0
        self.register_buffer("seen", torch.zeros(D))

    def batch_norm(self, x):
        return x + self.seen.mul_(0.9).add_(x.mean((0, 1)))

    def hidden(self, ids):
        return UNSTEADY[self.way][1](self, super().hidden(ids))


@pytest.mark.parametrize("way", UNSTEADY)
def test_a_model_that_does_not_repeat_itself_is_told_so_and_why(way):
    with pytest.raises(SplitError, match=rf"does not give the same logits twice for the same ids .*{UNSTEADY[way][2]}") as error:
        split(build(lambda: Unsteady(way)))
    assert "\n" not in str(error.value)


def test_what_a_model_only_keeps_refuses_nothing():
    assert split(build(models.OneFileLlama)).probe


# Refused, in one line


REFUSED = {
    "ids": (lambda: Softmaxed(lambda x: x.argmax(-1)), r"gives int64\[2, 7\] for ids \[2, 7\], and no logits"),
    "nothing": (lambda: Softmaxed(lambda x: None), "gives None for ids"),
    "a scalar beside nothing": (lambda: Softmaxed(lambda x: (None, x.mean())), r"gives \(None, float32\[\]\) for ids"),
    "one-hot wanted": (lambda: nn.Sequential(nn.Linear(V, D), nn.Linear(D, V)), "does not take token ids .*wrap it in a module"),
    "a mask wanted": (lambda: Masked(), "does not take token ids .*mask.*wrap it in a module"),
}


def test_a_wrapper_that_gives_a_loss_is_taken_off():
    wrapped = build(lambda: models.AutoregressiveWrapper(models.TransformerWrapper()))
    parts, ids = split(wrapped), torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        assert torch.equal(parts.head(parts.backbone(ids)), wrapped.net(ids))


class Masked(models.Flat):
    def forward(self, ids, mask):
        return super().forward(ids)


@pytest.mark.parametrize("name", REFUSED)
def test_what_gives_no_logits_is_refused_in_a_line(name):
    make, match = REFUSED[name]
    with pytest.raises(SplitError, match=match) as error:
        split(build(make))
    assert "\n" not in str(error.value)


def test_a_flat_model_whose_end_mixes_positions_is_refused():
    with pytest.raises(SplitError, match=r"what it does after .* mixes positions; give split\(\) backbone= and head="):
        split(build(lambda: Softmaxed(lambda x: x - x.mean(1, keepdim=True))))


# Quantised by torch


@pytest.mark.filterwarnings("ignore")
def test_views_that_a_quantised_model_does_not_bear_say_what_to_give_instead():
    m = attach(torch.ao.quantization.quantize_dynamic(build(models.Flat), {nn.Linear}))
    with pytest.raises(NoSumError, match=r"its head is quantised by torch \(head\).*give the model as it is before quantize_dynamic"):
        contributions(m, [1, 2, 3])
    with pytest.raises(ValueError, match=r"is quantised by torch and does not run in float64.*before quantize_dynamic"):
        diverge(m, m, [1, 2, 3])
    assert diverge(attach(build(models.Flat)), m, [1, 2, 3]).place is not None  # named second it is compared


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [models.Flat, lambda: models.BookGPT(BOOK), lambda: models.Nested(models.Flat())])
def test_a_dynamically_quantised_model_is_proved_at_full_length(make):
    model = torch.ao.quantization.quantize_dynamic(build(make), {nn.Linear})
    parts = split(model)
    assert len(parts.per_tensor) == 9 and not parts.last_alone and parts.causal
    assert parts.backbone_name == "" and len(parts.head_names) == 1 and parts.head_name.endswith("head")
    assert parts.describe() == "Linear(32→50, quantised)"
    for shape in ((1, 1), (1, 12)):
        ids = ids_of(*shape)
        assert torch.equal(parts.head(parts.backbone(ids)), model(ids))


class FixedLength(models.Flat):
    def forward(self, ids):
        assert ids.shape[1] == self.length
        return super().forward(ids)


@pytest.mark.parametrize("named", [False, True], ids=["measured", "named"])
def test_a_model_that_reads_one_length_alone_is_refused_with_it(named):
    model = build(FixedLength)
    model.length = 32
    if named:
        model.length = model.block_size = 24
    wanted = rf"reads {model.length} tokens and no fewer \(AssertionError.*wrap it in a module whose forward pads the ids to {model.length}"
    with pytest.raises(SplitError, match=wanted):
        split(model)


class WithPlace(models.Flat):
    def forward(self, ids, start_pos):
        return super().forward(ids)


class ByName(models.Flat):
    def forward(self, *, input_ids, scale=1.0):
        return super().forward(input_ids)


@pytest.mark.parametrize(("kind", "name"), [(WithPlace, "start_pos"), (ByName, "input_ids")])
def test_what_a_forward_asks_for_beside_ids_is_named(kind, name):
    with pytest.raises(SplitError, match=rf"wrap it in a module whose forward takes ids alone, int64, and gives it {name}=…$"):
        split(build(kind))


class OwnTable(nn.Module):
    """The table of the embedding is a tensor of the model's own, used again or not."""

    def __init__(self, tied, kind=nn.Parameter):
        super().__init__()
        self.E, self.U, self.mix = kind(torch.randn(V, D)), kind(torch.randn(V, D)), nn.Linear(D, D)
        self.tied = tied

    def forward(self, ids):
        x = self.mix(F.embedding(ids, self.E)).cumsum(1)
        return torch.einsum("btd,vd->btv", x, self.E if self.tied else self.U)


@pytest.mark.parametrize("kind", [nn.Parameter, nn.Buffer])
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_on_a_table_without_a_module_is_tied_where_ids_are_looked_up_in_it(tied, kind):
    parts = split(build(lambda: OwnTable(tied, kind)))
    assert parts.tied is tied and parts.describe() == f"@ {'E' if tied else 'U'}[50×32]"


def test_of_modules_in_a_row_the_head_is_the_last_that_widens():
    model = build(lambda: nn.Sequential(nn.Embedding(V, D), nn.Linear(D, D), nn.GELU(), nn.Linear(D, V)))
    parts, ids = split(model), ids_of(1, 9)
    assert parts.head is model[3] and parts.head_name == "3" and not parts.mixes
    assert torch.equal(parts.backbone(ids), model[:3](ids))
