"""Two models, A and B: the first component of B that makes something else of A's input, beyond rounding.

Each component of B is given A's input to the same role, so that it answers for itself alone: what is inherited from the
components before it is gone. Masks, positions and everything else stay B's own. What B would have given the component is
compared too, before it is replaced: a difference there arises between components, in code that has no module.

The search goes from the outside inwards: the blocks; inside the first block that differs its norms, attention and
feed-forward; inside the first of these that differs its parts. So two models whose blocks do the same agree, however their
insides are arranged (a norm's weights folded into the projection after it, heads in another order).

A component that runs several times is compared call by call: "layers.0.attn#2" with "layers.0.attn#2", or, where the two run their
blocks equally often and only one of them repeats some (weights tied over depth), each call of a block with the other's in the same turn.

Shape letters: B batch, T tokens, R rows of a tensor (its last dimension left out), V vocabulary.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..loading.loaded import Loaded, check_loaded
from ..loading.texts import check_request
from ..loop.decoding import next_logits
from ..parts.errors import whole
from ..parts.heads import own_logits
from ..parts.precision import LiftedCasts, in_dtype, plain_experts
from ..parts.quantised import QuantisedLinear
from ..parts.roles import spans
from ..parts.watching import Call, Watch, first_numbers, states, substituted, unnamed
from ..records.comparison import ComponentGap, Divergence, Flip, Gap, Place

BLOCK = re.compile(r"layers\d*\.\d+(#\d+)?")  # a call of one
AT_ONCE = 2**24  # numbers of two tensors that are compared in float64 at a time: logits of a long prompt are a gigabyte
Rows = dict[tuple[str, str], Tensor]  # (role, "input" or "output") → the largest difference [R] of each row of the tensor


@dataclass
class Kept:
    """One call of a component in a forward pass: the hidden states given to it, what it made of them, and the calls it began in.

    Tensors that are not kept are on the meta device: a shape and a dtype.
    """

    states: list[Tensor]
    output: Tensor | None = None
    around: tuple[str, ...] = ()


def diverge(a: Loaded, b: Loaded, ids: Sequence[int], max_new_tokens: int = 20) -> Divergence:
    """The first component of ``b`` that introduces more than rounding to what ``a`` computes, and what follows from it.

    The expected rounding of a component is measured on A alone, so no bug of B's widens it: how far A's component is from
    itself in float64 (with transformers' casts to float32 lifted) and in B's precision, all given the same input. More than
    ``records.comparison.ROUNDINGS`` times that is a difference. Both models stay as they are, bit for bit.

    Args:
        a: the model that counts as right.
        b: the other one: another implementation, precision or checkpoint.
        ids: tokens that both are fed.
        max_new_tokens: the most steps of the greedy continuation in which a flipped token is looked for.

    Raises:
        ValueError: ids that one of them cannot read, no step at all, models that share no component, or an A that does not run in float64.
    """
    check_loaded(a)
    check_loaded(b)
    whole("max_new_tokens", max_new_tokens, 1)
    ids_1T, _ = a.prompt(ids), b.prompt(ids)  # both must be able to read them
    check_request(ids_1T.shape[1], max_new_tokens, a.context_length)
    own_a, logits_a = record(a, ids_1T, keep=())  # forms alone: all activations of a long prompt would be more than the weights
    logits_a = logits_a.clone()  # where both are one model, its next pass may write into the same memory
    own_b, logits_b = record(b, ids_1T, keep=())
    turns = in_turn(own_a, own_b)
    own_b = {turns.get(name, name): call for name, call in own_b.items()}
    width = min(logits_a.shape[-1], logits_b.shape[-1])  # the head's padding may differ
    own_a["logits"] = Kept([logits_a[..., :width]])
    logits_difference = float(differences(logits_a[..., :width], logits_b[..., :width]).max())
    last_a, last_b = (logits[0, -1].float().clone() for logits in (logits_a, logits_b))
    del logits_b
    rerouted = sent_others(a, b, own_a, own_b)
    reshaped = [
        f"{role} {said}" for role in own_a if role in own_b and role not in rerouted and (said := other_shapes(own_a[role], own_b[role]))
    ]
    shared = [role for role in own_a if role in own_b and not other_shapes(own_a[role], own_b[role])]
    if not shared:
        raise ValueError(f"{a.origin.name} and {b.origin.name} share no component of the same shape: there is nothing to compare")

    dtypes = a.dtype, b.dtype
    step = max(torch.finfo(dtype).eps for dtype in dtypes)
    around = parents(own_a, shared)
    free_rows = rounding_of(a, dtypes[1], own_a, ids_1T, [], [])
    components, forced, scope, place = [], [], "", None
    while True:
        inside = [role for role in shared if around[role] == scope]
        forced += inside
        kept, _ = record(a, ids_1T, keep=inside)
        own_a |= {role: kept[role] for role in inside}
        free = compare(b, own_a, ids_1T, [], inside, turns)
        found = compare(b, own_a, ids_1T, forced, inside, turns)
        own = rounding_of(a, dtypes[1], own_a, ids_1T, forced, inside)
        level = []
        for role in [*inside, *(["logits"] if not scope else [])]:
            call = own_a[role]
            gaps = {
                side: worst(found[role, side], [rows[role, side] for rows in own if (role, side) in rows], tensor, step, ids_1T.shape[1])
                for side, tensor in (("input", call.states[0]), ("output", call.output))
                if (role, side) in found
            }
            together = float(free[role, "input" if role == "logits" else "output"].max())
            level.append(ComponentGap(role, gaps.get("input"), gaps.get("output"), together))
        components += level
        first = next((c for c in level if any(gap and gap.introduced for gap in (c.input, c.output))), None)
        if first is None:
            place = Place(scope, after=tuple(inside)) if scope else None
        elif first.input and first.input.introduced:
            place = Place(scope, after=behind(inside, first.role), before=first.role)
        else:
            scope = first.role
            if scope in around.values():
                continue
            place = Place(scope)
        break

    speaker = a if a.tokenizer is not None or b.tokenizer is None else b
    steps, flip = first_flip(a, b, ids_1T, max_new_tokens, width)
    return Divergence(
        a=a.origin.name,
        b=b.origin.name,
        dtype_a=precision(a),
        dtype_b=precision(b),
        tokens=speaker.tokens(ids),
        place=place,
        components=tuple(components),
        only_a=condensed(role for role in own_a if role not in own_b and role not in rerouted and role != "logits"),
        only_b=condensed(role for role in own_b if role not in own_a and role not in rerouted),
        reshaped=condensed(reshaped),
        logits_difference=logits_difference,
        logits_rounding=max(float(rows["logits", "input"].max()) for rows in free_rows),
        margin_a=margin(last_a),
        margin_b=margin(last_b),
        compared_steps=steps,
        flip=flip and replace(flip, a=speaker.texts.token(flip.a), b=speaker.texts.token(flip.b)),
        notes=(*remarks(a, b), *(["rerouted"] if rerouted else []), *(["in turn"] if turns else [])),
        unnamed_a=not_compared(a, ids_1T, shared),
        unnamed_b=not_compared(b, ids_1T, [other for other, own in turns.items() if own in shared] or shared),
        notices_a=a.notices,
        notices_b=b.notices,
    )


def precision(m: Loaded) -> str:
    """ "float32", or "float32, int8" of a model whose linear layers are quantised."""
    kinds = {module.kind for module in m.model.modules() if isinstance(module, QuantisedLinear)}
    return ", ".join([str(m.dtype).removeprefix("torch."), *sorted(kinds)])


def remarks(a: Loaded, b: Loaded) -> Iterator[str]:
    """What to know about the tokens that both are fed."""
    if a.tokenizer is None and b.tokenizer is not None:
        yield "ids of b"
    elif b.tokenizer is not None and a.tokenizer.get_vocab() != b.tokenizer.get_vocab():
        yield "other vocabulary"


def sent_others(a: Loaded, b: Loaded, own_a: dict[str, Kept], own_b: dict[str, Kept]) -> set[str]:
    """Calls in experts that both models have, and that are sent other numbers of tokens in them, or none in one of them."""
    both = {role for role in a.components.keys() & b.components.keys() if ".experts." in role}
    of_a, of_b = ({name: call.states[0].shape[-1] for name, call in own.items() if role_of(name) in both} for own in (own_a, own_b))
    one_sided = of_a.keys() ^ of_b.keys()
    return one_sided | {role for role in of_a.keys() & of_b.keys() if of_a[role] == of_b[role] and other_shapes(own_a[role], own_b[role])}


def role_of(call: str) -> str:
    """The role in a call's name."""
    return call.partition("#")[0]


def in_turn(own_a: Mapping[str, Kept], own_b: Mapping[str, Kept]) -> dict[str, str]:
    """Name of a call of B → that of A's in the same turn of the blocks, where B's blocks have other names and run equally often."""
    blocks_a, blocks_b = ([name for name in own if BLOCK.fullmatch(name)] for own in (own_a, own_b))
    if len(blocks_a) != len(blocks_b) or set(blocks_a) == set(blocks_b):
        return {}
    places = {place: name for name, place in turns_of(own_a, blocks_a).items()}
    return {name: places.get(place, name) for name, place in turns_of(own_b, blocks_b).items()}


def turns_of(own: Mapping[str, Kept], blocks: Sequence[str]) -> dict[str, tuple]:
    """Name of every call → the turn of the block that it is in, which part of that it is, and which call of it there."""
    found, seen = {}, Counter()
    for name, call in own.items():
        block = name if name in blocks else next((outer for outer in call.around if outer in blocks), None)
        part = role_of(name) if block is None else role_of(name).removeprefix(role_of(block))
        place = block and blocks.index(block), part
        seen[place] += 1
        found[name] = (*place, seen[place])
    return found


def not_compared(m: Loaded, ids_1T: Tensor, shared: Iterable[str]) -> tuple[str, ...]:
    """Names of the modules whose weights the model uses outside of all components that were compared, blocks as a whole left out."""
    modules = m.components
    parts = {role: modules[role] for role in map(role_of, shared) if role in modules and not BLOCK.fullmatch(role)}
    return unnamed(m.model, parts, lambda: own_logits(m.model, ids_1T.to(m.device)))


@torch.no_grad()
def run(m: Loaded, ids_1T: Tensor, roles: Iterable[str], given: Callable, made: Callable[[str, Tensor], None]) -> Tensor:
    """Runs a model, and gives its logits [1, T, V].

    ``given(call, states)`` is told each call's hidden states, and may return others, which then take their place; ``made`` is told
    what the component made of them.
    """

    def before(call: Call) -> tuple[tuple, dict] | None:
        own = states(call)
        other = given(call, own) if own else None
        new = {} if other is None else {id(old): tensor for old, tensor in zip(own, other, strict=False)}
        return (substituted(call.args, new), substituted(call.options, new)) if new else None

    def after(call: Call) -> None:
        if (tensor := first_numbers(call.output)) is not None:
            made(call, tensor)

    modules = m.components
    with Watch({role: modules[role] for role in roles}, before, after):
        return own_logits(m.model, ids_1T.to(m.device))


def record(m: Loaded, ids_1T: Tensor, keep: Container[str] | None = None) -> tuple[dict[str, Kept], Tensor]:
    """Every call of a role by its name, in the order in which they begin, and the logits [1, T, V].

    The tensors are kept of the calls in ``keep``, of all by default; of others their form.
    """
    calls: dict[str, Kept] = {}

    def copied(name: str, tensor: Tensor) -> Tensor:
        return tensor.clone() if keep is None or name in keep else tensor.to("meta")

    def given(call: Call, tensors: list[Tensor]) -> None:
        calls[call.name] = Kept([copied(call.name, tensor) for tensor in tensors], around=call.around)

    def made(call: Call, output: Tensor) -> None:
        if call.name in calls:
            calls[call.name].output = copied(call.name, output)

    logits_1TV = run(m, ids_1T, m.components, given, made)
    return {name: call for name, call in calls.items() if call.output is not None}, logits_1TV


def compare(
    m: Loaded, own: dict[str, Kept], ids_1T: Tensor, forced: Sequence[str], inside: Sequence[str], turns: Mapping[str, str] | None = None
) -> Rows:
    """Runs a model with the inputs of the ``forced`` calls replaced by A's, and compares those ``inside`` a scope, and the logits.

    ``turns`` says which call of A's another one of the model's stands for (``in_turn``).
    """
    found: Rows = {}
    turns = turns or {}
    wanted = {*forced, *inside}

    def given(call: Call, tensors: list[Tensor]) -> list[Tensor] | None:
        name = turns.get(call.name, call.name)
        if name not in wanted or not same_form(own[name].states[0], tensors[0]):  # an expert that was sent other tokens
            return None
        if name in inside:
            found[name, "input"] = differences(own[name].states[0], tensors[0])
        return [fitted(a, b) for a, b in zip(own[name].states, tensors, strict=False)] if name in forced else None

    def made(call: Call, output: Tensor) -> None:
        name = turns.get(call.name, call.name)
        if name in inside and same_form(own[name].output, output):
            found[name, "output"] = differences(own[name].output, output)

    roles = dict.fromkeys(role_of(name) for name in [*wanted, *(other for other, name in turns.items() if name in wanted)])
    components = m.components
    logits_1TV = run(m, ids_1T, [role for role in roles if role in components], given, made)
    found["logits", "input"] = differences(own["logits"].states[0], logits_1TV[..., : own["logits"].states[0].shape[-1]])
    return found


def rounding_of(
    a: Loaded, dtype_b: torch.dtype, own: dict[str, Kept], ids_1T: Tensor, forced: Sequence[str], inside: Sequence[str]
) -> list[Rows]:
    """How far A is from itself in float64, and in B's precision where that is another one.

    Raises:
        ValueError: it does not run in one of them.
    """
    found = []
    for dtype in dict.fromkeys((torch.float64, dtype_b)):
        if dtype == a.dtype and dtype != torch.float64:
            continue
        lifted = LiftedCasts() if dtype == torch.float64 else nullcontext()
        try:
            with in_dtype(a.model, dtype, constants=False), plain_experts(a.model), lifted:
                found.append(compare(a, own, ids_1T, forced, inside))
        except (RuntimeError, TypeError, ValueError) as error:  # what torch raises where dtypes do not fit
            name = str(dtype).removeprefix("torch.")
            if a.split.per_tensor:
                raise ValueError(
                    f"{a.origin.name} is quantised by torch and does not run in {name}, by which rounding is measured: "
                    "give the model as it is before quantize_dynamic, or diverge that one, named first, from this one"
                ) from error
            raise ValueError(
                f"{a.origin.name} does not run in {name}, by which rounding is measured ({error}): name the other model first"
            ) from error
    return found


def squeezed(tensor: Tensor) -> list[int]:
    """A shape without its ones: [1, T, D] and [T, D] hold the same."""
    return [n for n in tensor.shape if n != 1]


def same_form(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold numbers of the same kind for the same places."""
    return squeezed(a) == squeezed(b) and a.is_floating_point() == b.is_floating_point()


def fitted(a: Tensor, b: Tensor) -> Tensor:
    """A copy of A's tensor in the form that B has: B may write into what it is given."""
    return torch.empty_like(b).copy_(a.reshape(b.shape))


def other_shapes(a: Kept, b: Kept) -> str | None:
    """ "1×8×64 ≠ 1×8×128" where the tensors of two calls cannot be compared; else None."""
    for x, y in ((a.states[0], b.states[0]), (a.output, b.output)):
        if not same_form(x, y):
            return " ≠ ".join("×".join(map(str, t.shape)) for t in (x, y))
    return None


def differences(a: Tensor, b: Tensor) -> Tensor:
    """The largest |a − b| of each row [R], where equal numbers (infinite ones too) differ by 0 and a NaN by infinity."""
    rows_a, rows_b = by_row(a, a), by_row(b.reshape(a.shape).to(a.device), a)
    at_once = max(1, AT_ONCE // rows_a.shape[-1])
    return torch.cat([gaps(x, y) for x, y in zip(rows_a.split(at_once), rows_b.split(at_once), strict=True)])


def gaps(a: Tensor, b: Tensor) -> Tensor:
    """``differences`` of two matrices."""
    gap = torch.where(a == b, 0.0, (a.double() - b.double()).abs())
    return gap.nan_to_num(nan=torch.inf, posinf=torch.inf).amax(-1)


def by_row(values: Tensor, tensor: Tensor) -> Tensor:
    """Values of a tensor as [R, last dimension]; ids and positions are rows of one number."""
    return values.reshape(-1, tensor.shape[-1] if tensor.is_floating_point() else 1)


def worst(gap_R: Tensor, own: Sequence[Tensor], tensor: Tensor, step: float, length: int) -> Gap:
    """The row of a tensor of A's whose difference is the largest by the measure of its expected rounding.

    ``own`` are A's differences [R] from itself. Rows are judged one by one, because some tokens have far larger numbers than
    others. A row may agree with itself by chance, so its rounding is at least what nine of ten rows keep to, in proportion to
    their largest numbers, and half a ``step``.
    """
    rounding_R = torch.stack([torch.zeros_like(gap_R), *own]).amax(0)
    if tensor.is_floating_point():
        low_R, high_R = by_row(tensor, tensor).aminmax(dim=-1)
        size_R = torch.maximum(-low_R, high_R).double().nan_to_num(nan=torch.inf)
        size_R = torch.maximum(size_R, size_R.median())
        usual = (rounding_R / size_R).nan_to_num(nan=0.0).kthvalue(math.ceil(0.9 * len(size_R))).values
        rounding_R = torch.maximum(rounding_R, size_R * max(float(usual), step / 2))
    ratio_R = (gap_R / rounding_R).nan_to_num(nan=0.0, posinf=torch.inf)
    row = int(ratio_R.argmax())
    by_token = length in tensor.shape[:2] and len(gap_R) % length == 0
    return Gap(float(gap_R[row]), float(rounding_R[row]), row // (len(gap_R) // length) if by_token else None)


def parents(own: Mapping[str, Kept], shared: Sequence[str]) -> dict[str, str]:
    """Name of a call → the innermost of the shared ones in which it began; "" for the model itself."""
    known = set(shared)
    return {name: next((outer for outer in reversed(own[name].around) if outer in known), "") for name in shared}


def behind(inside: Sequence[str], role: str) -> tuple[str, ...]:
    """The roles behind which a difference arises that shows before ``role``: all that ran; after a block the block alone."""
    ran = tuple(inside[: inside.index(role)] if role in inside else inside)
    return ran[-1:] if ran and BLOCK.fullmatch(ran[-1]) else ran


def condensed(lines: Iterable[str]) -> tuple[str, ...]:
    """Roles, or lines that begin with one, with those of all layers in one: ``layers.0–23.attn.q``; nothing inside of a listed role."""
    lines = list(lines)
    lines = [line for line in lines if not any(line.startswith(f"{other}.") for other in lines)]
    groups: dict[tuple[str, str], list[int]] = {}
    for line in lines:
        found = re.match(r"(layers\d*\.)(\d+)(.*)", line)
        groups.setdefault((found[1], found[3]) if found else (line, ""), []).extend([int(found[2])] if found else [])
    return tuple(f"{start}{spans(sorted(numbers))}{rest}" for (start, rest), numbers in groups.items())


def margin(logits_V: Tensor) -> float:
    """The gap between the two best logits."""
    best = logits_V.topk(min(2, len(logits_V))).values
    return float(best[0] - best[-1])


def first_flip(a: Loaded, b: Loaded, ids_1T: Tensor, max_new_tokens: int, width: int) -> tuple[int, Flip | None]:
    """How many greedy steps both read the same context, and the first in which they choose differently, tokens as ids.

    ``width`` is the number of tokens that both have logits for.
    """
    for step in range(max_new_tokens):
        sides = [next_logits(m.split, ids_1T.to(m.device))[:width].cpu() for m in (a, b)]
        best = [int(logits_V.argmax()) for logits_V in sides]
        if best[0] != best[1]:
            margins = (float(logits_V[mine] - logits_V[other]) for logits_V, mine, other in zip(sides, best, best[::-1], strict=True))
            return step + 1, Flip(step, *best, *margins)
        ids_1T = torch.cat([ids_1T, ids_1T.new_tensor([[best[0]]])], dim=1)
        limits = [m.context_length for m in (a, b) if m.context_length is not None]
        if best[0] in (*a.stop_ids, *b.stop_ids) or ids_1T.shape[1] > min(limits, default=ids_1T.shape[1]):
            return step + 1, None
    return max_new_tokens, None
