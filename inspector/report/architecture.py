"""What a model is made of, for the page: its tree, what that costs, and what it does without a module, in the languages."""

from collections.abc import Sequence

from ..loading.loaded import Loaded
from ..parts.structure import differences, trait_differences
from ..records.generation import Run
from ..records.report import Side, Words
from ..render.traits import names_in_both, words_in_both


def architecture(m: Loaded, run: Run) -> dict:
    """The fields of a ``Side`` that say what ``m`` is made of; none for a model that nothing can look into."""
    if getattr(m.model, "opaque", None) is not None:
        return {}
    seen = m.overview([token.id for token in run.prompt])
    return dict(
        tree=seen.tree,
        sums=seen.tree.sums(),
        traits=seen.traits,
        trait_words=words_in_both(seen.traits),
        costs=seen.costs,
        parts=seen.parts,
    )


def compared(sides: Sequence[Side]) -> dict:
    """The fields of a ``Report`` that say what differs between two architectures, and what traits are called."""
    names: dict[str, Words] = {}
    for side in sides:
        names |= names_in_both(side.traits or {})
    if len(sides) != 2 or not all(side.tree and side.traits for side in sides):
        return dict(words=names)
    a, b = sides
    return dict(roles=tuple(differences(a.tree, b.tree)), traits=tuple(trait_differences(a.traits, b.traits)), words=names)
