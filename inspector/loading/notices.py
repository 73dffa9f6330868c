"""What to know of a model that runs: found while it was loaded, each with its remedy."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..parts.splitting import Split
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
    yield from split_notices(m.split)


def split_notices(split: Split) -> Iterator[Notice]:
    """What the split of a model says of how it reads and what it gives."""
    if not split.causal:
        yield Notice(
            "future",
            "It reads the future: hidden states depend on later tokens, so a token in the middle is predicted knowing the next; "
            "mask the later positions if it is meant to generate",
            "Она видит будущее: состояния зависят от следующих токенов, и токен в середине предсказывается с подсказкой; "
            "закройте следующие позиции маской, если модель должна генерировать",
        )
    if not split.mixes:
        yield Notice(
            "alone",
            "No position sees another: the next token depends on the last one alone; mix positions if it is meant to read a context",
            "Ни одна позиция не видит других: следующий токен зависит лишь от последнего; смешайте позиции, если нужен контекст",
        )
    if split.sequence_first:
        yield Notice(
            "layout",
            "It reads ids [T, B] and gives logits [T, B, V]: both are turned here; give ids [B, T] as everywhere",
            "Она читает номера [T, B] и даёт логиты [T, B, V]: здесь они поворачиваются; давайте номера [B, T], как везде",
        )
    if split.gives == "log-probabilities":
        yield Notice(
            "softmax",
            "It gives log-probabilities, not logits: a log_softmax is part of its head; return what comes before it to see logits",
            "Она даёт логарифмы вероятностей, а не логиты: log_softmax — часть её головы; верните то, что до него, чтобы видеть логиты",
        )
    if split.gives == "probabilities":
        yield Notice(
            "softmax",
            "It gives probabilities, not logits: their logarithm stands for logits; return what comes before the softmax to see those",
            "Она даёт вероятности, а не логиты: вместо логитов здесь их логарифм; верните то, что до softmax, чтобы видеть логиты",
        )
    if split.per_tensor:
        yield Notice(
            "quantised",
            "Modules quantised by torch: one scale for all positions, so a token among others gives other bits than alone; "
            "the parts are proved on whole prompts only",
            "Модули, квантованные torch: один масштаб на все позиции, и токен среди других даёт не те биты, что отдельно; "
            "части доказаны только на целых промптах",
            split.per_tensor,
        )


def weights_notices(unused: Sequence[str]) -> Iterator[Notice]:
    """What the weights of a checkpoint say; ``unused`` are those for which the model has no place."""
    if unused:
        count = f"{len(unused):,}"
        said = f"Weights of the checkpoint that are not in the model: {count}", f"Веса чекпойнта, которых в модели нет: {count}"
        yield Notice("unused", *said, tuple(unused))
