"""What the weights of a checkpoint say, as seen in their files: how they are read, which are not used, and why some are refused."""

import copy
import re
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from transformers import PretrainedConfig

from ..records.notices import Notice
from .weights import PLAIN, Fit, Stored, kinds, number, placed, places, plural


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
            f"Имена весов в файле начинаются с {prefix!r}{of_wrapper(prefix, 'или', 'и')}, а имена в модели нет: "
            "загружено без этого начала",
        )
    yield from tied_notices(found)
    yield from dtype_notices(held, found, run)
    for kind, names in kinds(model, found.unused, found.prefix).items():
        if kind != "blocks":  # with which it is refused
            english, russian = unused_said(kind, model, held, found, names)
            yield Notice("unused", english, russian, names)


def of_wrapper(prefix: str, either: str = "or", both: str = "and") -> str:
    """Whose work a prefix is, where it is known."""
    known = {"module": f"DataParallel {either} DDP", "_orig_mod": "torch.compile", "base_model": "peft"}
    made = [by for part, by in known.items() if part in prefix.split(".")]
    return f" ({f' {both} '.join(made)})" if made else ""


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
        "other": (
            f"Weights of the checkpoint that are not in the model: {count}: it runs without them; if they are to act, take the config.json "
            "and the code that they were saved with",
            f"Веса чекпойнта, которых в модели нет: {count}: она работает без них; если они нужны, возьмите config.json и код, с которыми "
            "они сохранены",
        ),
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


def shapes_said(config: PretrainedConfig, reshaped: dict[str, tuple[Sequence[int], Sequence[int]]]) -> Notice:
    """That weights have another shape than a configuration gives them: name → shape in the file, and by the configuration."""
    first = next(iter(reshaped))
    there, wanted = ("×".join(map(str, size)) for size in reshaped[first])
    english, russian = (
        "the two are of different models: take the config.json that belongs to the weights",
        "веса и настройки от разных моделей: возьмите config.json этих весов",
    )
    rows = {(a[0], tuple(a[1:]) == tuple(b[1:])) for a, b in reshaped.values() if a and b}
    own = config.get_text_config(decoder=True)
    tables = {tuple(b)[:1] == (getattr(own, "vocab_size", None),) for _, b in reshaped.values()}
    if len(rows) == 1 and (row := next(iter(rows)))[1] and tables == {True}:
        english, russian = f"set vocab_size to {row[0]} in config.json", f"запишите vocab_size={row[0]} в config.json"
    be = f"{plural(reshaped)} of another shape than config.json says, the first is {first}: {there} instead of {wanted}"
    be_ru = f"Весов другой формы, чем по config.json: {len(reshaped):,}, первый — {first}: {there} вместо {wanted}"
    return Notice("refused", f"{be}: {english}", f"{be_ru}: {russian}", tuple(reshaped))


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
        f"the file is whole and lacks {'it' if len(lacks) == 1 else 'them'}: take the config.json that belongs to it, or save the model "
        "again",
        "файл цел, и в нём их нет: возьмите config.json этих весов или сохраните модель снова",
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
    elif (others := [*unused.get("other", ()), *unused.get("blocks", ())]) and 2 * len(others) >= len(lacks) > 1:
        english, russian = (
            f"the file has {len(others):,} that are not the model's, the first is {others[0]}: its names are those of other code: rename "
            "them, or take the config.json that belongs to it",
            f"в файле {len(others):,} других, первый — {others[0]}: это имена из другого кода: переименуйте их или возьмите config.json "
            "этих весов",
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
