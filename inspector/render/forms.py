"""What stands for a record on a console and in a notebook: what the verb of its name prints, and the panels that the page has for it."""

import base64
import gzip
import html as markup
import io
from collections.abc import Callable, Iterator

from rich.console import Console, Group, RenderableType
from rich.text import Text

from ..records.caching import CacheLesson
from ..records.comparison import Divergence, Replayed, Verdict
from ..records.effects import Contributions, Effect
from ..records.generation import Run, Sampling, Step, Token
from ..records.inside import Attention, Lens, Trace
from ..records.mechanisms import Experts, Further, Latents
from ..records.report import Inside, Overview, Parts, Report, Side
from ..records.speculation import Speculation
from ..records.structure import ModuleNode
from .caching import lesson_view
from .effects import contributions_view, effect_view
from .inside import VIEWS, View, views_below
from .lesson import origins
from .page import page
from .parting import divergence_report
from .pictures import EXPORT, FAMILY
from .report import from_runs
from .settings import settings_line
from .speculation import speculation_view
from .steps import fed_panel, four_columns, sentence, steps_table, text_panel
from .tables import Held, notices
from .text import Translate, space, translator
from .traits import names_in_both, words_in_both
from .trees import parts_explained, split_table, tree_panel
from .verdicts import replayed_words, sampling_words, verdict_line

COLUMNS = 110  # of what a notebook shows in letters
HIGHEST = 720  # pixels of a page in a notebook: a longer one is scrolled, and drawn larger at its corner
# Where the notebook runs scripts the page says how high it is. It may be asked for several times: each listener does the same.
FITTING = """<script>addEventListener("message", (event) => {
  const height = event.data?.inspectorHeight;
  if (Number.isFinite(height)) for (const frame of document.querySelectorAll("iframe.inspector"))
    if (frame.contentWindow === event.source) frame.style.height = `${Math.min(Math.ceil(height), Number(frame.dataset.highest))}px`;
});</script>"""
# In the frame: the page lies there compressed, since a notebook holds one for every cell that shows one.
UNPACKING = """<!doctype html><meta charset="utf-8"><body data-page="PAGE"><script>(async () => {
  const bytes = Uint8Array.from(atob(document.body.dataset.page), (letter) => letter.charCodeAt(0));
  const page = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  document.open();
  document.write(page);
  document.close();
})();</script>"""


def terminal(record: object, width: int) -> RenderableType:
    """A record on a console ``width`` columns wide, in the language of the locale."""
    t = translator("auto")
    return Group(*(FORMS[type(record)](record, width, t)))


def html(record: object) -> str:
    """A record in a notebook: the page with what it has, in a frame; where the page has no panel for it, what a console shows."""
    if (report := PAGES.get(type(record), lambda record: None)(record)) is not None:
        return framed(page(report, translator("auto")("en", "ru")))
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, force_jupyter=False, highlight=False)
    console.print(terminal(record, COLUMNS))
    letters = f"font-family:{FAMILY};line-height:1.16;white-space:pre"  # the lines of tables join
    style = f"background:{{background}};color:{{foreground}};{letters};padding:0.75em;overflow-x:auto"
    return console.export_html(theme=EXPORT, inline_styles=True, code_format=f'<pre style="{style}">{{code}}</pre>')


def framed(page: str) -> str:
    """A page as a part of another: it runs its own script in a frame, from where nothing of the other can be reached."""
    packed = UNPACKING.replace("PAGE", base64.b64encode(gzip.compress(page.encode(), mtime=0)).decode())
    style = f"width:100%;height:{HIGHEST}px;border:0;resize:vertical"
    named = f'class="inspector" title="inspector" data-highest="{HIGHEST}"'
    return f'<iframe {named} sandbox="allow-scripts" style="{style}" srcdoc="{markup.escape(packed)}"></iframe>{FITTING}'


def run_form(run: Run, width: int, t: Translate) -> Iterator[RenderableType]:
    """As ``inspector run`` prints it."""
    yield from notices(run.notices, t)
    yield fed_panel(run.model, run.prompt, [], t, parts=run.parts or None)
    # A run that was asked for in Python does not say where its settings are from.
    yield settings_line(run.sampling, run.origins, t, run.kv_cache) if run.origins else Text(sampling_words(run.sampling, t), "dim")
    yield steps_table([run.model], [[step] for step in run.steps], t)
    asked = [own for own, part in zip(run.prompt, run.parts, strict=True) if part == "prompt"] if "prompt" in run.parts else run.prompt
    yield text_panel(space(run.prompt).join(token.text for token in asked if not token.special), run, t)


def step_form(step: Step, width: int, t: Translate) -> Iterator[RenderableType]:
    """As ``inspector run --step`` prints it, with its number."""
    yield Text(t(f"step {step.index + 1}", f"шаг {step.index + 1}"), "bold")
    yield four_columns(step, t) if step.candidates else Held(sentence(step, t))


def overview_form(m: Overview, width: int, t: Translate) -> Iterator[RenderableType]:
    """Where a model is from, its tree as ``inspector tree`` prints it, and its split."""
    yield from notices(m.notices, t)
    yield origins([(m.name, m.kind, m.dtype, m.device)], t)
    if m.tree is not None:
        yield tree_panel(m.tree, m.name, width, t, m.costs, m.traits)
        yield parts_explained(t, m.tree)
    if m.parts is not None:
        yield from parts_form(m.parts, width, t)


def parts_form(parts: Parts, width: int, t: Translate) -> Iterator[RenderableType]:
    """A split, as the lesson shows it."""
    yield split_table([("", parts.backbone, parts.head, parts.probe, parts.shapes)], t)


def node_form(node: ModuleNode, width: int, t: Translate) -> Iterator[RenderableType]:
    """As ``inspector tree`` prints it."""
    yield tree_panel(node, node.type, width, t)
    yield parts_explained(t, node)


def view_form(view: View) -> Callable[[object, int, Translate], Iterator[RenderableType]]:
    """The form of a view of ``inspector trace``."""

    def form(record, width: int, t: Translate) -> Iterator[RenderableType]:
        yield from notices(record.notices, t)
        yield fed_panel(record.model, record.prompt, [], t)
        yield view.show(record, width, t)
        if isinstance(record, Trace):
            yield from views_below(record, width, t)

    return form


def alone(show: Callable[..., RenderableType]) -> Callable[[object, int, Translate], Iterator[RenderableType]]:
    """The form of a record that has no prompt of tokens: ``show`` of it, the width and the language."""
    return lambda record, width, t: iter([show(record, width, t)])


def divergence_form(d: Divergence, width: int, t: Translate) -> Iterator[RenderableType]:
    """As ``inspector diverge`` prints it."""
    yield from notices([*d.notices_a, *d.notices_b], t)
    yield divergence_report(d, t)


def report_form(report: Report, width: int, t: Translate) -> Iterator[RenderableType]:
    """The runs of a report: the page has the rest."""
    for side in report.sides:
        yield from run_form(side.run, width, t)
        if side.verdict is not None:
            yield verdict_line(side.run.model, side.verdict, t)


FORMS: dict[type, Callable[..., Iterator[RenderableType]]] = {
    Run: run_form,
    Step: step_form,
    Overview: overview_form,
    Parts: parts_form,
    ModuleNode: node_form,
    Verdict: alone(lambda verdict, width, t: verdict_line("", verdict, t)),
    Trace: view_form(VIEWS["statistics"]),
    Lens: view_form(VIEWS["lens"]),
    Attention: view_form(VIEWS["attention"]),
    Experts: view_form(VIEWS["experts"]),
    Latents: view_form(VIEWS["latents"]),
    Further: view_form(VIEWS["further"]),
    Contributions: view_form(View("", contributions_view)),
    Effect: view_form(View("", lambda record, width, t: effect_view(record, t))),
    CacheLesson: view_form(View("", lesson_view)),
    Divergence: divergence_form,
    Replayed: alone(lambda result, width, t: replayed_words(result, t)),
    Speculation: alone(lambda record, width, t: speculation_view(record, t)),
    Side: lambda side, width, t: report_form(Report((side,)), width, t),
    Report: report_form,
}


def run_page(run: Run) -> Report | None:
    """The panels of a run that has steps."""
    return from_runs([run]) if run.steps else None


def overview_page(m: Overview) -> Report | None:
    """The panel of the architecture, where it is known."""
    if m.tree is None:
        return None
    traits, said = m.traits or {}, words_in_both(m.traits or {})
    side = Side(asked(m.name, ()), tree=m.tree, sums=m.tree.sums(), traits=m.traits, trait_words=said, costs=m.costs, parts=m.parts)
    return Report((side,), words=names_in_both(traits))


def asked(model: str, prompt: tuple[Token, ...]) -> Run:
    """A run of no steps: a page is of runs, and what is shown needs none."""
    return Run(model, "", "", "", prompt, Sampling(), {}, 0, (), "interrupted", "")


def inside_page(name: str) -> Callable[[Experts | Latents | Further], Report]:
    """The panel of a mechanism."""
    return lambda record: Report(
        (Side(asked(record.model, record.prompt), inside=Inside(len(record.prompt), **{name: record}), notices=record.notices),)
    )


PAGES: dict[type, Callable[..., Report | None]] = {
    Run: run_page,
    Overview: overview_page,
    Experts: inside_page("experts"),
    Latents: inside_page("latents"),
    Further: inside_page("further"),
    Side: lambda side: Report((side,)),
    Report: lambda report: report,
}
