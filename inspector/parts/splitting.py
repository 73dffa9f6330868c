"""A causal language model in two parts: backbone (token ids → hidden states) and head (hidden states → logits).

Shape letters: B batch, T tokens, D hidden, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from inspect import signature

import torch
from torch import Tensor, nn

from ..records.report import Parts
from ..records.shown import Shown
from .embeddings import input_device, input_embedding, input_table
from .errors import in_a_line, shown
from .heads import Kind, Operation, RestOfForward, hidden_states, is_packed, operations, own_logits, recognise, step_logits
from .kinds import of_transformers
from .limits import context_length, vocabulary
from .outputs import FORMS, OutputError, form_of, forward, gives, reads_sequence_first
from .quantised import QuantisedLinear
from .steadiness import unsteady
from .tail import Begun, Tail, TakenUp, tail_of
from .watching import Call, Watch, alike, close, largest_difference, submodules
from .wrappers import unwrapped

PROBE_LENGTH = 8
LONG_PROBE = 32
AMPLIFIED = 64  # the head is also proved on hidden states this much larger, under which a forgotten cap or bias shows


class SplitError(ValueError):
    """The model cannot be split into two parts that give its own logits."""


@dataclass(frozen=True, repr=False)
class Split(Shown):
    """The two parts of a model.

    Args:
        backbone: ids [B, T] → final hidden states [B, T, D].
        head: hidden states [B, T, D] → logits [B, T, V], with all that the model does after its backbone.
        backbone_name: the backbone's module name in the model.
        head_names: names of the modules that the head runs.
        operations: what the head does, in order.
        tied: the head's weight is the embedding's.
        probe: number of tokens on which the proof was made; 0 for a split that was not proved.
        last_alone: ``generate()`` gives the head the last position alone; else all of them, and takes the last of the logits.
        gives: what the model calls its output, "logits", or "log-probabilities" or "probabilities", where it has a softmax inside.
        causal: no hidden state depends on a later token; False for the few models that read their whole context both ways.
        mixes: a position sees others; False for a bigram model.
        sequence_first: the model reads ids [T, B]; the parts turn them, and what it gives.
        per_tensor: names of modules that are quantised by what all numbers they are given have in common, so that a position among
            others gives other bits than alone; only whole rows are proved of them.
    """

    backbone: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]
    backbone_name: str = "backbone"
    head_names: tuple[str, ...] = ("lm_head",)
    operations: tuple[Operation, ...] = ()
    tied: bool = False
    probe: int = 0
    last_alone: bool = True
    causal: bool = True
    gives: str = "logits"
    mixes: bool = True
    sequence_first: bool = False
    per_tensor: tuple[str, ...] = ()

    @property
    def head_name(self) -> str:
        """The modules of the head in one word or a list."""
        return ", ".join(self.head_names)

    def shown_as(self) -> Parts:
        """The split in words."""
        return Parts(self.backbone_name, self.describe(), self.probe, ())

    def describe(self) -> str:
        """What the head does, such as ``Linear(2304→256000, tied) → softcap 30``."""
        return " → ".join(map(str, self.operations)) or getattr(self.head, "__name__", type(self.head).__name__)


def split(model: nn.Module, backbone: Callable | None = None, head: Callable | None = None, finite: bool = True) -> Split:
    """Splits a causal LM into backbone and head, and proves on a probe that the two are the model.

    One forward pass is watched: what the model calls first is its backbone, and whatever it does afterwards its head. The
    head is then a single module where that alone gives the model's logits, else the model's own forward with the backbone
    replaced (``RestOfForward``). Where there is no such module, the backbone is the model's own forward, stopped where its head
    begins (``tail``). ``backbone`` and ``head``, given together, are proved instead: any two callables.
    A model that gives NaN is refused, unless ``finite`` is False: then its parts are not proved (``probe`` is 0), and serve
    to trace where the NaN begins.

    What stands around the model is taken off first (``wrappers.unwrapped``): the parts are those of the model inside.

    Raises:
        SplitError: the parts do not give ``model(ids).logits`` bit for bit, and by how much they differ; or the model does not
            give the same logits twice, or none.
        ValueError: what stands around it cannot be taken off.
    """
    model = unwrapped(model).module
    check_module(model)
    kind = type(model).__name__
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise SplitError(f"{kind} is an encoder-decoder: only decoders have one backbone and one head")
    for name, part in (("backbone", backbone), ("head", head)):
        if part is not None and not callable(part):
            raise SplitError(f"{name}={shown(part)}: give a module or a function")
    if (backbone is None) != (head is None):
        raise SplitError("give backbone and head together, or neither")
    with evaluating(model), torch.no_grad():
        own = asked_first(model, probe_1T := probe_ids(model))
        try:
            if backbone is None:
                return found(model, probe_1T, own, finite)
            names = dict(backbone_name=name_of(model, backbone), head_names=(name_of(model, head),))
            known = facts(model, own, probe_1T)
            logits = (lambda hidden_BTD: head(hidden_BTD).log()) if known["gives"] == "probabilities" else head
            parts = proved(Split(lambda ids_BT: hidden_states(backbone(ids_BT)), logits, **names, **known), model, probe_1T)
            heads = () if isinstance(head, nn.Module) else modules_of_head(model, parts, probe_1T)
            return replace(parts, head_names=heads) if heads else parts
        except SplitError as error:
            if (why := unsteady(model, probe_1T)) is not None:
                raise SplitError(f"{kind} {why}") from error
            raise


def check_module(model: object) -> None:
    """Refuses what is no module, such as a name or what is loaded already. Raises ``SplitError``."""
    if not isinstance(model, nn.Module):
        raise SplitError(f"{shown(model)} is no module: give the model itself, such as inspector.load('names-qwen2').model")


def asked_first(model: nn.Module, probe_1T: Tensor) -> Tensor:
    """The model's own logits for the probe.

    Raises:
        SplitError: it gives none, and what it gives or raises.
    """
    kind = type(model).__name__
    try:
        own = own_logits(model, probe_1T)
    except OutputError as error:
        raise SplitError(f"{kind} {error}") from error
    except Exception as error:  # a module of the user's can raise anything
        if of_transformers(model):
            raise SplitError(f"{kind} does not take token ids [B, T] and give logits [B, T, V]: {in_a_line(error)}") from error
        if length := only_length(model):
            raise SplitError(
                f"{kind} reads {length} tokens and no fewer ({in_a_line(error)}), and a prompt grows token by token: wrap it in a module "
                f"whose forward pads the ids to {length} and returns the logits of those that it was given"
            ) from error
        more = ", ".join(f"{name}=…" for name in asks_for(model))
        wrap = f"wrap it in a module whose forward takes ids alone, int64{f', and gives it {more}' if more else ''}"
        raise SplitError(f"{kind} does not take token ids [B, T] and give logits [B, T, V]: {in_a_line(error)}; {wrap}") from error
    if not isinstance(own, Tensor):
        raise SplitError(f"{kind} gives {type(own).__name__}: it is broken, or no causal LM")
    tie_again(model)
    form = FORMS.get(model)
    if form is not None and not form.log and gives(own) == "probabilities":
        FORMS[model] = replace(form, log=True)
        return own.log()
    return own


def only_length(model: nn.Module) -> int | None:
    """The one length that a model reads which does not read a probe, if it does read one: its context, or a usual one."""
    for length in (context_length(model),) if context_length(model) else (16, 32, 64, 128, 256, 512, 1024):
        try:
            forward(model, probe_ids(model)[:, :1].expand(1, length).contiguous())
            return length
        except Exception:  # it reads another, or has other reasons
            continue
    return None


def asks_for(model: nn.Module) -> list[str]:
    """Names of the arguments that a forward must be given beside a first one in its place."""
    wanted = [p for p in signature(model.forward).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    beside = wanted if wanted and wanted[0].kind is wanted[0].KEYWORD_ONLY else wanted[1:]
    return [p.name for p in beside if p.default is p.empty]


def facts(model: nn.Module, own: Tensor, probe_1T: Tensor) -> dict:
    """What is known of a split from the model alone: its fields but for the parts. A model that reads [T, B] is read so from here on.

    Raises:
        SplitError: the model does not give the same logits twice.
    """
    form = form_of(model)
    known = dict(probe=probe_1T.shape[1], last_alone=slices(model) or form.last_alone, per_tensor=per_tensor(model))
    known["gives"] = "probabilities" if form.log else gives(own)
    if of_transformers(model):
        return known
    # all but the last other ids, and no permutation, of which a mean is the same
    others_1T = torch.cat([(probe_1T[:, :-1] + 1) % (vocabulary(model) or PROBE_LENGTH), probe_1T[:, -1:]], dim=1)
    seen = own_logits(model, others_1T)
    if not alike(own, own_logits(model, probe_1T)) and (why := unsteady(model, probe_1T)) is not None:
        raise SplitError(f"{type(model).__name__} {why}")
    if torch.equal(others_1T, probe_1T) or not alike(seen[:, -1], own[:, -1]):
        return known
    if reads_sequence_first(model):
        FORMS[model] = replace(form, sequence_first=True)
        return known | dict(sequence_first=True)
    return known | dict(mixes=False)


def per_tensor(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that torch has quantised dynamically: the scale of what they are given is one for all positions."""
    return tuple(name for name, module in model.named_modules() if is_packed(module))


def found(model: nn.Module, probe_1T: Tensor, own: Tensor, finite: bool) -> Split:
    """The split of a model whose parts are not named: proved, unless it gives NaN and that is allowed."""
    kind = type(model).__name__
    if finite and own.isnan().any():
        raise SplitError(f"{kind} gives NaN among its logits: it is broken, or no causal LM; inspector trace MODEL PROMPT shows where")
    known = facts(model, own, probe_1T)
    try:
        if known.get("sequence_first"):
            raise SplitError(f"{kind} reads ids [T, B], and where its head begins is not seen; give split() backbone= and head=")
        if known["per_tensor"] and not of_transformers(model):  # that the rest mixes no positions cannot be proved
            raise SplitError(f"{kind} is quantised, and where its head begins is not seen; give split() backbone= and head=")
        parts = by_first_call(model, probe_1T, own, known)
        if of_transformers(model) or model.get_submodule(parts.backbone_name) is not input_embedding(model):
            return parts
        with suppress(SplitError):  # of modules in a row the head is the last that widens, not all behind the embedding
            tail = tail_seen(model)
            shorter = parts if tail is None or tail.place is None else by_tail(model, tail, probe_1T, own, known)
            return parts if shorter.operations == parts.operations else shorter
        return parts
    except SplitError as error:
        tail = None if of_transformers(model) and not finite else tail_seen(model)
        if tail is None or (tail.place is not None and gives_hidden_states(model, own)):
            raise error
        try:
            return by_tail(model, tail, probe_1T, own, known)
        except SplitError as other:
            raise (error if of_transformers(model) else other) from other


def tail_seen(model: nn.Module) -> Tail | None:
    """Where the head begins in a model's own forward, if that is seen."""
    try:
        return tail_of(model)
    except Exception:  # whatever the model raises for two rows
        return None


def gives_hidden_states(model: nn.Module, own: Tensor) -> bool:
    """Whether what a model gives is as wide as its embedding and not as its vocabulary: it has no head."""
    weight = getattr(input_embedding(model), "weight", None)
    return isinstance(weight, Tensor) and own.shape[-1] == weight.shape[-1] != weight.shape[0]


def by_first_call(model: nn.Module, probe_1T: Tensor, own: Tensor, known: dict) -> Split:
    """The split of a model that calls its backbone first, and then its head."""
    kind = type(model).__name__
    calls: list[Call] = []
    with Watch(submodules(model), before=calls.append):
        own_logits(model, probe_1T)
    tie_again(model)
    outer = [call for call in calls if call.depth == 0]
    first = next((i for i, call in enumerate(outer) if is_hidden(hidden_states(call.output), probe_1T)), len(outer))
    if len(outer) < first + 2 or own.shape[:2] != probe_1T.shape:
        called = ", ".join(call.role for call in outer) or "no module"
        raise SplitError(f"{kind} has no backbone of its own: it calls {called}; give split() backbone= and head=")
    base, after = outer[first], outer[first + 1 :]
    hidden = hidden_states(base.output)
    embedding = input_embedding(base.module)
    inner = calls[calls.index(after[0]) :]
    parts = Split(
        backbone=lambda ids_BT: hidden_states(forward(base.module, ids_BT)),
        head=RestOfForward(model, base.module, base.output),
        backbone_name=base.role,
        head_names=tuple(call.role for call in after),
        **known,
    )
    return told(parts, model, probe_1T, own, hidden, {call.module for call in inner}, embedding, [call.module for call in after])


def by_tail(model: nn.Module, tail: Tail, probe_1T: Tensor, own: Tensor, known: dict) -> Split:
    """The split of a model whose backbone is its own forward, stopped where the head begins."""
    if tail.place is None:  # a row of its embedding is the logits of the token that follows
        parts = Split(lambda ids_BT: own_logits(model, ids_BT), nn.Identity(), "", (), (Operation(Kind.CAST, "nothing", True),), **known)
        return proved(parts, model, probe_1T)
    parts = Split(Begun(model, tail.place), TakenUp(model, tail.place), "", tail.names, **known)
    try:
        hidden = parts.backbone(probe_1T)
    except Exception as error:
        raise SplitError(
            f"{type(model).__name__} has no backbone of its own: {in_a_line(error)}; give split() backbone= and head="
        ) from error
    whole = [tail.whole] if tail.whole is not None else [model.get_submodule(name) for name in tail.names]
    of_head, embedding = set(tail.modules), input_embedding(model)
    try:
        return told(parts, model, probe_1T, own, hidden, of_head, embedding, whole)
    except SplitError:
        if form_of(model).layout != "BV":
            raise
        # it may compute all positions' logits, and give the last one's
        parts = replace(parts, head=TakenUp(model, tail.place, last_after=True), last_alone=False)
        return told(parts, model, probe_1T, own, hidden, of_head, embedding, whole)


def told(
    parts: Split,
    model: nn.Module,
    probe_1T: Tensor,
    own: Tensor,
    hidden: Tensor,
    of_head: set[nn.Module],
    embedding: nn.Module | None,
    whole: list[nn.Module],
) -> Split:
    """The split with what its head does and how it reads, proved. ``hidden`` are the probe's; ``of_head`` all modules that run in
    the head, and ``whole`` those that are called in turn, of which a single one may be all of it."""
    tied = {module for module in of_head if is_tied(module, embedding)}
    rest = parts.head
    each = rest.each if isinstance(rest, TakenUp) else rest  # one run of it

    def done_by(head: Callable[[Tensor], Tensor]) -> tuple[Operation, ...]:
        return operations(model, head, torch.cat([hidden, hidden * AMPLIFIED]), tied)

    def said(done: tuple[Operation, ...]) -> tuple[Operation, ...]:
        if form_of(model).log:  # which was appended here
            softmax = len(done) > 1 and str(done[-2]) == "softmax"
            done = (*done[:-1], Operation(Kind.MONOTONE, "log" if softmax else "softmax → log", True))
        return (*done, *(Operation(Kind.LAYOUT, "[T, B] → [B, T]", True),) * parts.sequence_first)

    parts = replace(parts, tied=bool(tied))
    if own.isnan().any():
        return replace(parts, probe=0, operations=said(done_by(each)))
    by_position(parts, type(model).__name__, hidden)
    done = done_by(each)
    parts = replace(
        parts,
        operations=said(done),
        tied=parts.tied or any(by_table(model, str(one)) for one in done),
        causal=bool(parts.per_tensor) or is_causal(parts, model, probe_1T, hidden),
    )
    # a temperature of ones changes no number, and is no part of the module all the same
    if len(whole) == 1 and is_whole_head(whole[0], rest, hidden) and done_by(whole[0]) == done:
        parts = replace(parts, head=whole[0])
    return proved(parts, model, probe_1T)


def by_table(model: nn.Module, words: str) -> bool:
    """Whether an operation multiplies by the very table that ids are looked up in."""
    if not words.startswith("@ ") or (table := input_table(model)) is None:
        return False
    held = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return any(words.startswith(f"@ {name}[") for name, own in held if own is table)


def is_hidden(states: object, probe_1T: Tensor) -> bool:
    """Whether what a module gave can be hidden states [B, T, D] of the probe; a mask or token ids cannot."""
    return isinstance(states, Tensor) and states.is_floating_point() and states.dim() >= 3 and states.shape[:2] == probe_1T.shape


def is_whole_head(module: nn.Module, rest: RestOfForward | TakenUp, hidden_1TD: Tensor) -> bool:
    """Whether one module gives what the rest of the forward gives, on amplified hidden states too."""
    whole = slice(-1, None) if getattr(rest, "last_after", False) else slice(None)  # of the others the model gives nothing to hold against
    try:
        return all(alike(module(h)[:, whole], rest(h)[:, whole]) for h in (hidden_1TD, hidden_1TD * AMPLIFIED))
    except Exception:  # it wants a cast, or more than hidden states: the forward knows
        return False


def slices(model: nn.Module) -> bool:
    """Whether ``generate()`` asks the model for the logits of the last position alone, as it does where forward can."""
    return "logits_to_keep" in signature(model.forward).parameters


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and afterwards every module in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def is_tied(module: nn.Module, embedding: nn.Module | None) -> bool:
    """Whether a module's weight is the embedding's."""
    if embedding is None or isinstance(module, QuantisedLinear):  # which makes its weight anew
        return False
    return getattr(module, "weight", None) is embedding.weight


def tie_again(model: nn.Module) -> None:
    """After a forward pass accelerate leaves each module with a placeholder of its own for weights on disk: tied ones become one."""
    if any(weight.is_meta for weight in model.parameters()) and hasattr(model, "tie_weights"):
        model.tie_weights(recompute_mapping=False)


def probe_ids(model: nn.Module) -> Tensor:
    """Ids [1, T] that span the vocabulary but for its ends, where padding and special tokens are; no more than the context holds."""
    size = vocabulary(model) or PROBE_LENGTH
    length = min(PROBE_LENGTH, context_length(model) or PROBE_LENGTH)
    return torch.linspace(0, size - 1, length + 2, device=input_device(model)).long()[None, 1:-1]


def modules_of_head(model: nn.Module, parts: Split, ids_BT: Tensor) -> tuple[str, ...]:
    """Names of the modules that a head which is a function calls, and the backbone does not."""
    calls: list[Call] = []
    with Watch(submodules(model), before=calls.append), evaluating(model), torch.no_grad():
        hidden_BTD = parts.backbone(ids_BT)
        inside = {call.role for call in calls}
        calls.clear()
        parts.head(hidden_BTD)
    return tuple(dict.fromkeys(call.role for call in calls if call.depth == 0 and call.role not in inside))


def name_of(model: nn.Module, part: Callable) -> str:
    """A part's module name in the model, or what it calls itself."""
    return next((name for name, module in model.named_modules() if module is part), getattr(part, "__name__", type(part).__name__))


def is_causal(parts: Split, model: nn.Module, probe_1T: Tensor, hidden_1TD: Tensor) -> bool:
    """Whether hidden states stay as they are when the token after them changes.

    Raises:
        SplitError: they do not, and the model is no decoder, or its ``generate()`` works by appending tokens to predict.
    """
    other_1T = torch.cat([probe_1T[:, :-1], probe_1T[:, :1]], dim=1)
    if close(hidden_1TD[:, :-1], parts.backbone(other_1T)[:, :-1]):
        return True
    kind = type(model).__name__
    if not hasattr(model, "prepare_inputs_for_generation"):
        return False
    if getattr(model.config, "is_decoder", None) is False:
        raise SplitError(f"{kind} is no decoder here, every position sees the later ones: set is_decoder to true in its config.json")
    fed_1T = model.prepare_inputs_for_generation(probe_1T, use_cache=False)["input_ids"]
    if fed_1T.shape != probe_1T.shape:
        raise SplitError(
            f"{kind} is not causal: generate() appends a token to be predicted, so the last position's logits are not the next token's"
        )
    return False


def by_position(parts: Split, kind: str, hidden_1TD: Tensor) -> None:
    """A head looks at one position at a time: what mixes positions is part of the backbone. It takes any number of rows and positions.

    Raises:
        SplitError: the last position alone gives other logits (beyond rounding) than among the others, or the head raises.
    """
    made, place = [], parts.backbone_name or f"the place where {(parts.head_names or ('its head',))[0]} begins"
    for given in (hidden_1TD, hidden_1TD[:, -1:], torch.cat([hidden_1TD, hidden_1TD])):
        try:
            made.append(parts.head(given)[:, -1])
        except Exception as error:  # whatever the forward of a foreign model does without the rest of its backbone's output
            other = f"takes hidden states of the shape {tuple(hidden_1TD.shape)} and not of {tuple(given.shape)}"
            what = (
                f"what it does after {place} {other}"
                if made
                else (f"its logits need more of {place}'s output than its final hidden states")
            )
            raise SplitError(f"{kind}: {what} ({in_a_line(error)})") from error
    if not parts.per_tensor and not close(*made[:2]):
        raise SplitError(f"{kind} has no backbone of its own: what it does after {place} mixes positions; give split() backbone= and head=")


def proved(parts: Split, model: nn.Module, probe_1T: Tensor) -> Split:
    """The split, if its parts give the model's own logits bit for bit on the probe, and on a longer one whose ids repeat.

    Raises:
        SplitError: they do not, with the difference and, where its numbers tell it, the missing operation.
    """
    kind = type(model).__name__
    context = context_length(model)  # of which RoBERTa keeps some for itself
    length = LONG_PROBE if context is None else min(LONG_PROBE, max(probe_1T.shape[1], context // 2))
    ids = torch.cat([probe_1T, probe_1T.flip(1), torch.zeros_like(probe_1T)], dim=1)
    for ids_1T in (probe_1T, ids.repeat(1, -(-length // ids.shape[1]))[:, :length]):
        try:
            own = own_logits(model, ids_1T)
        except Exception as error:
            raise SplitError(f"{kind} does not read {ids_1T.shape[1]} tokens ({in_a_line(error)})") from error
        try:
            by_parts = parts.head(parts.backbone(ids_1T))
        except Exception as error:
            raise SplitError(f"{kind} reads {ids_1T.shape[1]} tokens, and the parts do not ({in_a_line(error)})") from error
        if not isinstance(by_parts, Tensor):
            raise SplitError(f"{kind}: the head gives {type(by_parts).__name__}, not the tensor of the logits")
        if own.shape[1] == 1 < by_parts.shape[1]:  # it gives the last position's alone
            parts = proved_for_last(parts, model, ids_1T)
            continue
        if by_parts.shape[:-1] != own.shape[:-1]:
            raise SplitError(f"{kind} gives logits of shape {tuple(own.shape)}, the parts {tuple(by_parts.shape)}: they are not its parts")
        if not torch.equal(by_parts, own):
            raise refusal(kind, parts, by_parts, own)
        if form_of(model).alone is not None:
            parts = proved_for_last(parts, model, ids_1T)
    return replace(parts, probe=probe_1T.shape[1] + length)


def proved_for_last(parts: Split, model: nn.Module, ids_1T: Tensor) -> Split:
    """The parts of a model that gives the last position's logits alone, if they give these as the model does.

    Most such models give their head the last position alone. Of others it makes all logits, and the last of them are taken.

    Raises:
        SplitError: the parts do neither.
    """
    try:
        check_each_length(parts, model, ids_1T)
    except SplitError as error:
        if not parts.last_alone:
            raise
        parts = replace(parts, last_alone=False)
        try:
            check_each_length(parts, model, ids_1T)
        except SplitError:
            raise error from None
    return parts


def check_each_length(parts: Split, model: nn.Module, ids_1T: Tensor) -> None:
    """Refuses parts that do not give the last position's logits as the model does, which gives these alone, for several lengths.

    Raises:
        SplitError: they do not.
    """
    for length in sorted({1, 2, 3, ids_1T.shape[1] // 2, ids_1T.shape[1]} - {0}):
        given_1T = ids_1T[:, :length]
        hidden_1TD = parts.backbone(given_1T)
        own, by_parts = step_logits(model, given_1T), parts.head(hidden_1TD[:, -1:] if parts.last_alone else hidden_1TD)[:, -1:]
        if own.shape != by_parts.shape or not torch.equal(own, by_parts):
            raise refusal(type(model).__name__, parts, by_parts, own)


def refusal(kind: str, parts: Split, by_parts: Tensor, own: Tensor) -> SplitError:
    """Why parts whose logits are not the model's own are refused."""
    missing = recognise(by_parts, own)
    unknown = any(operation.kind is Kind.UNKNOWN for operation in missing)
    reason = "they are logits from another head" if unknown else f"the parts lack {' → '.join(map(str, missing))}"
    width = min(by_parts.shape[-1], own.shape[-1])
    difference = largest_difference(by_parts[..., :width], own[..., :width])
    what = f"{kind} is not these parts, {parts.describe()}"
    return SplitError(f"{what}: their logits differ from the model's by up to {difference:.3g}; {reason}")
