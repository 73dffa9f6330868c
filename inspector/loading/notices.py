"""What to know of a model that runs: found while it was loaded, each with its remedy."""

import copy
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PretrainedConfig

from ..parts.roles import roles, unrecognised, unseen
from ..parts.splitting import Split
from ..parts.watching import PAST_CALL
from ..parts.wrappers import Wrapper
from ..records.notices import Notice
from .settings import as_numbers
from .weights import PLAIN, Fit, Stored, kinds, number, placed, places, plural

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


def vocabulary_notices(m: "Loaded") -> Iterator[Notice]:
    """Where a tokenizer and its model differ: in the number of tokens, and in what begins, ends and fills a text."""
    tokenizer, size = m.tokenizer, m.vocab_size
    yield from stop_notices(m)
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


def stop_notices(m: "Loaded") -> Iterator[Notice]:
    """Stop tokens that the model cannot give."""
    size = m.vocab_size
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


def weights_notices(model: nn.Module, held: Stored, found: Fit, run: torch.dtype | str | None = None) -> Iterator[Notice]:
    """What the weights of a checkpoint say that loads: how they are read, and those that are not used, by kind.

    ``model`` may be on the meta device; ``run`` is the dtype that it runs in where the user asked for none.
    """
    if held.variant:
        yield Notice(
            "variant",
            f"The weights are those of the variant {held.variant!r}: there are no files without it",
            f"Веса взяты из варианта {held.variant!r}: файлов без него нет",
        )
    if prefix := found.prefix:
        yield Notice(
            "prefix",
            f"The names of the weights in the file begin with {prefix!r}{of_wrapper(prefix)}, and the model's do not: loaded without it",
            f"Имена весов в файле начинаются с {prefix!r}, а имена в модели нет: загружено без этого начала",
        )
    yield from tied_notices(found)
    yield from dtype_notices(held, found, run)
    for kind, names in kinds(model, found.unused, found.prefix).items():
        if kind != "blocks":  # with which it is refused
            english, russian = unused_said(kind, model, held, found, names)
            yield Notice("unused", english, russian, names)


def of_wrapper(prefix: str) -> str:
    """Whose work a prefix is, where it is known."""
    known = {"module": "DataParallel or DDP", "_orig_mod": "torch.compile", "base_model": "peft"}
    made = [by for part, by in known.items() if part in prefix.split(".")]
    return f" ({' and '.join(made)})" if made else ""


def tied_notices(found: Fit) -> Iterator[Notice]:
    """Where the configuration and the file disagree about which weights are one."""
    for name, source in found.apart.items():
        yield Notice(
            "tied",
            f"The configuration ties {name} to {source} (tie_word_embeddings), and the file holds two that differ: both run as they are in "
            "the file, untied: write tie_word_embeddings=false into config.json, or take the first out of the file",
            f"По конфигурации {name} и {source} — одно (tie_word_embeddings), а в файле это разные веса: считаются оба, как в файле: "
            "запишите tie_word_embeddings=false в config.json или уберите первый из файла",
            (name, source),
        )
    if found.equal:
        name, source = found.equal
        yield Notice(
            "tied",
            f"{name} and {source} are the same in the file, and the configuration keeps them apart (tie_word_embeddings=false): both are "
            "held and counted: tie_word_embeddings=true makes them one",
            f"{name} и {source} в файле одинаковы, а по конфигурации раздельны (tie_word_embeddings=false): хранятся и считаются оба: "
            "tie_word_embeddings=true сделает их одним",
            (name, source),
        )


def dtype_notices(held: Stored, found: Fit, run: torch.dtype | str | None) -> Iterator[Notice]:
    """Weights that do not run with the numbers that they are stored with."""
    by_dtype: dict[torch.dtype, list[str]] = {}
    for name in found.taken:
        by_dtype.setdefault(held.weights[name].dtype, []).append(name)
    for dtype, names in by_dtype.items():
        count, stored = f"{len(names):,}", str(dtype).removeprefix("torch.")
        if stored.startswith("float8"):
            yield Notice(
                "dtype",
                f"{plural(names)} stored as {stored} and read as plain numbers: config.json has no quantization_config that gives scales",
                f"Весов, что хранятся как {stored}: {count}; они прочитаны как числа: в config.json нет quantization_config с масштабами",
                tuple(names),
            )
        elif isinstance(run, torch.dtype) and dtype in PLAIN and torch.promote_types(dtype, run) != run:
            as_run = str(run).removeprefix("torch.")
            yield Notice(
                "dtype",
                f"{plural(names)} stored as {stored} and run as {as_run}, rounded: --dtype {stored} keeps them",
                f"Весов, что хранятся как {stored}: {count}; они считаются как {as_run}, с округлением: --dtype {stored} их сохранит",
                tuple(names),
            )


def unused_said(kind: str, model: nn.Module, held: Stored, found: Fit, names: Sequence[str]) -> tuple[str, str]:
    """A sentence in two languages about weights of a kind for which a model has no place."""
    count = f"{len(names):,}"
    weights = f"{count} weight{'' if len(names) == 1 else 's'}"
    be = "is" if len(names) == 1 else "are"
    if kind == "layers":
        return layers_said(model, [name.removeprefix(found.prefix) for name in names], weights, be)
    if kind == "bias":
        return biases_said(model, held, found, names)
    written = ", ".join(getattr(model.config, "architectures", None) or ())
    of = f" (config.json says {written})" if written else ""
    of_ru = f" (в config.json: {written})" if written else ""
    return {
        "classifier": (
            f"{weights} of a classifier's head {be} not used here{of}: what runs is the language model's own head",
            f"Весов головы классификатора, которые здесь не нужны: {count}{of_ru}: работает голова самой языковой модели",
        ),
        "vision": (
            f"{weights} of a part for images or sound {be} not used here: the language model runs alone",
            f"Весов части для изображений или звука, которые здесь не нужны: {count}: работает только языковая модель",
        ),
        "mtp": (
            f"{weights} of layers that predict further ahead (MTP) {be} not used: a plain pass goes without them",
            f"Весов слоёв, предсказывающих дальше (MTP), которые не нужны: {count}: обычный проход идёт без них",
        ),
        "lora": (
            f"{weights} of an adapter in the model's own file {be} not used: what runs is the base without it; to have it, load the "
            "whole with peft, and save what merge_and_unload() gives",
            f"Весов адаптера в файле самой модели, которые не использованы: {count}: работает основа без него; чтобы он действовал, "
            "загрузите всё через peft и сохраните то, что даёт merge_and_unload()",
        ),
        "optimizer": (
            f"{weights} left over from training {be} not used: the model is whole without",
            f"Остатков обучения, которые не нужны: {count}: модель цела и без них",
        ),
        "scales": (
            f"{weights} of a quantisation {be} not used: config.json has no quantization_config, and the others run as they are stored",
            f"Весов квантования, которые не использованы: {count}: в config.json нет quantization_config, остальные идут как хранятся",
        ),
        "other": (f"Weights of the checkpoint that are not in the model: {count}", f"Веса чекпойнта, которых в модели нет: {count}"),
    }[kind]


def layers_said(model: nn.Module, names: Sequence[str], weights: str, be: str) -> tuple[str, str]:
    """That the file has more layers than the configuration."""
    place = places(model)
    numbers = sorted({number(name, place) for name in names})
    there = place(names[0])[1]
    setting = layers_setting(model.config)
    layers = f"layer{'' if len(numbers) == 1 else 's'} {listed(numbers, 'and', 'to')}"
    return (
        f"{weights} of {layers} {be} not used: config.json says {there} layers, the file has {numbers[-1] + 1}: "
        f"set {setting} to {numbers[-1] + 1} to run them",
        f"Весов слоёв {listed(numbers, 'и', 'до')}, которые не использованы: {len(names):,}: по config.json слоёв {there}, в файле "
        f"{numbers[-1] + 1}: чтобы они работали, запишите {setting}={numbers[-1] + 1}",
    )


def layers_setting(config: PretrainedConfig) -> str:
    """What config.json calls the number of layers."""
    own = config.get_text_config(decoder=True)
    return own.attribute_map.get("num_hidden_layers", "num_hidden_layers")


def listed(numbers: Sequence[int], both: str, until: str) -> str:
    """ "3", "3 and 4", "3 to 9", or each where some are left out."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} {until} {numbers[-1]}"
    head = ", ".join(map(str, numbers[:-1]))
    return f"{head} {both} {numbers[-1]}" if head else str(numbers[-1])


def biases_said(model: nn.Module, held: Stored, found: Fit, names: Sequence[str]) -> tuple[str, str]:
    """That the file has biases that the model's class leaves out, and which setting makes them."""
    count, kind = f"{len(names):,}", model.config.model_type
    many = f"{count} bias{' is' if len(names) == 1 else 'es are'}"
    than = "so that what runs is not the model that was saved"
    than_ru = "поэтому работает не та модель, что была сохранена"
    if setting := switch(model, held, found, names):
        return (
            f"{many} not used, {than}: {setting}=true in config.json makes them",
            f"Смещений, которые не использованы: {count}, {than_ru}: их создаёт {setting}=true в config.json",
        )
    qwen = kind != "qwen2" and all(re.search(r"\.[qkv]_proj\.bias$", name) for name in names)
    return (
        f"{many} not used, {than}: no setting of {kind} makes just these{', a qwen2 has them (model_type)' if qwen else ''}",
        f"Смещений, которые не использованы: {count}, {than_ru}: ни одна настройка {kind} не создаёт именно их"
        f"{', они есть у qwen2 (model_type)' if qwen else ''}",
    )


def switch(model: nn.Module, held: Stored, found: Fit, names: Sequence[str]) -> str | None:
    """The setting of a model's configuration that gives it these biases and no weight that the file lacks; None if there is none."""
    for setting, value in model.config.to_dict().items():
        if value is False and "bias" in setting:
            config = copy.deepcopy(model.config)
            setattr(config, setting, True)
            try:
                with torch.device("meta"):
                    other = placed(type(model)(config), held.weights, found.prefix, {})
            except Exception:  # whatever a class makes of a setting that it does not bear
                continue
            if not set(names) & set(other.unused) and set(other.missing) <= set(found.missing):
                return setting
    return None


def refusal(model: nn.Module, held: Stored, found: Fit) -> Notice | None:
    """Why the weights of a checkpoint are not the model's; None where they are. It is said in one line, with the remedy."""
    whole = [name for name in found.taken if not held.weights[name].dtype.is_floating_point and floats(model, found.taken[name])]
    if whole:
        dtype = str(held.weights[whole[0]].dtype).removeprefix("torch.")
        packed = " (as MLX packs them)" if isinstance(getattr(model.config, "quantization", None), dict) else ""
        return Notice(
            "refused",
            f"{plural(whole)} stored as {dtype}{packed}, the first is {whole[0]}, and config.json has no quantization_config that "
            "says how to read them: take a checkpoint that is not quantised, or write the method there",
            f"Весов, что хранятся как {dtype}: {len(whole):,}, первый — {whole[0]}, а в config.json нет quantization_config, по которому "
            "их читать: возьмите неквантованный чекпойнт или впишите метод",
            tuple(whole),
        )
    if found.missing:
        return Notice("refused", *missing_said(model, held, found), found.missing)
    if strange := kinds(model, found.unused, found.prefix).get("blocks"):
        return Notice(
            "refused",
            f"{plural(strange)} in the checkpoint and not in the model that config.json describes, the first is {strange[0]}: "
            "the two are of different models: take the config.json that belongs to the weights",
            f"Весов блоков, которых нет в модели по config.json: {len(strange):,}, первый — {strange[0]}: веса и настройки от разных "
            "моделей: возьмите config.json этих весов",
            strange,
        )
    return None


def floats(model: nn.Module, name: str) -> bool:
    """Whether a model's weight of that name is one of real numbers."""
    return (own := model.state_dict().get(name)) is not None and own.dtype.is_floating_point


def missing_said(model: nn.Module, held: Stored, found: Fit) -> tuple[str, str]:
    """Which weights a file lacks, and what to do about it."""
    lacks = found.missing
    said = f"{plural(lacks)} missing, the first is {lacks[0]}"
    said_ru = f"Весов не хватает: {len(lacks):,}, первый — {lacks[0]}"
    place, beyond = places(model), {name for name in lacks if ".weight" in name}
    kept = {place(name)[0] for name in found.taken.values() if place(name)}
    head = set(getattr(model, "_tied_weights_keys", None) or ()) | {"lm_head.weight", "lm_head.bias", "embed_out.weight"}
    unused = kinds(model, found.unused, found.prefix)
    english, russian = (
        "the file is whole and lacks them: take the config.json that belongs to it, or save the model again",
        ("файл цел, и в нём их нет: возьмите config.json этих весов или сохраните модель снова"),
    )
    if (parts := lost_parts(held)) is not None:
        english, russian = (
            f"of the {parts[1]} files of weights {parts[0]} are there: fetch the others too",
            (f"из {parts[1]} файлов весов есть {parts[0]}: загрузите и остальные"),
        )
    elif any(name.endswith("qweight") for name in unused.get("scales", ())):
        english, russian = (
            "the file's are packed (qweight), and config.json has no quantization_config: write the method there",
            ("в файле они упакованы (qweight), а в config.json нет quantization_config: впишите метод"),
        )
    elif not found.taken:
        first = next(iter(held.weights), "none")
        english, russian = (
            f"none of the {len(held.weights):,} in the file is the model's, the first is {first}: config.json is of another model",
            f"из {len(held.weights):,} весов файла в модели нет ни одного, первый в нём — {first}: config.json от другой модели",
        )
    elif set(lacks) <= head:
        english, russian = head_said(model, unused)
    elif kept and beyond and all(place(name) and place(name)[0] > max(kept) for name in lacks):
        setting = layers_setting(model.config)
        english, russian = (
            f"config.json says {place(lacks[0])[1]} layers, the file has {max(kept) + 1}: set {setting} to {max(kept) + 1}",
            f"по config.json слоёв {place(lacks[0])[1]}, в файле {max(kept) + 1}: запишите {setting}={max(kept) + 1}",
        )
    return f"{said}: {english}", f"{said_ru}: {russian}"


def head_said(model: nn.Module, unused: dict[str, tuple[str, ...]]) -> tuple[str, str]:
    """That a file holds a model without the head."""
    whose = next((f" but {names[0]}" for kind, names in unused.items() if kind == "classifier"), "")
    return (
        f"the file holds no language model's head{whose}, and tie_word_embeddings is false: set it to true in config.json if the head is "
        "the embedding, else save the whole model (AutoModelForCausalLM, not AutoModel)",
        "в файле нет головы языковой модели, а tie_word_embeddings — false: запишите true в config.json, если голова — это эмбеддинг, "
        "иначе сохраните всю модель (AutoModelForCausalLM, а не AutoModel)",
    )


def lost_parts(held: Stored) -> tuple[int, int] | None:
    """How many files of weights there are, and of how many by their names; None where none is lost."""
    files = {weight.file.name for weight in held.weights.values()}
    of = {int(found[1]) for file in files if (found := re.search(r"-\d+-of-(\d+)\.", file))}
    return (len(files), max(of)) if of and len(files) < max(of) else None
