"""A causal language model in two parts: backbone (token ids → hidden states) and head (hidden states → logits).

Shape letters: B batch, T tokens, D hidden, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from itertools import chain

import torch
from torch import Tensor, nn

from .errors import shown
from .heads import Kind, Operation, RestOfForward, forward, hidden_states, operations, own_logits, recognise
from .limits import context_length, vocabulary
from .watching import Call, Watch, alike, close, largest_difference, submodules
from .wrappers import unwrapped

PROBE_LENGTH = 8
LONG_PROBE = 32
AMPLIFIED = 64  # the head is also proved on hidden states this much larger, under which a forgotten cap or bias shows


class SplitError(ValueError):
    """The model cannot be split into two parts that give its own logits."""


@dataclass(frozen=True)
class Split:
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

    @property
    def head_name(self) -> str:
        """The modules of the head in one word or a list."""
        return ", ".join(self.head_names)

    def describe(self) -> str:
        """What the head does, such as ``Linear(2304→256000, tied) → softcap 30``."""
        return " → ".join(map(str, self.operations)) or getattr(self.head, "__name__", type(self.head).__name__)


def split(model: nn.Module, backbone: Callable | None = None, head: Callable | None = None, finite: bool = True) -> Split:
    """Splits a causal LM into backbone and head, and proves on a probe that the two are the model.

    One forward pass is watched: what the model calls first is its backbone, and whatever it does afterwards its head. The
    head is then a single module where that alone gives the model's logits, else the model's own forward with the backbone
    replaced (``RestOfForward``). ``backbone`` and ``head``, given together, are proved instead: any two callables.
    A model that gives NaN is refused, unless ``finite`` is False: then its parts are not proved (``probe`` is 0), and serve
    to trace where the NaN begins.

    What stands around the model is taken off first (``wrappers.unwrapped``): the parts are those of the model inside.

    Raises:
        SplitError: the parts do not give ``model(ids).logits`` bit for bit, and by how much they differ.
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
    probe_1T = probe_ids(model)
    with evaluating(model), torch.no_grad():
        if backbone is None:
            return found(model, probe_1T, finite)
        names = dict(backbone_name=name_of(model, backbone), head_names=(name_of(model, head),))
        parts = Split(lambda ids_BT: hidden_states(backbone(ids_BT)), head, **names, probe=probe_1T.shape[1], last_alone=slices(model))
        return proved(parts, model, probe_1T)


def check_module(model: object) -> None:
    """Refuses what is no module, such as a name or what is loaded already. Raises ``SplitError``."""
    if not isinstance(model, nn.Module):
        raise SplitError(f"{shown(model)} is no module: give the model itself, such as inspector.load('names-qwen2').model")


def found(model: nn.Module, probe_1T: Tensor, finite: bool) -> Split:
    """The split of a model whose parts are not named: proved, unless it gives NaN and that is allowed."""
    kind = type(model).__name__
    try:
        calls: list[Call] = []
        with Watch(submodules(model), before=calls.append):
            own = own_logits(model, probe_1T)
    except Exception as error:  # a module of the user's can raise anything
        raise SplitError(f"{kind} does not take token ids [B, T] and give logits [B, T, V]: {in_a_line(error)}") from error
    if not isinstance(own, Tensor):
        raise SplitError(f"{kind} gives {type(own).__name__}: it is broken, or no causal LM")
    if finite and own.isnan().any():
        raise SplitError(f"{kind} gives NaN among its logits: it is broken, or no causal LM; inspector trace MODEL PROMPT shows where")
    tie_again(model)
    outer = [call for call in calls if call.depth == 0]
    first = next((i for i, call in enumerate(outer) if is_hidden(hidden_states(call.output), probe_1T)), len(outer))
    if len(outer) < first + 2 or own.shape[:2] != probe_1T.shape:
        called = ", ".join(call.role for call in outer) or "no module"
        raise SplitError(f"{kind} has no backbone of its own: it calls {called}; give split() backbone= and head=")
    base, after = outer[first], outer[first + 1 :]
    hidden = hidden_states(base.output)
    rest = RestOfForward(model, base.module, base.output)
    embedding = input_embedding(base.module)
    inner = calls[calls.index(after[0]) :]
    tied = {call.module for call in inner if is_tied(call.module, embedding)}
    parts = Split(
        backbone=lambda ids_BT: hidden_states(forward(base.module, ids_BT)),
        head=rest,
        backbone_name=base.role,
        head_names=tuple(call.role for call in after),
        tied=bool(tied),
        probe=probe_1T.shape[1],
        last_alone=slices(model),
    )

    def done_by(head: Callable[[Tensor], Tensor]) -> tuple[Operation, ...]:
        return operations(model, head, torch.cat([hidden, hidden * AMPLIFIED]), tied)

    if own.isnan().any():
        return replace(parts, probe=0, operations=done_by(rest))
    by_position(parts, kind, hidden)
    parts = replace(parts, operations=done_by(rest), causal=is_causal(parts, model, probe_1T, hidden))
    # a temperature of ones changes no number, and is no part of the module all the same
    if len(after) == 1 and is_whole_head(after[0].module, rest, hidden) and done_by(after[0].module) == parts.operations:
        parts = replace(parts, head=after[0].module)
    return proved(parts, model, probe_1T)


def is_hidden(states: object, probe_1T: Tensor) -> bool:
    """Whether what a module gave can be hidden states [B, T, D] of the probe; a mask or token ids cannot."""
    return isinstance(states, Tensor) and states.is_floating_point() and states.dim() >= 3 and states.shape[:2] == probe_1T.shape


def is_whole_head(module: nn.Module, rest: RestOfForward, hidden_1TD: Tensor) -> bool:
    """Whether one module gives what the rest of the forward gives, on amplified hidden states too."""
    try:
        return all(alike(module(h), rest(h)) for h in (hidden_1TD, hidden_1TD * AMPLIFIED))
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


def input_embedding(model: nn.Module) -> nn.Module | None:
    """The token embedding; None where no module is one."""
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return next((module for module in model.modules() if isinstance(module, nn.Embedding)), None)


def is_tied(module: nn.Module, embedding: nn.Module | None) -> bool:
    """Whether a module's weight is the embedding's."""
    return embedding is not None and getattr(module, "weight", None) is embedding.weight


def tie_again(model: nn.Module) -> None:
    """After a forward pass accelerate leaves each module with a placeholder of its own for weights on disk: tied ones become one."""
    if hasattr(model, "tie_weights") and any(weight.is_meta for weight in model.parameters()):
        model.tie_weights(recompute_mapping=False)


def probe_ids(model: nn.Module) -> Tensor:
    """Ids [1, T] that span the vocabulary but for its ends, where padding and special tokens are; no more than the context holds."""
    size = vocabulary(model) or PROBE_LENGTH
    length = min(PROBE_LENGTH, context_length(model) or PROBE_LENGTH)
    return torch.linspace(0, size - 1, length + 2, device=input_device(model)).long()[None, 1:-1]


def input_device(model: nn.Module) -> torch.device:
    """Where a model wants its ids: with layers on several devices or on disk, where accelerate says that it computes."""
    hook = getattr(model, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is None:
        device = next(chain(model.parameters(), model.buffers()), torch.empty(0)).device
    return torch.device(device)


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
    made = []
    for given in (hidden_1TD, hidden_1TD[:, -1:], torch.cat([hidden_1TD, hidden_1TD])):
        try:
            made.append(parts.head(given)[:, -1])
        except Exception as error:  # whatever the forward of a foreign model does without the rest of its backbone's output
            other = f"takes hidden states of the shape {tuple(hidden_1TD.shape)} and not of {tuple(given.shape)}"
            what = (
                f"what it does after {parts.backbone_name} {other}"
                if made
                else (f"its logits need more of {parts.backbone_name}'s output than its final hidden states")
            )
            raise SplitError(f"{kind}: {what} ({in_a_line(error)})") from error
    if not close(*made[:2]):
        raise SplitError(
            f"{kind} has no backbone of its own: what it does after {parts.backbone_name} mixes positions; give split() backbone= and head="
        )


def in_a_line(error: Exception) -> str:
    """The kind of an error of foreign code, and the first line of what it says."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


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
        if by_parts.shape[:-1] != own.shape[:-1]:
            raise SplitError(f"{kind} gives logits of shape {tuple(own.shape)}, the parts {tuple(by_parts.shape)}: they are not its parts")
        if not torch.equal(by_parts, own):
            raise refusal(kind, parts, by_parts, own)
    return replace(parts, probe=probe_1T.shape[1] + length)


def refusal(kind: str, parts: Split, by_parts: Tensor, own: Tensor) -> SplitError:
    """Why parts whose logits are not the model's own are refused."""
    missing = recognise(by_parts, own)
    unknown = any(operation.kind is Kind.UNKNOWN for operation in missing)
    reason = "they are logits from another head" if unknown else f"the parts lack {' → '.join(map(str, missing))}"
    width = min(by_parts.shape[-1], own.shape[-1])
    difference = largest_difference(by_parts[..., :width], own[..., :width])
    what = f"{kind} is not these parts, {parts.describe()}"
    return SplitError(f"{what}: their logits differ from the model's by up to {difference:.3g}; {reason}")
