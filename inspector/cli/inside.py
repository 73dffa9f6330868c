"""The verbs that look inside the backbone, change it, and find where two models part: one thin function each."""

from collections.abc import Callable, Iterator
from dataclasses import make_dataclass, replace
from importlib import import_module
from itertools import chain
from typing import Annotated

import typer
from rich.text import Text

from ..records.effects import FILLS, Intervention
from ..records.inside import Trace
from ..render import effects, parting
from ..render.inside import BELOW, STATISTICS, VIEWS, View, views_below
from ..render.tables import notice
from ..render.text import visible
from .grouping import at_least_one, grouped
from .options import (
    DTYPE_HELP,
    MODEL_HELP,
    QUANTISE_HELP,
    ModelArgument,
    ModelOptions,
    Output,
    PromptArgument,
    PromptOptions,
    SpreadOptions,
    check_quantise,
)
from .waiting import busy, importing


class ChosenView:
    """What is made of the options of the views: they are checked before anything is loaded."""

    def __post_init__(self):
        asked = [f"--{name}" for name, view in VIEWS.items() if view.help and getattr(self, name)]
        if len(asked) > 1:
            raise ValueError(f"{' and '.join(asked)} are two views: give one")
        for name, view in VIEWS.items():
            for option in view.options:
                if name != self.name and getattr(self, option) is not None:
                    shown = "the statistics" if self.name == STATISTICS else f"--{self.name}"
                    remedy = f", or give --{name}" if view.help else ""
                    raise ValueError(f"--{option} has no part in {shown}: leave it out{remedy}")
        _ = self.arguments

    @property
    def name(self) -> str:
        """The view that was asked for, or that of the statistics."""
        return next((name for name, view in VIEWS.items() if view.help and getattr(self, name)), STATISTICS)

    @property
    def arguments(self) -> dict:
        """What was given, as arguments of its function."""
        given = {name: (own, getattr(self, name)) for name, own in VIEWS[self.name].options.items()}
        return {own.argument or name: own.read(value) for name, (own, value) in given.items() if value not in (None, [])}


def options_of(name: str, view: View) -> Iterator[tuple]:
    """The options of a view: that which asks for it, and its own."""
    if view.help:
        yield name, Annotated[bool, typer.Option(f"--{name}", help=view.help)], False
    for option, own in view.options.items():
        yield option, Annotated[own.given | None, typer.Option(metavar=own.metavar, help=own.help)], None


ViewOptions = make_dataclass(
    "ViewOptions", chain.from_iterable(options_of(name, view) for name, view in VIEWS.items()), bases=(ChosenView,), frozen=True
)


def function_of(view: View) -> Callable:
    """The function that computes a view."""
    module, _, name = view.home.rpartition(".")
    return getattr(import_module(f"..inside.{module}", __package__), name)


@grouped()
def trace(
    model: ModelArgument, prompt: PromptArgument = None, *, view: ViewOptions, reading: PromptOptions, how: SpreadOptions, out: Output
) -> None:
    """Look inside the backbone while it reads a prompt: statistics of every component, the logit lens, or attention.

    Of mixtures of experts it shows where each token went, of latent attention what is kept, of multi-token prediction what was foretold.
    """
    t, console, arguments, refused = out.t, out.console, view.arguments, []
    with busy("loading torch …"), importing():
        from ..parts.errors import InvariantError, NoPartError

    m = how.load(model, finite=False)
    out.remarks(*m.notices)
    m, ids = out.read(m, prompt, reading)
    with busy(t("reading the prompt …", "чтение запроса …")):
        result = function_of(VIEWS[view.name])(m, ids, **arguments)
        for name in BELOW if view.name == STATISTICS and not view.role else ():
            try:
                result = replace(result, **{name: function_of(VIEWS[name])(m, ids)})
            except NoPartError:
                pass
            except InvariantError as error:  # the view would show what is not so
                refused.append(str(error))
    console.print(out.fed(model, m, ids, prompt, reading), VIEWS[view.name].show(result, console.width, t))
    if view.name == STATISTICS:
        console.print(*views_below(result, console.width, t))
    for reason in refused:
        out.notices.print(notice([reason], t("Not shown", "Не показано")))
    if view.tensors is not None:
        saved = visible(str(view.tensors))
        console.print(Text(t(f"outputs saved in {saved}", f"выходы сохранены в {saved}")))
    out.write(result)
    if refused or (isinstance(result, Trace) and result.not_finite is not None):
        raise typer.Exit(1)


@grouped()
def contributions(
    model: ModelArgument,
    prompt: PromptArgument = None,
    heads: Annotated[bool, typer.Option("--heads", help="Take every attention apart into its heads.")] = False,
    token: Annotated[
        str | None, typer.Option(metavar="TEXT|ID", help="The token whose logit is explained; the most probable one by default.")
    ] = None,
    top: Annotated[int | None, typer.Option(help="Show the terms that decide most, and the others as one; all by default.")] = None,
    *,
    reading: PromptOptions,
    how: ModelOptions,
    out: Output,
) -> None:
    """What each component writes into the next token's logit: a sum that is checked against the model."""
    at_least_one(top=top)
    t, console = out.t, out.console
    m = how.load(model)
    out.remarks(*m.notices)
    m, ids = out.read(m, prompt, reading)
    with busy(t("summing up …", "сложение …")):
        from ..inside.contributions import contributions as sum_up

        record = sum_up(m, ids, None if token is None else m.token_id(token), heads)
    console.print(out.fed(model, m, ids, prompt, reading))
    console.print(effects.contributions_view(record, console.width, t, top))
    out.write(record)


@grouped()
def intervene(
    model: ModelArgument,
    prompt: PromptArgument = None,
    ablate: Annotated[
        list[str] | None, typer.Option(metavar="ROLE", help="Take a component out, such as layers.3.mlp or layers.*.attn.head.2.")
    ] = None,
    ablate_with: Annotated[str, typer.Option(help="What --ablate puts there: zero, or the mean over the positions.")] = "zero",
    scale: Annotated[list[str] | None, typer.Option(metavar="ROLE=FACTOR", help="Multiply what a component gives.")] = None,
    patch: Annotated[list[str] | None, typer.Option(metavar="ROLE", help="Put in what a component gives for the prompt of --from.")] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="PROMPT", help="Of --patch. If it differs in length, the last position alone is patched."),
    ] = None,
    position: Annotated[
        int | None, typer.Option(help="Change this position alone, counted from 0, or from the end if negative; all by default.")
    ] = None,
    *,
    reading: PromptOptions,
    how: ModelOptions,
    out: Output,
) -> None:
    """Change components while the model runs, and show what becomes of the next token. Each option can be given several times."""
    t, console = out.t, out.console
    wanted = interventions(ablate or [], ablate_with, scale or [], patch or [], source, position)
    m = how.load(model)
    out.remarks(*m.notices)
    sources = {}
    if source is not None:
        m, sources[source] = out.read(m, source, reading)
    m, ids = out.read(m, prompt, reading)
    with busy(t("changing …", "изменение …")):
        from ..inside.interventions import effect

        record = effect(m, ids, wanted, sources)
    console.print(out.fed(model, m, ids, prompt, reading))
    if sources:
        console.print(out.fed("--from", m, sources[source], source, reading))
        if len(sources[source]) != len(ids):
            console.print(
                t(
                    "The prompts differ in length: only their last positions are patched.",
                    "Запросы разной длины: подменяется только последняя позиция.",
                ),
                style="yellow",
            )
    console.print(effects.effect_view(record, t))
    out.write(record)


def interventions(
    ablate: list[str], ablate_with: str, scale: list[str], patch: list[str], source: str | None, position: int | None
) -> list[Intervention]:
    """The interventions that the options of ``intervene`` ask for, ablations first, then scales, then patches.

    Raises:
        ValueError: there are none, or options that do not belong together.
    """
    if ablate_with not in FILLS:  # without --ablate, too
        raise ValueError(f"--ablate-with {ablate_with!r:.60}: choose {' or '.join(FILLS)}")
    if patch and source is None:
        raise ValueError(f"--patch {patch[0]}: give --from PROMPT, the prompt whose activation is put in")
    if source is not None and not patch:
        raise ValueError(f"--from {source!r}: give --patch ROLE, the component that is patched")
    wanted = [Intervention("ablate", role, ablate_with, position) for role in ablate]
    for text in scale:
        role, equals, factor = text.rpartition("=")
        try:
            wanted.append(Intervention("scale", role, float(factor), position))
        except ValueError:
            equals = ""
        if not equals or not role:
            raise ValueError(f"--scale {text!r}: give ROLE=FACTOR, such as layers.0.mlp=0.5")
    wanted += [Intervention("patch", role, source, position) for role in patch]
    if not wanted:
        raise ValueError("nothing to change: give --ablate, --scale or --patch")
    return [what.checked() for what in wanted]


@grouped(without=["dtype", "native", "fast", "quantise"])
def diverge(
    a: Annotated[str, typer.Argument(metavar="A", help="The model that counts as right. " + MODEL_HELP)],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one: another implementation, precision or checkpoint.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text that both are fed, as the token ids of A.")],
    dtype_a: Annotated[str, typer.Option(help="Of A: " + DTYPE_HELP)] = "auto",
    dtype_b: Annotated[str, typer.Option(help="Of B: likewise.")] = "auto",
    native_a: Annotated[bool, typer.Option("--native-a", help="Put the weights of A into our own modules.")] = False,
    native_b: Annotated[bool, typer.Option("--native-b", help="Of B: likewise.")] = False,
    quantise_a: Annotated[str | None, typer.Option(metavar="int8|int4|int8-dynamic", help="Of A: " + QUANTISE_HELP)] = None,
    quantise_b: Annotated[str | None, typer.Option(metavar="int8|int4|int8-dynamic", help="Of B: likewise.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Greedy steps in which a flipped token is looked for.")] = 20,
    *,
    reading: PromptOptions,
    how: ModelOptions,
    out: Output,
) -> None:
    """Find where two models part: the first component of B that makes something else of A's input; exit code 1 if one does."""
    t = out.t
    check_quantise(quantise_a=quantise_a, quantise_b=quantise_b)
    sides = (a, dtype_a, native_a, quantise_a), (b, dtype_b, native_b, quantise_b)
    models = [how.load(name, dtype=dtype, native=native, quantise=kind) for name, dtype, native, kind in sides]
    how.settle(*(m.model for m in models))
    out.remarks(*models[0].notices, *models[1].notices)
    speaks = 1 if models[0].tokenizer is None else 0
    models[speaks], ids = out.read(models[speaks], prompt, reading)
    with busy(t("comparing …", "сравнение …")):
        from ..compare.divergence import diverge as compare

        result = compare(*models, ids, max_new_tokens)
    out.header(a, b)
    out.console.print(parting.divergence_report(result, t))
    out.write(result)
    if result.place is not None:
        raise typer.Exit(1)


@grouped(model="names-qwen2", without=["quantise"])
def mutate(
    model: ModelArgument,
    names: Annotated[list[str] | None, typer.Argument(metavar="[MUTATION]...", help="Only these; one alone is shown in full.")] = None,
    *,
    how: ModelOptions,
    out: Output,
) -> None:
    """Plant classic porting mistakes in copies of a model, and have diverge name the place: exit code 1 if it names a wrong one."""
    t, console = out.t, out.console
    m = how.load(model)
    out.remarks(*m.notices)
    rows = []
    with busy(t("planting …", "посадка ошибок …")) as say:
        from ..compare.mutations import MUTATIONS
        from ..compare.mutations import mutate as plant

        for row in plant(m, names=names or ()):
            rows.append(row)
            say(t(f"{len(rows)} of {len(names or MUTATIONS)}: {row.name}", f"{len(rows)} из {len(names or MUTATIONS)}: {row.name}"))
    out.header(model)
    if len(rows) == 1 and rows[0].divergence:
        console.print(parting.divergence_report(rows[0].divergence, t))
    console.print(parting.mutations_table(rows, model, console.width, t))
    out.write(rows)
    if not all(row.right for row in rows):
        raise typer.Exit(1)
