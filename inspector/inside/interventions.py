"""Interventions: change one component's activation while the model runs, and see what becomes of the next token.

Ablation and scaling are those of every study of circuits; patching, one prompt's activation put into the run of another, is
that of Meng et al. 2022 (arXiv 2202.05262) and Wang et al. 2022 (arXiv 2211.00593). They are hooks on modules that are found
by role, removed when their ``with`` block ends, so they nest, and no weight is ever touched:

    with ablate(m, "layers.3.attn.head.2"), scale(m, "layers.0.mlp", 0.5):
        logits = m.split.head(m.split.backbone(ids))

Shape letters: B batch, T tokens, D hidden, H heads, K head width.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..loading.loaded import Loaded, check_loaded
from ..loop.decoding import next_logits
from ..models import Routing
from ..parts.errors import InvariantError
from ..parts.limits import head_number, is_known
from ..parts.roles import fit, some_of
from ..parts.splitting import probe_ids
from ..parts.watching import Call, Watch, apart, first_numbers, substituted, unwatched
from ..records.effects import Effect, Intervention, Shift
from .attention import SeenAttention
from .positions import Positions, Reading, Site, surroundings

LISTED = 8  # tokens of a distribution that an effect lists


class Acted(Counter):
    """Role → number of positions at which its activation became another in the last run.

    A role that is not in it was not run, or is an expert that none of the positions was sent to. ``calls`` says how often each was
    run: all calls of a component are changed, and the positions are those of the last one.
    """

    def __init__(self):
        super().__init__()
        self.calls = Counter()


def head_count(model: nn.Module, o: nn.Module) -> tuple[int, int]:
    """(H, K): the number of attention heads that the model states, and how many columns of attn.o's input each of them has.

    Raises:
        ValueError: it does not say, or the input's width is no multiple of it.
    """
    heads = head_number(model)
    weight = max(o.parameters(), key=Tensor.dim)
    width = weight.shape[0 if isinstance(o, Conv1D) else -1]
    if heads is None or width % heads:
        raise ValueError(f"{type(model).__name__} does not say how many heads share the {width} columns of its attn.o: take attn whole")
    return heads, width // heads


@torch.no_grad()
def head_columns(m: Loaded, modules: Mapping[str, nn.Module]) -> dict[str, list[slice] | ValueError]:
    """Role of every attn.o → which columns of what it is given each head makes; or why that cannot be told.

    The configuration of a model of transformers, or of ours, tells how many heads there are, side by side. In others they are counted
    where their weights are computed (``attention.SeenAttention``), and each is multiplied by a number of its own: the columns that are
    multiplied alike are its own.
    """
    found: dict[str, list[slice] | ValueError] = {}
    for role in [role for role in modules if role.endswith(".attn.o")]:
        try:
            heads, K = head_count(m.model, modules[role])
            found[role] = [slice(h * K, (h + 1) * K) for h in range(heads)]
        except ValueError as error:
            found[role] = error
    own = not is_known(m.model)  # a user's model may say a number, and not give its heads side by side
    without = {role: modules[role] for role, columns in found.items() if own or isinstance(columns, ValueError)}
    for role in without.keys() - (multiplied := multiplied_heads(m, without) if without else {}).keys():
        found[role] = ValueError(
            f"{m.origin.name} uses {role} without running it as a module: its heads cannot be told apart; take attn whole"
        )
    for role, (plain_RW, multiplied_RW, heads) in multiplied.items():
        if not heads:  # no weights were seen: then it stays with what the configuration does not say
            continue
        if (columns := columns_of(plain_RW, multiplied_RW, heads)) is None:
            found[role] = ValueError(f"{role} of {m.origin.name} is not given the outputs of {heads} heads side by side: take attn whole")
        else:
            found[role] = columns
    return found


def multiplied_heads(m: Loaded, outs: Mapping[str, nn.Module]) -> dict[str, tuple[Tensor, Tensor, int]]:
    """Role of an attn.o → what it is given [R, W], the same where head h of its attention is multiplied by h + 2, and how many there are.

    In the second pass each gets what it was given in the first one, so that the attentions behind it read the same.
    """
    ids_1T = probe_ids(m.model)
    plain: dict[str, Tensor] = {}
    multiplied: dict[str, tuple[Tensor, Tensor, int]] = {}
    counted = 0

    def keep(call: Call) -> None:
        plain[call.name] = activation(call.given).clone()

    def compare(call: Call) -> tuple[tuple, dict]:
        nonlocal counted
        given, own = activation(call.given), plain[call.name]
        multiplied.setdefault(call.role, (own.flatten(0, -2), given.flatten(0, -2).clone(), counted))
        counted = 0
        return substituted(call.args, {id(given): own}), substituted(call.options, {id(given): own})

    def multiply(weights_HTT: Tensor, by: str) -> Tensor | None:
        nonlocal counted
        if by == "shares":
            return None
        factors_H = torch.arange(counted, counted + len(weights_HTT)) + 2.0
        counted += len(weights_HTT)
        return factors_H

    with unwatched():  # by other interventions that are going on
        with Watch(outs, keep):
            next_logits(m.split, ids_1T)
        with Watch(outs, compare), SeenAttention(ids_1T.shape[1], multiply):
            next_logits(m.split, ids_1T)
    return multiplied


def columns_of(plain_RW: Tensor, multiplied_RW: Tensor, heads: int) -> list[slice] | None:
    """The columns of each head, where every column of the one is that of the other times its head's factor, which is h + 2; else None."""
    plain_RW, multiplied_RW = plain_RW.double(), multiplied_RW.double()
    factors_W = (plain_RW * multiplied_RW).sum(0) / plain_RW.square().sum(0)
    if not factors_W.isfinite().all() or not torch.allclose(multiplied_RW, plain_RW * factors_W.round(), rtol=1e-2, atol=1e-5):
        return None
    found = []
    for h in range(heads):
        places = (factors_W.round() == h + 2).nonzero().flatten().tolist()
        step = places[1] - places[0] if len(places) > 1 else 1
        if len(places) * heads != len(factors_W) or places != list(range(places[0], places[-1] + 1, step)):
            return None
        found.append(slice(places[0], places[-1] + 1, step))
    return found or None


def activation(output: object) -> Tensor:
    """The activation in what a module returned. Raises ``ValueError`` where there is none."""
    if isinstance(output, Routing):
        raise ValueError("a gate gives a choice of experts, which is no activation: change the experts, such as layers.0.mlp.experts.1")
    found = first_numbers(output)
    if found is None:
        raise ValueError(f"a component gives {type(output).__name__}, which is no activation: choose a component that gives numbers")
    return found


def sites(m: Loaded, pattern: str) -> list[Site]:
    """The places that a role, a head of attention (``layers.3.attn.head.2``) or a glob (``layers.*.mlp``) names.

    Globs are those of ``roles.chosen``.

    Raises:
        ValueError: there is none; some that there are, are named.
    """
    check_loaded(m)
    modules = {role: module for role, module in m.modules.items() if not isinstance(module, (nn.ModuleList, nn.ModuleDict))}
    around = surroundings(modules)
    found = [Site(role, module, around(role)) for role, module in modules.items() if fit(pattern, role)]
    if ".head." in pattern or not found:  # heads are no modules: they are looked for where the pattern asks for them
        heads, failed = all_heads(m, modules, around(""))
        found += [site for site in heads if fit(pattern, site.role)]
        if not found and ".head." in pattern and failed:
            raise failed[0]
        if not found:
            raise ValueError(f"{m.origin.name} has no role {pattern!r}: it has {some_of([*modules, *(site.role for site in heads)])}")
    return sorted(found, key=lambda site: in_order(site.role))


def in_order(role: str) -> list[tuple[int, int | str]]:
    """A key that sorts roles by layer: their numbers as numbers."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in role.split(".")]


def all_heads(m: Loaded, modules: dict[str, nn.Module], around: dict[str, nn.Module]) -> tuple[list[Site], list[ValueError]]:
    """The heads of every attention whose number of heads is known; of others why it is not."""
    found: list[Site] = []
    failed: list[ValueError] = []
    for role, columns in head_columns(m, modules).items():
        if isinstance(columns, ValueError):
            failed.append(columns)
        else:
            found += [Site(f"{role.removesuffix('.o')}.head.{h}", modules[role], around, of_head) for h, of_head in enumerate(columns)]
    return found, failed


@contextmanager
def changed(places: Sequence[Site], change: Callable[[Reading], Tensor | None], position: Sequence[int] | None = None) -> Iterator[Acted]:
    """While it is active, every place's activation x is ``change(reading of x)``; with ``position`` at these alone.

    None leaves it as it is. What the model is handed is a copy, which it may write into: ``change`` may give what it keeps.
    Gives what has acted.
    """
    acted, sites_by_role = Acted(), {site.role: site for site in places}
    positions = Positions(places)

    def new(site: Site, old: Tensor) -> Tensor | None:
        reading = positions.reading(site.role, site.module, old)
        acted.calls[site.role] += 1
        result = change(reading)
        if position is not None and result is not None:
            here = reading.at(position)
            result = torch.where(here, result, old) if here.any() else None
        if result is None:
            return None
        acted[site.role] = reading.count(result != old)
        return torch.empty_like(old).copy_(result)

    def before(call: Call) -> tuple[tuple, dict] | None:
        positions.begin(call)
        site = sites_by_role.get(call.role)
        if site is None or site.columns is None:
            return None
        whole = activation(call.given)
        if (result := new(site, whole[..., site.columns])) is None:
            return None
        mixed = whole.clone()
        mixed[..., site.columns] = result
        return substituted(call.args, {id(whole): mixed}), substituted(call.options, {id(whole): mixed})

    def after(call: Call) -> object:
        site = sites_by_role.get(call.role)
        if site is None or site.columns is not None:
            return None
        old = activation(call.output)
        result = new(site, old)
        return None if result is None else substituted(call.output, {id(old): result})

    with Watch(positions.parts | {site.role: site.module for site in places}, before, after):
        yield acted


def checked(kind: str, role: str, value: str | float, position: int | Sequence[int] | None) -> list[int] | None:
    """The positions where alone an intervention acts. Raises ``ValueError`` as ``Intervention.checked`` does, before anything runs."""
    position = position.tolist() if isinstance(position, Tensor) else position
    single = position is None or isinstance(position, str) or not isinstance(position, Iterable)
    positions = [position] if single else list(position)
    if not positions:
        raise ValueError(f"position {position}: give at least one, or leave it out")
    for one in positions:
        Intervention(kind, role, value, one).checked()
    return None if position is None else positions


def ablate(m: Loaded, role: str, fill: str = "zero", position: int | Sequence[int] | None = None):
    """A context in which components give nothing: zeros, or at every position the mean of what they give over the positions.

    A mean ablation keeps what the component says whatever the token, and removes what it says about this one; in it earlier
    positions take part in later ones' mean, and later ones in earlier ones'. Of an expert it is that over the tokens sent to it.

    Args:
        m: the model.
        role: one, a head, or a glob, as ``sites`` reads it.
        fill: "zero" or "mean".
        position: where alone it acts, one or several; everywhere by default.

    Raises:
        ValueError: there is no such role or fill.
    """
    positions = checked("ablate", role, fill, position)
    fills = {"zero": lambda reading: torch.zeros_like(reading.x), "mean": Reading.mean}
    return changed(sites(m, role), fills[fill], positions)


def scale(m: Loaded, role: str, factor: float, position: int | Sequence[int] | None = None):
    """A context in which what components give is multiplied by a number. Arguments as in ``ablate``.

    Raises:
        ValueError: there is no such role, or the factor is not finite.
    """
    positions = checked("scale", role, factor, position)
    return changed(sites(m, role), lambda reading: reading.x * factor, positions)


def patch(m: Loaded, role: str, ids: Sequence[int] | Tensor, position: int | Sequence[int] | None = None):
    """A context in which components give what they gave for other token ids, read when the context is made.

    Prompts of one length are patched position by position; of prompts that differ in length the last position alone is,
    each counted from its own end: nothing says which of the others belong together. ``position`` -2 is the last but one.
    An expert, which gets some of the tokens, is patched at the positions that both prompts send to it. Of a component that runs several
    times, each call gets what the same call gave for the other tokens.

    Args:
        m: the model.
        role: as in ``ablate``.
        ids: the tokens whose activations are put in; [B, T] for the rows of a batch of that size.
        position: where alone it acts, one or several; everywhere by default.

    Raises:
        ValueError: there is no such role; it was not run for these ids; or, when it acts, what it gives cannot be told by position.
    """
    positions = checked("patch", role, "", position)
    places = sites(m, role)
    source, turns = readings(m, places, ids), Counter()

    def put_in(own: Reading) -> Tensor | None:
        if own.role not in source:
            return None
        given = source[own.role][turns[own.role] % len(source[own.role])]
        turns[own.role] += 1
        if own.length != given.length and positions not in (None, [-1]):
            raise ValueError(
                f"position {position}: the prompts are {given.length} and {own.length} tokens long: "
                "only the last position, -1, is patched between prompts of different lengths"
            )
        return own.patched(given)

    return changed(places, put_in, positions)


def activations(m: Loaded, places: Sequence[Site], ids: Sequence[int] | Tensor) -> dict[str, Tensor]:
    """Role → what stands at each place while the model reads the ids, [T] or [B, T]: [B, T, D], of a head [B, T, K].

    Raises:
        ValueError: a place that the model does not come by, or several times; or the ids are none of a prompt's.
    """
    found = readings(m, places, ids)
    if several := next((role for role, calls in found.items() if len(calls) > 1), None):
        raise ValueError(f"{m.origin.name} runs {several} several times for one token: there is no one activation to take from it")
    return {role: calls[0].x for role, calls in found.items()}


@torch.no_grad()
def readings(m: Loaded, places: Sequence[Site], ids: Sequence[int] | Tensor) -> dict[str, list[Reading]]:
    """``activations`` of every call, with the positions that they are of. Of several experts some may have no token, and are left out."""
    found: dict[str, list[Reading]] = {}

    def keep(reading: Reading) -> None:
        found.setdefault(reading.role, []).append(replace(reading, x=reading.x.clone()))  # a model may go on writing into its own

    try:
        rows_BT = torch.atleast_2d(torch.as_tensor(ids))
    except (TypeError, ValueError, RuntimeError):
        rows_BT = []
    ids_BT = torch.cat([m.prompt(row_T) for row_T in rows_BT] or [m.prompt(ids)])  # which says what is wrong with them
    with changed(places, keep):
        next_logits(m.split, ids_BT)
    missing = [site.role for site in places if site.role not in found]
    if wrong := next((role for role in missing if ".experts." not in role or not found), None):
        raise ValueError(never_run(m, wrong, "the prompt that is put in"))
    return found


def never_run(m: Loaded, role: str, prompt: str = "this prompt") -> str:
    """Says that a role's module is not called, so that nothing can be changed there."""
    if ".experts." in role:
        return f"no token of {prompt} goes to {role} of {m.origin.name}: nothing can be changed there; inspector trace shows who goes where"
    return f"{m.origin.name} uses {role} without running it as a module: nothing can be changed there; choose the component around it"


def applied(m: Loaded, what: Intervention, sources: dict[str, Sequence[int]]):
    """The context of an intervention; ``sources`` says for a patch's value which token ids it stands for."""
    if what.kind == "ablate":
        return ablate(m, what.role, what.value, what.position)
    if what.kind == "scale":
        return scale(m, what.role, what.value, what.position)
    return patch(m, what.role, sources[what.value], what.position)


def effect(m: Loaded, ids: Sequence[int], interventions: Sequence[Intervention], sources: dict[str, Sequence[int]] | None = None) -> Effect:
    """What interventions, all at once, do to the distribution of the next token after ``ids``.

    Activations for patches are read from the model as it is. Two things are proved on the way: that hooks by themselves
    change no more than last bits (``watching.apart``), and that nothing is left of them afterwards.

    Args:
        m: the model.
        ids: the tokens of the prompt.
        interventions: in the order in which they act where several meet.
        sources: for a patch's value the token ids of the other prompt.

    Raises:
        ValueError: no intervention, or one that says nothing (``Intervention.checked``); no such role, a component that is not
            run, or an expert that no position is sent to; a patch without its source.
        InvariantError: one of the two proofs fails, or the model gives NaN by itself.
    """
    check_loaded(m)
    wanted, sources = requested(interventions, sources), sources or {}
    ids_1T = m.prompt(ids)
    places = list({site.role: site for what in wanted for site in sites(m, what.role)}.values())
    before_V = next_logits(m.split, ids_1T).clone()  # a model may write the next pass's into the same memory
    if before_V.isnan().any():
        raise InvariantError(f"{m.origin.name} gives NaN here by itself: inspector trace shows where it begins")
    with changed(places, lambda reading: reading.x) as run:
        hooked_V = next_logits(m.split, ids_1T).clone()
    contexts = [applied(m, what, sources) for what in wanted]  # patches are read here, before anything is changed
    with ExitStack() as stack:
        acted = [stack.enter_context(context) for context in contexts]
        after_V = next_logits(m.split, ids_1T).clone()
    again_V = next_logits(m.split, ids_1T)
    differ = apart(m.origin.name, before_V, hooked_V, lambda: again_V)  # hooks may lead to other last bits, not to other numbers
    if not torch.equal(before_V, again_V):
        raise InvariantError(f"{m.origin.name} gives other logits after the hooks are gone: the intervention has left something behind")
    roles = {site.role: max(a[site.role] for a in acted) for site in places}
    changed_roles = [role for role in roles if any(role in a for a in acted)]
    if missing := next((role for role in roles if role not in changed_roles and not (".experts." in role and changed_roles)), None):
        raise ValueError(
            nothing_sent(m, missing, wanted) if missing in run else never_run(m, missing)
        )  # of several experts some may have none
    several = {role: run.calls[role] for role in roles if run.calls[role] > 1}
    result = replace(shifted(m, ids, before_V, after_V), interventions=tuple(wanted), roles=roles, calls=several)
    return replace(result, same_hooked=torch.equal(before_V, hooked_V), same_afterwards=True, apart=differ)


def requested(interventions: Sequence[Intervention], sources: dict[str, Sequence[int]] | None) -> list[Intervention]:
    """The interventions that ``effect`` is asked for. Raises ``ValueError`` as it does, for what shows without a model."""
    if sources is not None and not isinstance(sources, Mapping):
        raise ValueError(f"sources={sources!r:.40}: give a dictionary from a patch's value to its ids")
    if isinstance(interventions, Intervention):
        raise ValueError("one intervention where several may be: give a list, [Intervention(…)]")
    if not isinstance(interventions, Iterable):
        raise ValueError(f"interventions={interventions!r:.40}: give a list, [Intervention(…)]")
    wanted = list(interventions)
    if not wanted:
        raise ValueError("nothing to change: give --ablate, --scale or --patch")
    for what in wanted:
        if not isinstance(what, Intervention):
            raise ValueError(f"{what!r} is no intervention: give Intervention(kind, role, value)")
        what.checked()
        if what.kind == "patch" and what.value not in (sources or {}):
            raise ValueError(f"patch {what.role} from {what.value!r}: there are no ids for it: give sources={{{what.value!r}: ids}}")
    return wanted


def nothing_sent(m: Loaded, role: str, interventions: Sequence[Intervention]) -> str:
    """Says that a component which runs gets none of the positions where it would be changed, as experts may, and the head."""
    at = sorted({what.position for what in interventions if what.position is not None})
    where = f"position {', '.join(map(str, at))} is not" if at else "no position is"
    both = " by both prompts" if any(what.kind == "patch" for what in interventions) else ""
    remedy = "inspector trace shows who goes where" if ".experts." in role else "it is given the last position alone"
    return f"{where} sent to {role} of {m.origin.name}{both}: nothing can be changed there; {remedy}"


def shifted(m: Loaded, ids: Sequence[int], before_V: Tensor, after_V: Tensor) -> Effect:
    """Two distributions of the next token side by side, as an effect of nothing yet. Raises ``ValueError`` where the second is none."""
    if not after_V.isfinite().any() or after_V.isnan().any():
        raise ValueError("with this intervention the logits are no numbers: change less")
    before, after = (torch.log_softmax(logits.double().cpu(), -1) for logits in (before_V, after_V))
    moved = (after.exp() - before.exp()).abs()
    k = min(LISTED, len(moved))
    listed = {int(i) for order in (before, after, moved) for i in order.topk(k).indices}
    shifts = [
        Shift(m.texts.token(i), float(before[i].exp()), float(after[i].exp()), float(before_V[i]), float(after_V[i]))
        for i in sorted(listed, key=lambda i: (-moved[i], i))
    ]
    kl = torch.where(before.exp() > 0, before.exp() * (before - after), 0.0).sum()
    return Effect(m.origin.name, m.tokens(ids), (), {}, tuple(shifts), max(0.0, float(kl)), False, False, notices=m.notices)
