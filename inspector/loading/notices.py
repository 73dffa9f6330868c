"""What to know of a model that runs: found while it was loaded, each with its remedy."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..records.notices import Notice

if TYPE_CHECKING:
    from .loaded import Loaded


def own_notices(m: "Loaded") -> Iterator[Notice]:
    """What a model's settings and its split say."""
    if spelled := m.spelled:
        names = tuple(f"{name} = {number}" for name, number in spelled.items())
        yield Notice(
            "settings", "Texts in the checkpoint's settings, read as numbers", "Тексты в настройках чекпойнта, прочитанные как числа", names
        )


def weights_notices(unused: Sequence[str]) -> Iterator[Notice]:
    """What the weights of a checkpoint say; ``unused`` are those for which the model has no place."""
    if unused:
        count = f"{len(unused):,}"
        said = f"Weights of the checkpoint that are not in the model: {count}", f"Веса чекпойнта, которых в модели нет: {count}"
        yield Notice("unused", *said, tuple(unused))
