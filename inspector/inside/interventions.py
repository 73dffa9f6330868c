"""Interventions: change one component's activation while the model runs, and see what becomes of the next token.

Ablation and scaling are those of every study of circuits; patching, one prompt's activation put into the run of another, is
that of Meng et al. 2022 (arXiv 2202.05262) and Wang et al. 2022 (arXiv 2211.00593). They are hooks on modules that are found
by role, removed when their ``with`` block ends, so they nest, and no weight is ever touched:

    with ablate(m, "layers.3.attn.head.2"), scale(m, "layers.0.mlp", 0.5):
        logits = m.split.head(m.split.backbone(ids))

Shape letters: B batch, T tokens, D hidden, H heads, K head width.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..loading.loaded import Loaded
from ..loop.decoding import next_logits
from ..models import Routing
from ..parts.errors import InvariantError
from ..parts.roles import fit
from ..parts.watching import Call, Watch, apart, first_tensor, substituted
from ..records.effects import Effect, Intervention, Shift

HEAD = re.compile(r"(.+\.attn)\.head\.(\d+)")
LISTED = 8  # tokens of a distribution that an effect lists


@dataclass(frozen=True)
class Site:
    """A place whose activation can be read and changed: a module's output, or a head's columns of what attn.o is given."""

    role: str
    module: nn.Module
    columns: slice | None = None


class Acted(Counter):
    """Role → number of positions at which its activation became another in the last run; a role that is not in it was never run."""


def head_count(model: nn.Module, o: nn.Module) -> tuple[int, int]:
    """(H, K): the number of attention heads by the configuration, and how many columns of attn.o's input each of them has.

    Raises:
        ValueError: the configuration does not say, or the input's width is no multiple of it.
    """
    config = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    heads = None
    with suppress(Exception):  # transformers has configurations that raise where layers differ in their heads
        heads = config["n_heads"] if isinstance(config, dict) else config.num_attention_heads
    weight = max(o.parameters(), key=Tensor.dim)
    width = weight.shape[0 if isinstance(o, Conv1D) else -1]
    if not isinstance(heads, int) or width % heads:
        raise ValueError(f"{type(model).__name__} does not say how many heads share the {width} columns of its attn.o: take attn whole")
    return heads, width // heads


def activation(output: object) -> Tensor:
    """The activation in what a module returned. Raises ``ValueError`` where there is none."""
    if isinstance(output, Routing):
        raise ValueError("a gate gives a choice of experts, which is no activation: change the experts, such as layers.0.mlp.experts.1")
    found = first_tensor(output)
    if found is None:
        raise ValueError(f"a component gives {type(output).__name__}, which is no activation: choose a component that gives a tensor")
    return found


def sites(m: Loaded, pattern: str) -> list[Site]:
    """The places that a role, a head of attention (``layers.3.attn.head.2``) or a glob (``layers.*.mlp``) names.

    Globs are those of ``roles.chosen``.

    Raises:
        ValueError: there is none; some that there are, are named.
    """
    modules = m.modules
    found = [Site(role, module) for role, module in modules.items() if fit(pattern, role) and not isinstance(module, nn.ModuleList)]
    # heads are no modules: they are looked for where the pattern asks for them
    for role in [role for role in modules if role.endswith(".attn.o") and ".head." in pattern]:
        heads, K = head_count(m.model, modules[role])
        named = {f"{role.removesuffix('.o')}.head.{h}": slice(h * K, (h + 1) * K) for h in range(heads)}
        found += [Site(name, modules[role], columns) for name, columns in named.items() if fit(pattern, name)]
    if not found:
        raise ValueError(f"{m.origin.name} has no role {pattern!r}: {hint(m, modules)}")
    return sorted(found, key=lambda site: in_order(site.role))


def in_order(role: str) -> list[tuple[int, int | str]]:
    """A key that sorts roles by layer: their numbers as numbers."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in role.split(".")]


def hint(m: Loaded, modules: dict[str, nn.Module]) -> str:
    """The roles that a model has, in one line: those of its first layer stand for all."""
    layers = sum(bool(re.fullmatch(r"layers\.\d+", role)) for role in modules)
    said = f"it has layers.0 to layers.{layers - 1}" if layers else "it has no layers whose parts are known"
    inside = sorted({role.split(".", 2)[2] for role in modules if role.startswith("layers.0.") and role.count(".") == 2})
    if "layers.0.attn.o" in modules:
        with suppress(ValueError):
            inside.append(f"attn.head.0 to attn.head.{head_count(m.model, modules['layers.0.attn.o'])[0] - 1}")
    outside = [role for role in ("embed", "embed_pos", "final_norm", "head") if role in modules]
    return said + (f", with {', '.join(inside)} in them" if inside else "") + f"; and {', '.join(outside)}"


@contextmanager
def changed(
    places: Sequence[Site], change: Callable[[Site, Tensor], Tensor], position: int | Sequence[int] | None = None
) -> Iterator[Acted]:
    """While it is active, every place's activation x [B, T, …] is ``change(place, x)``; with ``position``, one or several, there alone.

    Gives what has acted.
    """
    acted, sites_by_role = Acted(), {site.role: site for site in places}

    def new(site: Site, old: Tensor) -> Tensor:
        result = change(site, old)
        if position is not None:
            only = [position] if isinstance(position, int) else list(position)
            wrong = next((p for p in only if old.dim() < 3 or not -old.shape[1] <= p < old.shape[1]), None)
            if wrong is not None:
                raise ValueError(f"{site.role} has no position {wrong}: its activation is of shape {tuple(old.shape)}")
            everywhere, result = result, old.clone()
            result[:, only] = everywhere[:, only]
        changed_BT = (result != old).any(-1)
        acted[site.role] = int((changed_BT.any(0) if old.dim() > 2 else changed_BT).sum())
        return result

    def before(call: Call) -> tuple[tuple, dict] | None:
        site = sites_by_role[call.role]
        if site.columns is None:
            return None
        mixed = call.args[0].clone()
        mixed[..., site.columns] = new(site, call.args[0][..., site.columns])
        return (mixed, *call.args[1:]), call.options

    def after(call: Call) -> object:
        site = sites_by_role[call.role]
        if site.columns is not None:
            return None
        old = activation(call.output)
        return substituted(call.output, {id(old): new(site, old)})

    with Watch({site.role: site.module for site in places}, before, after):
        yield acted


def ablate(m: Loaded, role: str, fill: str = "zero", position: int | Sequence[int] | None = None):
    """A context in which components give nothing: zeros, or at every position the mean of what they give over the positions.

    A mean ablation keeps what the component says whatever the token, and removes what it says about this one; in it earlier
    positions take part in later ones' mean, and later ones in earlier ones'.

    Args:
        m: the model.
        role: one, a head, or a glob, as ``sites`` reads it.
        fill: "zero" or "mean".
        position: where alone it acts, one or several; everywhere by default.

    Raises:
        ValueError: there is no such role or fill.
    """
    fills = {"zero": torch.zeros_like, "mean": mean_over_positions}
    if fill not in fills:
        raise ValueError(f"ablate with {fill!r}: choose zero or mean")
    return changed(sites(m, role), lambda site, x_BTD: fills[fill](x_BTD), position)


def mean_over_positions(x_BTD: Tensor) -> Tensor:
    """At every position the mean over all of them."""
    if x_BTD.dim() < 3:
        raise ValueError(f"an activation of shape {tuple(x_BTD.shape)} has no positions to take a mean over: ablate with zero")
    return x_BTD.mean(dim=1, keepdim=True).expand_as(x_BTD)


def scale(m: Loaded, role: str, factor: float, position: int | Sequence[int] | None = None):
    """A context in which what components give is multiplied by a number. Arguments as in ``ablate``.

    Raises:
        ValueError: there is no such role, or the factor is not finite.
    """
    if not math.isfinite(factor):
        raise ValueError(f"scale {role} by {factor}: give a finite number")
    return changed(sites(m, role), lambda site, x_BTD: x_BTD * factor, position)


def patch(m: Loaded, role: str, ids: Sequence[int] | Tensor, position: int | Sequence[int] | None = None):
    """A context in which components give what they gave for other token ids, read when the context is made.

    Prompts of one length are patched position by position; of prompts that differ in length the last position alone is,
    each counted from its own end: nothing says which of the others belong together. ``position`` -2 is the last but one.

    Args:
        m: the model.
        role: as in ``ablate``.
        ids: the tokens whose activations are put in; [B, T] for the rows of a batch of that size.
        position: where alone it acts, one or several; everywhere by default.

    Raises:
        ValueError: there is no such role; or it was not run for these ids.
    """
    places = sites(m, role)
    source = activations(m, places, ids)

    def put_in(site: Site, old_BTD: Tensor) -> Tensor:
        given = source[site.role]
        if given.shape[1:] == old_BTD.shape[1:]:
            return given.expand_as(old_BTD)
        if old_BTD.dim() < 3 or given.shape[2:] != old_BTD.shape[2:]:
            raise ValueError(f"{site.role} gives {tuple(given.shape)} for the one prompt and {tuple(old_BTD.shape)} for the other")
        if position not in (None, -1):
            raise ValueError(
                f"position {position}: the prompts are {given.shape[1]} and {old_BTD.shape[1]} tokens long: "
                "only the last position, -1, is patched between prompts of different lengths"
            )
        result = old_BTD.clone()
        result[:, -1] = given[:, -1]
        return result

    return changed(places, put_in, position)


@torch.no_grad()
def activations(m: Loaded, places: Sequence[Site], ids: Sequence[int] | Tensor) -> dict[str, Tensor]:
    """Role → what stands at each place while the model reads the ids, [T] or [B, T]: [B, T, D], of a head [B, T, K].

    Raises:
        ValueError: a place that the model does not come by; or the ids are none of a prompt's.
    """
    found: dict[str, Tensor] = {}

    def keep(site: Site, x: Tensor) -> Tensor:
        if site.role in found:
            raise ValueError(f"{m.origin.name} runs {site.role} several times for one token: there is no one activation to take from it")
        found[site.role] = x.clone()  # a model may go on writing into its own
        return x

    with changed(places, keep):
        next_logits(m.split, torch.cat([m.prompt(row_T) for row_T in torch.atleast_2d(torch.as_tensor(ids))]))
    if missing := next((site.role for site in places if site.role not in found), None):
        raise ValueError(never_run(m, missing))
    return found


def never_run(m: Loaded, role: str) -> str:
    """Says that a role's module is not called, so that nothing can be changed there."""
    if ".experts." in role:
        return (
            f"no token of this prompt goes to {role} of {m.origin.name}: nothing can be changed there; inspector trace shows who goes where"
        )
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
        ValueError: no intervention, no such role, or a component that is not run; or one of the two proofs fails.
    """
    if not interventions:
        raise ValueError("nothing to change: give --ablate, --scale or --patch")
    ids_1T = m.prompt(ids)
    before_V = next_logits(m.split, ids_1T)
    places = list({site.role: site for what in interventions for site in sites(m, what.role)}.values())
    with changed(places, lambda site, x: x.clone()):
        hooked_V = next_logits(m.split, ids_1T)
    contexts = [applied(m, what, sources or {}) for what in interventions]  # patches are read here, before anything is changed
    with ExitStack() as stack:
        acted = [stack.enter_context(context) for context in contexts]
        after_V = next_logits(m.split, ids_1T)
    again_V = next_logits(m.split, ids_1T)
    roles = {site.role: max(a[site.role] for a in acted) for site in places}
    ran = [role for role in roles if any(role in a for a in acted)]
    if missing := next((role for role in roles if role not in ran and not (".experts." in role and ran)), None):
        raise ValueError(never_run(m, missing))  # of several experts some may have no token
    result = shifted(m, ids, before_V, after_V)
    result = replace(result, interventions=tuple(interventions), roles=roles)
    result = replace(result, same_hooked=torch.equal(before_V, hooked_V), same_afterwards=torch.equal(before_V, again_V))
    try:  # hooks may lead to other last bits, not to other numbers
        result = replace(result, apart=apart(m.origin.name, before_V, hooked_V, lambda: again_V))
    except InvariantError as error:
        raise ValueError(f"{error}: what the intervention does cannot be told from that") from None
    if not result.same_afterwards:
        raise ValueError(f"{m.origin.name} gives other logits after the hooks are gone: the intervention has left something behind")
    return result


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
    return Effect(m.origin.name, m.tokens(ids), (), {}, tuple(shifts), max(0.0, float(kl)), False, False)
