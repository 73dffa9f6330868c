"""What to know of a model that runs: found while it was loaded, each with its remedy."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import nn

from ..parts.roles import roles, unrecognised, unseen
from ..parts.wrappers import Wrapper
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
    yield from vocabulary_notices(m)
    yield from unnamed_notices(m)


def vocabulary_notices(m: "Loaded") -> Iterator[Notice]:
    """Tokens that the tokenizer has and the model cannot read, and stop tokens that it cannot give."""
    size, tokenizer = m.vocab_size, m.tokenizer
    if tokenizer is not None and max(len(tokenizer) - 1, *tokenizer.added_tokens_decoder, 0) >= size:
        beyond = sorted((id, token) for token, id in tokenizer.get_vocab().items() if id >= size)
        if beyond:
            yield Notice(
                "vocabulary",
                f"Tokens of the tokenizer without a row in the model's embedding: {len(beyond):,}, from id {beyond[0][0]} on; it reads the "
                f"ids 0 to {size - 1}: prompts with the others are refused; resize_token_embeddings makes room, and training fills it",
                f"Токены токенизатора, для которых в эмбеддинге модели нет строки: {len(beyond):,}, начиная с номера {beyond[0][0]}; она "
                f"читает номера от 0 до {size - 1}: запросы с остальными отклоняются; место даёт resize_token_embeddings, а наполняет его "
                "обучение",
                tuple(f"{token} = {id}" for id, token in beyond),
            )
    if outside := tuple(id for id in m.stop_ids if id >= size):
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
