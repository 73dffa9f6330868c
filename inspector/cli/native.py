"""What the lesson shows of a model in our own modules: its tree beside that of transformers, and the proof that they are one model."""

from dataclasses import replace

from ..render import lesson
from ..render.screen import Screen
from ..render.tables import subsection
from ..render.text import Translate
from ..render.traits import architectures
from ..render.trees import trees
from .options import ModelOptions
from .waiting import busy

TOKENS = 64  # that both read


def show_original(screen: Screen, m, how: ModelOptions, t: Translate) -> None:
    """Loads the checkpoint of ``m`` as transformers has it too, shows both trees, and says whether the two are one model.

    ``m`` was loaded as ``how`` says. Nothing is shown of a model that is not in our modules in place of transformers'.
    """
    if not how.native or not any(one.kind == "native" for one in m.notices):
        return
    from ..bench.lines import measure
    from ..bench.loop import probe_ids
    from ..compare.original import beside_original
    from ..parts.structure import measured, trait_differences

    original = replace(how, native=False, fast=False).load(m.origin.name)
    with busy(t("comparing …", "сравнение …")):
        ids_1T = probe_ids(m, min(TOKENS, m.context_length or TOKENS))
        beside, lines = beside_original(original, m, ids_1T), measure(m)["lines"]["model"]
    nodes, _, traits = zip(*(measured(one.model, one.split) for one in (original, m)), strict=True)
    names = t("transformers", "transformers"), t("our own modules", "наши модули")
    screen.show(subsection(t(f"{m.origin.name}, twice", f"{m.origin.name}, дважды")), trees(nodes, names, t))
    differences = [row for row in trait_differences(*traits) if not row.equal]
    screen.show(*([architectures(differences, names, t)] if differences else []), lesson.ours_is(lines, beside, ids_1T.shape[1], t))
