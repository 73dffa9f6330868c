"""What config.json and generation_config.json say, read as whoever wrote them meant it; every change is told.

Checkpoints outlive the library that wrote them: names change, numbers were once written as texts, and some of what is written never
could act. What can be read only in one way is read in that way, with a notice. What cannot is refused by its name and value.
"""

import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available, is_kernels_available, is_torch_flex_attn_available

from ..parts.wrappers import language_model
from ..records.generation import OTHER_SETTINGS, SETTINGS, Sampling, is_id
from ..records.notices import Notice
from .checking import LoadError, read_object
from .sizes import short

NUMBER = re.compile(r"-?(\d{1,18}(\.\d{0,18})?|\.\d{1,18})(e[-+]?\d{1,3})?", re.IGNORECASE | re.ASCII)
WORDS = {"true": True, "false": False}
# Settings whose texts stay texts whatever they spell: names, versions, labels, and what holds other programs' settings.
TEXTS = re.compile(r"version|name|path|type$|revision|label|task|commit|auto_map|quantization_config|stop_strings|_token$|architectures")
DTYPES = {
    **dict.fromkeys(("fp32", "float", "full", "f32"), "float32"),
    **dict.fromkeys(("fp16", "half", "f16"), "float16"),
    **dict.fromkeys(("bf16", "brain"), "bfloat16"),
    **dict.fromkeys(("fp64", "double", "f64"), "float64"),
}
COMPUTES = ("float32", "bfloat16", "float16", "float64")
ATTENTION = (
    *("_attn_implementation", "attn_implementation", "_attn_implementation_internal"),
    *("_flash_attn_2_enabled", "use_flash_attn", "use_flash_attention", "use_flash_attention_2", "flash_attention"),
)
ROPE = ("rope_scaling", "rope_parameters")
OLD_ROPE = {"su": "longrope"}
ROPE_NEEDS = {  # type of rotary positions → what transformers cannot do without; the original length it takes from the config
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
RENAMED = {"RefinedWeb": "falcon", "RefinedWebModel": "falcon"}
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id", "decoder_start_token_id")


def as_numbers(value: object) -> object:
    """A text that spells a number as that number, lists as tuples, with what they hold likewise; everything else as it is."""
    if isinstance(value, list | tuple):
        return tuple(map(as_numbers, value))
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        return int(value) if value.strip().lstrip("-").isdigit() else float(value)
    return value


def spells(value: object) -> bool:
    """Whether a value holds a text that is read as a number."""
    return any(map(spells, value)) if isinstance(value, list | tuple) else isinstance(value, str) and not isinstance(as_numbers(value), str)


def shipped(model: nn.Module) -> GenerationConfig:
    """The generation settings that a model ships, also one inside a module of the user's; empty where there are none."""
    return getattr(language_model(model), "generation_config", None) or GenerationConfig()


def spelled(own: GenerationConfig) -> dict:
    """The settings that are written as texts and read as the numbers that they spell: name → number."""
    values = {name: getattr(own, name, None) for name in ("eos_token_id", *SETTINGS, *OTHER_SETTINGS)}
    return {name: as_numbers(value) for name, value in values.items() if spells(value)}


def as_ids(value: object, name: str = "eos_token_id") -> tuple[int, ...]:
    """Token ids as a tuple, in whichever of its forms a generation config holds them; ``name`` is that of the setting.

    Raises:
        ValueError: it is nothing of that kind.
    """
    read = as_numbers(value)
    ids = () if read is None else read if isinstance(read, tuple) else (read,)
    if not all(map(is_id, ids)):
        raise ValueError(f"its generation settings say {name}={value!r:.60}: give a token id, a list of them, or null")
    return ids


def stops(model: nn.Module) -> tuple[int, ...]:
    """The tokens that end a generation, by the settings that a model ships, else by its configuration.

    Raises:
        ValueError: they are no token ids.
    """
    language = model if (inside := language_model(model)) is None else inside
    stop = getattr(getattr(language, "generation_config", None), "eos_token_id", None)
    return as_ids(getattr(getattr(language, "config", None), "eos_token_id", None) if stop is None else stop)


def understood(settings: dict, trust_remote_code: bool = False) -> tuple[dict, tuple[Notice, ...]]:
    """What a config.json says, in the words of this transformers, and what was read otherwise than it is written.

    Raises:
        LoadError: a setting that can be read in no way; the message goes on after "its config.json says".
    """
    read = deepcopy(settings)
    notices = [*spelled_out(read), *renamed(read, trust_remote_code)]
    for path, part in parts(read):
        notices += [*dtypes(part, path), *attention(part, path, trust_remote_code), *rope(part, path, read), *special_ids(part, path)]
    return read, tuple(notices)


def parts(settings: dict, path: str = "") -> Iterator[tuple[str, dict]]:
    """A configuration and those inside of it, such as that of a text model, each with the path to it."""
    yield path, settings
    for name, value in settings.items():
        if isinstance(value, dict) and name.endswith("_config") and not TEXTS.search(name):
            yield from parts(value, f"{path}{name}.")


def told(kind: str, english: str, russian: str, names: list[str]) -> Iterator[Notice]:
    """A notice with what was found, in the sentence itself; none where nothing was."""
    if names:
        listed = ", ".join(names[:4]) + (f" (+{len(names) - 4})" if len(names) > 4 else "")
        yield Notice(kind, english.format(listed), russian.format(listed), tuple(names) if len(names) > 4 else ())


def spelled_out(settings: dict, file: str = "config.json") -> Iterator[Notice]:
    """Numbers, true and false that are written as texts become what they spell."""
    found: list[str] = []

    def read(value: object, name: str) -> object:
        if isinstance(value, dict):
            return {key: inner if TEXTS.search(key) else read(inner, f"{name}.{key}") for key, inner in value.items()}
        if isinstance(value, list):
            return [read(inner, name) for inner in value]
        if not isinstance(value, str):
            return value
        as_read = WORDS.get(value.strip().lower(), as_numbers(value))
        if not isinstance(as_read, str):
            found.append(f"{name}={short(value)}")
        return as_read

    settings.update({key: value if TEXTS.search(key) else read(value, key) for key, value in settings.items()})
    yield from told(
        "settings",
        file + " writes numbers, true or false as texts, read as what they spell: {}: take the quotation marks away",
        file + " записывает числа, true или false текстом, они прочитаны по смыслу: {}: уберите кавычки",
        found,
    )


def renamed(settings: dict, trust_remote_code: bool) -> Iterator[Notice]:
    """A type of model in its present name, one that only the architecture tells, and an architecture of another type."""
    kind, architecture = settings.get("model_type"), next(iter(settings.get("architectures") or []), None)
    if settings.get("auto_map") and (trust_remote_code or kind not in CONFIG_MAPPING):
        return
    architecture = architecture if isinstance(architecture, str) else None
    known = {name.lower().replace("-", "_"): name for name in CONFIG_MAPPING}
    if isinstance(kind, str) and kind not in CONFIG_MAPPING:
        read = RENAMED.get(kind, known.get(kind.lower().replace("-", "_")))
        if read:
            settings["model_type"] = read
            yield Notice(
                "settings",
                f"config.json says model_type={short(kind)}, an old name, read as {read!r}: write that instead",
                f"config.json: model_type={short(kind)}, старое имя, прочитано как {read!r}: запишите его",
            )
    elif kind is None and (read := type_of(architecture)):
        settings["model_type"] = read
        yield Notice(
            "settings",
            f"config.json names no model_type, read as {read!r} because of its architecture {architecture}: write it into config.json",
            f"В config.json нет model_type, прочитано как {read!r} по архитектуре {architecture}: допишите его в config.json",
        )
    kind = settings.get("model_type")
    if architecture is None or kind not in CONFIG_MAPPING:
        return
    built = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind) or AutoModelForCausalLM._model_mapping.get(CONFIG_MAPPING[kind], None)
    built = built[0] if isinstance(built, tuple) else built
    built = built if isinstance(built, str) else getattr(built, "__name__", None)
    if built and architecture.lower() != built.lower() and type_of(architecture) != kind:
        what = f"is of model_type {type_of(architecture)!r}" if type_of(architecture) else "is no class of transformers"
        что = f"относится к model_type {type_of(architecture)!r}" if type_of(architecture) else "в transformers нет"
        yield Notice(
            "settings",
            f"config.json names the architecture {short(architecture)}, which {what}: by its model_type {kind!r} it is built as {built}; "
            "if its code is another, give the model as FILE.py:factory",
            f"config.json называет архитектуру {short(architecture)}, которая {что}: по model_type {kind!r} она построена как {built}; "
            "если её код другой, дайте модель как FILE.py:factory".replace("которая в transformers нет", "которой в transformers нет"),
        )


def type_of(architecture: str | None) -> str | None:
    """The model type of a class of transformers, by its name; None for what is no such class."""
    own = getattr(transformers, architecture, None) if architecture and architecture.isidentifier() else None
    return getattr(getattr(own, "config_class", None), "model_type", None)


def dtypes(settings: dict, path: str) -> Iterator[Notice]:
    """The precision in torch's word for it; none where it is "auto", and of those that nothing computes in, bfloat16."""
    for key in ("dtype", "torch_dtype"):
        said = settings.get(key)
        if not isinstance(said, str) or said in COMPUTES:
            continue
        word = said.strip().lower().removeprefix("torch.")
        read = None if word in ("auto", "none", "") else DTYPES.get(word, word)
        if read is not None and not isinstance(getattr(torch, read, None), torch.dtype):
            raise LoadError(f"{path}{key}={short(said)}: choose one of {', '.join(COMPUTES)}, or take it out")
        if read is not None and read not in COMPUTES:
            read = "bfloat16"
        if read is None:
            del settings[key]
        else:
            settings[key] = read
        if word == "auto" or (read and word == read):
            continue
        yield Notice(
            "settings",
            f"config.json says {path}{key}={short(said)}, read as {read or 'none'}: --dtype says in which precision it runs",
            f"config.json: {path}{key}={short(said)}, прочитано как {read or 'отсутствующее'}: точность прогона задаёт --dtype",
        )


def attention(settings: dict, path: str, trust_remote_code: bool) -> Iterator[Notice]:
    """Code for attention that is not installed is not asked for."""
    there = {
        "flash_attention_2": is_flash_attn_2_available,
        "flash_attention_3": is_flash_attn_3_available,
        "flex_attention": is_torch_flex_attn_available,
    }
    found = []
    for key in ATTENTION:
        said = settings.get(key)
        if isinstance(said, str) and said not in ("eager", "sdpa", "auto"):
            own_code = "/" in said and trust_remote_code and is_kernels_available()
            if not (own_code or there.get(said, bool)()):
                found.append(f"{path}{key}={short(said)}")
                del settings[key]
        elif said is True and not is_flash_attn_2_available():
            found.append(f"{path}{key}=true")
            settings[key] = False
    yield from told(
        "settings",
        "config.json asks for attention by code that is not installed here: {}: it runs with what torch has (sdpa, else eager); "
        "for the other, install its package on a machine with a GPU",
        "config.json просит внимание с кодом, который здесь не установлен: {}: работает то, что есть в torch (sdpa, иначе eager); "
        "для другого установите его пакет на машине с GPU",
        found,
    )


def rope(settings: dict, path: str, whole: dict) -> Iterator[Notice]:
    """Rotary positions under their present names, with the original length where the type needs one."""
    for key in ROPE:
        said = settings.get(key)
        if said is None or said == {}:
            continue
        if not isinstance(said, dict):
            raise LoadError(f'{path}{key}={short(said)}: give an object such as {{"rope_type": "linear", "factor": 2.0}}, or null')
        nested = [(f"{path}{key}.{name}", inner) for name, inner in said.items() if isinstance(inner, dict)]
        for name, one in nested or [(f"{path}{key}", said)]:
            yield from one_rope(one, name, settings, own_code=bool(whole.get("auto_map")))


def one_rope(one: dict, name: str, settings: dict, own_code: bool) -> Iterator[Notice]:
    """As ``rope``, for the settings of one kind of layer."""
    new, old = one.get("rope_type"), one.get("type")
    kind = new if new is not None else old
    if new is not None and old is not None and OLD_ROPE.get(old, old) != OLD_ROPE.get(new, new):
        yield Notice(
            "settings",
            f"config.json says {name}.rope_type={short(new)} and type={short(old)}: rope_type acts; take one of them out",
            f"config.json: {name}.rope_type={short(new)} и type={short(old)}: действует rope_type; уберите одно из них",
        )
    if kind is None and "factor" in one:
        yield Notice(
            "settings",
            f"config.json says {name}.factor={short(one['factor'])} without a rope_type: it does not act; name the type, such as linear",
            f"config.json: {name}.factor={short(one['factor'])} без rope_type: оно не действует; назовите тип, например linear",
        )
    if isinstance(kind, str) and kind in OLD_ROPE and not own_code:
        kind = one["rope_type"] = OLD_ROPE[kind]
        one.pop("type", None)
        yield Notice(
            "settings",
            f"config.json says {name}.type={short(old or new)}, the old name of {kind}, read as that: write rope_type={kind!r}",
            f"config.json: {name}.type={short(old or new)}, старое имя {kind}, так и прочитано: запишите rope_type={kind!r}",
        )
    if not own_code and isinstance(kind, str) and (missing := [need for need in ROPE_NEEDS.get(kind, ()) if one.get(need) is None]):
        raise LoadError(f"{name} of type {kind!r} without {' and '.join(missing)}: add it, or take {name} out")
    if kind == "longrope" and not own_code and (pairs := rotated_pairs(settings | one)):
        for need in ROPE_NEEDS[kind]:
            if isinstance(one[need], list) and len(one[need]) != pairs:
                raise LoadError(
                    f"{name}.{need} of {len(one[need])} numbers: a head has {pairs} pairs that turn: give as many, or take {name} out"
                )
    for number in ("factor", "rope_theta", "attention_factor", "beta_fast", "beta_slow", "original_max_position_embeddings"):
        if (value := one.get(number)) is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise LoadError(f"{name}.{number}={short(value)}: give a number")
    if kind in ("yarn", "longrope", "llama3") and one.get("original_max_position_embeddings") is None:
        own = settings.get("original_max_position_embeddings")
        length = own if own is not None else settings.get("max_position_embeddings")
        if isinstance(length, int) and not own_code:
            one["original_max_position_embeddings"] = length
            if own is None:
                yield Notice(
                    "settings",
                    f"config.json says {name} of type {kind} without original_max_position_embeddings: the model's own length of {length} "
                    "is taken; add the length that it was trained with",
                    f"config.json: {name} типа {kind} без original_max_position_embeddings: взята длина самой модели, {length}; "
                    "допишите длину, с которой её обучали",
                )
    beside, within = settings.get("rope_theta"), one.get("rope_theta")
    if beside is not None and within is not None and beside != within:
        yield Notice(
            "settings",
            f"config.json says rope_theta={short(beside)} and {name}.rope_theta={short(within)}: the second acts; take one of them out",
            f"config.json: rope_theta={short(beside)} и {name}.rope_theta={short(within)}: действует второе; уберите одно из них",
        )
    if kind in ROPE_NEEDS and isinstance(factor := one.get("factor"), (int, float)) and factor < 1:
        yield Notice(
            "settings",
            f"config.json says {name}.factor={factor}, less than 1: positions are drawn apart instead of together; give 1 or more",
            f"config.json: {name}.factor={factor}, меньше 1: позиции растягиваются, а не сжимаются; дайте 1 или больше",
        )


def rotated_pairs(settings: dict) -> int | None:
    """How many pairs of a head's dimensions rotary positions turn; None where config.json itself does not tell."""
    width, heads, own = (settings.get(name) for name in ("hidden_size", "num_attention_heads", "head_dim"))
    if "qk_rope_head_dim" in settings or not (type(own) is int or (type(width) is int and type(heads) is int and heads > 0)):
        return None
    part = settings.get("partial_rotary_factor", 1)
    return int((own if type(own) is int else width // heads) * part) // 2 if isinstance(part, int | float) else None


def special_ids(settings: dict, path: str = "", vocab_size: int | None = None, file: str = "config.json") -> Iterator[Notice]:
    """Special tokens that the model does not have are taken out.

    Raises ``LoadError`` for an end token that is no id: when a generation ends must not be guessed.
    """
    size = vocab_size if vocab_size is not None else settings.get("vocab_size")
    found = []
    for key in SPECIAL:
        said = settings.get(key)
        if said is None:
            continue
        several = said if isinstance(said, list) else [said]
        numbers = [as_numbers(one) for one in several]
        if key == "eos_token_id" and not all(type(one) is int for one in numbers):
            raise LoadError(f"{path}{key}={short(said)}: give a token id, a list of them, or null")
        kept = [one for one, number in zip(several, numbers, strict=True) if is_id(number) and (type(size) is not int or number < size)]
        if key != "eos_token_id" and isinstance(said, list) and file == "config.json":
            kept = []  # one is meant, and no class takes several
        if len(kept) < len(several):
            found.append(f"{path}{key}={short(said)}")
            settings[key] = None if not kept else kept if isinstance(said, list) else kept[0]
    where = f"0 … {size - 1}" if type(size) is int else "0 …"
    yield from told(
        "settings",
        file + " names special tokens that the model does not have: {}: they do not act; its ids are " + where,
        file + " называет особые токены, которых у модели нет: {}: они не действуют; её номера " + where,
        found,
    )


def generation(path: Path | None, config: PretrainedConfig, changed: bool) -> tuple[GenerationConfig | None, tuple[Notice, ...]]:
    """The generation settings of a checkpoint where transformers' own reading would fail or lose some; and what to know of them.

    ``path`` is that of generation_config.json, if there is one; ``changed`` says that the configuration is not as config.json writes it.
    None in place of the settings: transformers reads them as they are meant.

    Raises:
        LoadError: an end token that is no id; the message goes on after "its generation settings say".
    """
    if path is None:  # transformers takes config.json's, and reads the file itself
        return (GenerationConfig.from_model_config(config) if changed else None), ()
    try:
        held = read_object("", path)
    except LoadError as error:
        why = str(error).removeprefix(": ").removeprefix(f"{path.name} ")
        acts = f"eos_token_id={short(config.eos_token_id)}" if getattr(config, "eos_token_id", None) is not None else "no end token"
        said = (
            f"{path.name} {why}; without it what config.json says acts: {acts}",
            f"{path.name} не прочитан ({why}); без него действует config.json: {acts}",
        )
        return GenerationConfig.from_model_config(config), (Notice("settings", *said),)
    read = deepcopy(held)
    shown_elsewhere = {name: read.pop(name) for name in ("eos_token_id", *SETTINGS, *OTHER_SETTINGS) if name in read}
    notices = [*spelled_out(read, path.name)]
    read |= shown_elsewhere
    if isinstance(sample := read.get("do_sample"), str):
        read["do_sample"] = WORDS.get(sample.strip().lower(), sample)
    vocab_size = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    notices += [*special_ids(read, vocab_size=vocab_size, file=path.name), *dropped(read), *without_effect(read, config)]
    return (GenerationConfig.from_dict(deepcopy(read)) if read != held else None), tuple(notices)


def without_effect(settings: dict, config: PretrainedConfig) -> Iterator[Notice]:
    """Settings that change nothing, or that nothing could follow."""
    idle, odd = [], []
    known = vars(GenerationConfig())
    for name, value in settings.items():
        entry, number = SETTINGS.get(name) or OTHER_SETTINGS.get(name), as_numbers(value)
        if value is None or name.startswith("_") or name in ("transformers_version", "custom_generate", "eos_token_id"):
            continue
        if name not in known:
            idle.append(f"{name}={short(value)} (transformers {transformers.__version__} has no such setting)")
        elif entry is not None and entry.draws and settings.get("do_sample") is not True:
            if entry.acts(number) and number != entry.filled_in:
                idle.append(f"{name}={short(value)} (do_sample is not true)")
        elif entry is not None and not entry.acts(number):
            if number not in (*entry.off, 0):
                idle.append(f"{name}={short(value)} (such a value does nothing)")
        elif (name in SETTINGS and impossible_setting(name, number)) or (
            name in ("max_length", "max_new_tokens") and isinstance(number, int) and number < 1
        ):
            odd.append(f"{name}={short(value)}")
    least, most = (as_numbers(settings.get(name)) for name in ("min_length", "max_length"))
    if isinstance(least, int) and isinstance(most, int) and least > most > 0:
        odd.append(f"min_length={least} > max_length={most}")
    yield from told(
        "settings",
        "generation_config.json holds settings that do not act: {}: take them out, or set what they need",
        "В generation_config.json есть настройки, которые не действуют: {}: уберите их или задайте то, что им нужно",
        idle,
    )
    yield from told(
        "settings",
        "generation_config.json holds settings that cannot be: {}: they are not applied here; correct them",
        "В generation_config.json есть невозможные настройки: {}: здесь они не применяются; исправьте их",
        odd,
    )
    own, shipped = (as_set(getattr(config, "eos_token_id", None)), as_set(settings.get("eos_token_id")))
    if own and shipped and not own <= shipped:
        ends = ", ".join(map(str, sorted(shipped)))
        others = ", ".join(map(str, sorted(own - shipped)))
        yield Notice(
            "settings",
            f"config.json ends a generation with token {others}, generation_config.json with {ends}: the second acts; make them agree",
            f"config.json завершает генерацию токеном {others}, generation_config.json — {ends}: действует второе; согласуйте их",
        )


def impossible_setting(name: str, value: object) -> bool:
    """Whether a sampling setting cannot have a value."""
    try:
        Sampling(**{name: (value,) if name == "forced_eos_token_id" and is_id(value) else value})
    except (ValueError, TypeError):
        return True
    return False


def as_set(value: object) -> set:
    """Token ids in whichever form they are written."""
    read = as_numbers(value)
    return {one for one in (read if isinstance(read, tuple) else (read,)) if is_id(one)}


def dropped(settings: dict) -> Iterator[Notice]:
    """Settings for which transformers refuses all of them are taken out."""
    found = []
    while (error := refused(settings)) is not None and settings:
        named = [name for name in re.findall(r"\w+", str(error)) if settings.get(name) is not None]
        alone = [name for name in settings if refused({key: value for key, value in settings.items() if key != name}) is None]
        name = next((one for one in named if one in alone), (alone or named or [next(reversed(settings))])[0])
        found.append(f"{name}={short(settings.pop(name))}")
    yield from told(
        "settings",
        "generation_config.json holds settings that transformers refuses: {}: they are left out; correct them",
        "В generation_config.json есть настройки, которые transformers отвергает: {}: они опущены; исправьте их",
        found,
    )


def refused(settings: dict) -> Exception | None:
    """What transformers says against generation settings; None where it takes them."""
    try:
        GenerationConfig.from_dict(deepcopy(settings))
    except Exception as error:  # it may be anything: values are compared before they are looked at
        return error
    return None


def refused_value(config: PretrainedConfig, error: Exception) -> str | None:
    """The rest of a sentence about a setting whose value transformers looks up and does not have, if an error is of that."""
    if not isinstance(error, KeyError) or not error.args or not isinstance(error.args[0], str):
        return None
    from transformers.activations import ACT2FN  # here and in the like places of this room: it imports half of torch

    for _, settings in parts(config.to_dict()):
        inner = {f"{key}.{name}": one for key in ROPE for name, one in (settings.get(key) or {}).items()}
        for name, value in (settings | inner).items():
            if value == error.args[0]:
                known = f"choose one of default, {', '.join(ROPE_NEEDS)}" if name in inner else "give one that it has"
                known = f"write {value.lower()!r}" if value != value.lower() and value.lower() in ACT2FN else known
                return f"its config.json says {name}={short(value)}, which transformers {transformers.__version__} does not have: {known}"
    return None
