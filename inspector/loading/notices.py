"""What to know of a model that runs: found while it was loaded, each with its remedy."""

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..records.notices import Notice
from .settings import as_numbers

if TYPE_CHECKING:
    from .loaded import Loaded


def own_notices(m: "Loaded") -> Iterator[Notice]:
    """What a model's settings and its split say."""
    if spelled := m.spelled:
        names = tuple(f"{name} = {number}" for name, number in spelled.items())
        yield Notice(
            "settings", "Texts in the checkpoint's settings, read as numbers", "Тексты в настройках чекпойнта, прочитанные как числа", names
        )
    yield from vocabulary_notices(m)


def vocabulary_notices(m: "Loaded") -> Iterator[Notice]:
    """Where a tokenizer and its model differ: in the number of tokens, and in what begins, ends and fills a text."""
    tokenizer, size = m.tokenizer, m.vocab_size
    if tokenizer is None:
        return
    beyond = sorted((id, word) for word, id in tokenizer.get_vocab().items() if id >= size)
    if beyond:
        first, last = beyond[0][0], beyond[-1][0]
        ids = str(first) if first == last else f"{first} … {last}"
        yield Notice(
            "vocabulary",
            f"The tokenizer has tokens that the model has no ids for: {ids}, the model's end at {size - 1}: they are refused in a prompt; "
            "take the tokenizer that the model was trained with",
            f"У токенизатора есть токены, номеров которых нет у модели: {ids}, а у модели последний {size - 1}: в промпте они отвергаются; "
            "возьмите токенизатор, с которым модель обучали",
            tuple(word for _, word in beyond),
        )
    elif size - (count := len(tokenizer)) > max(64, size // 50) and size < sys.maxsize:  # up to that, tables are filled up for speed
        yield Notice(
            "vocabulary",
            f"The tokenizer has {count:,} tokens and the model {size:,} ids: see whether the tokenizer is the model's own",
            f"У токенизатора {count:,} токенов, а у модели {size:,} номеров: проверьте, от этой ли модели токенизатор",
        )
    config = getattr(m.model, "config", None)
    names = dict(bos=("beginning", "начало"), eos=("end", "конец"), pad=("padding", "заполнение"))
    acts = dict(
        bos=("a prompt gets the tokenizer's", "промпт получает токен токенизатора"),
        eos=("a generation ends where the settings say", "генерация кончается по настройкам"),
        pad=("no prompt gets either", "промпт не получает ни того, ни другого"),
    )
    for kind in names:
        of_tokenizer = getattr(tokenizer, f"{kind}_token_id", None)
        shipped = getattr(m.generation_config, f"{kind}_token_id", None)
        own = as_numbers(shipped if shipped is not None else getattr(config, f"{kind}_token_id", None))
        of_model = m.stop_ids if kind == "eos" else own if isinstance(own, tuple) else (own,) if own is not None else ()
        if of_tokenizer is not None and of_model and of_tokenizer not in of_model:
            word, listed = getattr(tokenizer, f"{kind}_token"), ", ".join(map(str, of_model))
            yield Notice(
                "vocabulary",
                f"The tokenizer's {names[kind][0]} is {word!r}, {of_tokenizer}, the model's settings say {listed}: {acts[kind][0]}; "
                "make them agree",
                f"Для токенизатора {names[kind][1]} — {word!r}, {of_tokenizer}, а по настройкам модели — {listed}: {acts[kind][1]}; "
                "согласуйте их",
            )


def weights_notices(unused: Sequence[str]) -> Iterator[Notice]:
    """What the weights of a checkpoint say; ``unused`` are those for which the model has no place."""
    if unused:
        count = f"{len(unused):,}"
        said = f"Weights of the checkpoint that are not in the model: {count}", f"Веса чекпойнта, которых в модели нет: {count}"
        yield Notice("unused", *said, tuple(unused))
