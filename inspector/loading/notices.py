"""What to know of a model that runs: found while it was loaded, each with its remedy."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import nn

from ..parts.roles import roles, unrecognised, unseen
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
    yield from unnamed_notices(m)


def unnamed_notices(m: "Loaded") -> Iterator[Notice]:
    """Modules whose place in a decoder nothing tells, and those that run without being called: views do not show them."""
    found = roles(m.model, m.split.backbone_name, m.split.head_names)
    if names := tuple(unrecognised(m.model, found)):
        yield Notice(
            "unnamed",
            f"Modules with weights whose place in a decoder is not known: {len(names):,}. Views by role leave them out: rename them as "
            "decoders of transformers have them (q_proj, o_proj, up_proj, down_proj, norm …)",
            f"Модули с весами, место которых в декодере неизвестно: {len(names):,}. В видах по ролям их нет: назовите их, как в декодерах "
            "transformers (q_proj, o_proj, up_proj, down_proj, norm …)",
            names,
        )
    torch_own = nn.MultiheadAttention  # whose output it computes itself; the attention as a whole is called
    past = {n: one for n, one in unseen(m.model).items() if not isinstance(m.model.get_submodule(n.rpartition(".")[0]), torch_own)}
    if past:
        yield Notice(
            "unnamed",
            f"Modules that run without being called, by .forward or by their weights: {len(past):,}. No hook sees that: call the module",
            f"Модули, которые работают без вызова, через .forward или своими весами: {len(past):,}. Хуки этого не видят: вызывайте модуль",
            tuple(past),
        )


def weights_notices(unused: Sequence[str]) -> Iterator[Notice]:
    """What the weights of a checkpoint say; ``unused`` are those for which the model has no place."""
    if unused:
        count = f"{len(unused):,}"
        said = f"Weights of the checkpoint that are not in the model: {count}", f"Веса чекпойнта, которых в модели нет: {count}"
        yield Notice("unused", *said, tuple(unused))
