"""What to know of a model that runs: found while it was loaded, each with its remedy."""

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from ..parts.quantised import quantise
from ..parts.roles import roles, unrecognised, unseen
from ..parts.splitting import Split
from ..parts.watching import PAST_CALL
from ..parts.wrappers import Wrapper
from ..records.notices import Notice
from .settings import as_numbers, shipped, spelled

if TYPE_CHECKING:
    from .loaded import Loaded


def own_notices(m: "Loaded") -> Iterator[Notice]:
    """What a model's settings and its split say."""
    yield from settings_notices(m.model, m.tokenizer, m.stop_ids, m.vocab_size)
    yield from unnamed_notices(m)
    yield from split_notices(m.split)


def settings_notices(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, stop_ids: Sequence[int], vocab_size: int
) -> Iterator[Notice]:
    """What is to be known of a model's settings beside its tokenizer; the model may be on the meta device."""
    own = shipped(model)
    if found := spelled(own):
        names = tuple(f"{name} = {number}" for name, number in found.items())
        yield Notice(
            "settings", "Texts in the checkpoint's settings, read as numbers", "Тексты в настройках чекпойнта, прочитанные как числа", names
        )
    yield from stop_notices(stop_ids, vocab_size)
    if tokenizer is not None:
        yield from vocabulary_notices(tokenizer, vocab_size)
        yield from special_notices(tokenizer, own, getattr(model, "config", None), stop_ids)


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
            "части доказаны только на целых запросах",
            split.per_tensor,
        )


def vocabulary_notices(tokenizer: PreTrainedTokenizerBase, size: int) -> Iterator[Notice]:
    """Where a tokenizer and its model differ in the number of tokens; the model has ``size``."""
    beyond = sorted((id, word) for word, id in tokenizer.get_vocab().items() if id >= size)
    if beyond:
        first, last = beyond[0][0], beyond[-1][0]
        ids = str(first) if first == last else f"{first} … {last}"
        yield Notice(
            "vocabulary",
            f"The tokenizer has tokens that the model has no ids for: {ids}, the model's end at {size - 1}: they are refused in a prompt; "
            "take the tokenizer that the model was trained with",
            f"У токенизатора есть токены, номеров которых нет у модели: {ids}, а у модели последний {size - 1}: в запросе они отвергаются; "
            "возьмите токенизатор, с которым модель обучали",
            tuple(word for _, word in beyond),
        )
    elif size - (count := len(tokenizer)) > max(64, size // 50) and size < sys.maxsize:  # up to that, tables are filled up for speed
        yield Notice(
            "vocabulary",
            f"The tokenizer has {count:,} tokens and the model {size:,} ids: see whether the tokenizer is the model's own",
            f"У токенизатора {count:,} токенов, а у модели {size:,} номеров: проверьте, от этой ли модели токенизатор",
        )


def special_notices(
    tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig, config: PretrainedConfig | None, stop_ids: Sequence[int]
) -> Iterator[Notice]:
    """Where a tokenizer and its model differ in what begins, ends and fills a text."""
    names = dict(bos=("beginning", "начало"), eos=("end", "конец"), pad=("padding", "заполнение"))
    acts = dict(
        bos=("a prompt gets the tokenizer's", "запрос получает токен токенизатора"),
        eos=("a generation ends where the settings say", "генерация кончается по настройкам"),
        pad=("no prompt gets either", "запрос не получает ни того, ни другого"),
    )
    for kind in names:
        of_tokenizer = getattr(tokenizer, f"{kind}_token_id", None)
        said = getattr(settings, f"{kind}_token_id", None)
        own = as_numbers(said if said is not None else getattr(config, f"{kind}_token_id", None))
        of_model = stop_ids if kind == "eos" else own if isinstance(own, tuple) else (own,) if own is not None else ()
        if of_tokenizer is not None and of_model and of_tokenizer not in of_model:
            word, listed = getattr(tokenizer, f"{kind}_token"), ", ".join(map(str, of_model))
            yield Notice(
                "vocabulary",
                f"The tokenizer's {names[kind][0]} is {word!r}, {of_tokenizer}, the model's settings say {listed}: {acts[kind][0]}; "
                "make them agree",
                f"Для токенизатора {names[kind][1]} — {word!r}, {of_tokenizer}, а по настройкам модели — {listed}: {acts[kind][1]}; "
                "согласуйте их",
            )


def stop_notices(stop_ids: Sequence[int], size: int) -> Iterator[Notice]:
    """Stop tokens that a model of ``size`` tokens cannot give."""
    if outside := tuple(id for id in stop_ids if id >= size):
        yield Notice(
            "vocabulary",
            f"Stop token {outside[0]} is none of the model's ids 0 to {size - 1}, so it ends no run: correct eos_token_id",
            f"Стоп-токена {outside[0]} нет среди номеров модели от 0 до {size - 1}, поэтому он ничего не завершит: исправьте eos_token_id",
            tuple(f"eos_token_id = {id}" for id in outside),
        )


def wrapper_notices(wrappers: Sequence[Wrapper]) -> Iterator[Notice]:
    """What stood around a model, and what became of it."""
    for name, english, russian in wrappers:
        yield Notice("wrapper", f"Around the model, {name}: {english}", f"Вокруг модели {name}: {russian}", (name,))


def unnamed_notices(m: "Loaded") -> Iterator[Notice]:
    """Modules whose place in a decoder nothing tells, and those whose weights functions use alone: views do not show them."""
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
    past = {name: one for name, one in past.items() if one not in PAST_CALL}  # what runs by .forward is watched there
    if past:
        yield Notice(
            "unnamed",
            f"Modules that are not called, while functions use their weights: {len(past):,}. No hook sees that: call the module",
            f"Модули, которые не вызываются, а их веса берут функции: {len(past):,}. Хуки этого не видят: вызывайте модуль",
            tuple(past),
        )


def quantised(name: str, model: nn.Module, kind: str) -> Notice:
    """Quantises a model's linear layers in place (``parts.quantised.quantise``), and says so. Raises ``ValueError`` with the name."""
    try:
        packed, whole = quantise(model, kind)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return Notice(
        "quantised",
        f"Quantised here ({kind}): {packed:,} of {whole:,} weights, those of linear layers; embedding, norms and biases stay as they are",
        f"Квантовано здесь ({kind}): {packed:,} весов из {whole:,}, это линейные слои; эмбеддинг, нормы и смещения прежние",
    )
