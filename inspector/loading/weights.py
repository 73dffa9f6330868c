"""What lies in a checkpoint's files of weights, by their headers alone, and what of it a model has a place for.

A checkpoint that is loaded and one whose ``tree`` is shown are both looked at here, so that both say the same of it.
"""

import json
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PretrainedConfig

from .checking import LoadError, pretender
from .finding import first_line

SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"  # which transformers looks for, in this order; beside each its index
VARIANT = re.compile(r"(?:model|pytorch_model)\.(?P<variant>[\w-]+)(?:-\d+-of-\d+)?\.(?:safetensors|bin)")
ROWS = 4096  # of two matrices that are compared at a time
BUFFERS = re.compile(r"(rotary_emb\.\w+|inv_freq|masked_bias|causal_mask|cos_cached|sin_cached|position_ids)$")
MASKS = re.compile(r"(attn|attention|self_attn)\.bias$")  # a triangle of [1, 1, T, T] in old versions; else a bias
PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
BASE_LAYER = {r"\.base_layer\.": "."}  # what peft puts between a module's name and its weights


@dataclass(frozen=True)
class Weight:
    """A tensor of a file: where it lies, and what its header says of it."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """The weights of a checkpoint by name; ``variant`` where its files are named by one, such as "fp16"."""

    weights: dict[str, Weight]
    variant: str | None = None


@dataclass(frozen=True)
class Fit:
    """What of a checkpoint's weights a model takes.

    Args:
        taken: name in the file → name in the model.
        unused: names in the file for which the model has no place.
        buffers: likewise, of what old versions saved and new ones compute: nothing is lost without them.
        missing: names in the model that no weight of the file fills, tied ones left out where one of them is there.
        prefix: what stands before the names of the file and not before the model's, such as "module."; mostly nothing.
        renames: patterns of names → what to write instead, as ``from_pretrained`` takes them.
        reshaped: weights of another shape than the model's: name in the model → shape in the file, and in the model.
        apart: weights that the configuration ties and that are two in the file: the model's name → its source's.
        equal: head and embedding that the configuration keeps apart and that are the same in the file; mostly none.
    """

    taken: dict[str, str]
    unused: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    prefix: str = ""
    renames: dict[str, str] = field(default_factory=dict)
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    apart: dict[str, str] = field(default_factory=dict)
    equal: tuple[str, ...] = ()


def stored(folder: Path, config: PretrainedConfig | None = None) -> Stored | None:
    """The weights that transformers would read from a folder; None where there are none that it reads.

    Nothing but headers is read, of pickles what torch's safe reader needs.

    Raises:
        LoadError: a file is damaged, or there are several variants and nothing says which.
    """
    files, variant = weight_files(folder, getattr(config, "transformers_weights", None))
    if not files:
        return None
    found: dict[str, Weight] = {}
    for file in files:
        found |= readable(file)
    return Stored(found, variant)


def weight_files(folder: Path, named: str | None = None) -> tuple[list[Path], str | None]:
    """The files that transformers would read, and their variant; ``named`` is the one that config.json names."""
    if named and not named.endswith((".safetensors", ".safetensors.index.json")):
        raise LoadError(f"config.json says transformers_weights={named!r:.60}: give a .safetensors file or its index, or take it out")
    for name in [named] if named else [SAFETENSORS, f"{SAFETENSORS}.index.json", BIN, f"{BIN}.index.json"]:
        if (folder / name).is_file():
            return shards(folder / name), None
    variants = sorted({found["variant"] for file in folder.glob("*.*") if (found := VARIANT.fullmatch(file.name))})
    if named or not variants:
        return [], None
    if len(variants) > 1:
        raise LoadError(f"its weights are there as {' and '.join(variants)}: rename the files of one to {SAFETENSORS}, without it")
    for stem, kind in (("model", "safetensors"), ("pytorch_model", "bin")):
        for name in (f"{stem}.{variants[0]}.{kind}", f"{stem}.{kind}.index.{variants[0]}.json"):
            if (folder / name).is_file():
                return shards(folder / name), variants[0]
    return [], None


def shards(file: Path) -> list[Path]:
    """A file of weights, or those that an index names."""
    if file.suffix != ".json":
        return [file]
    try:
        return [file.parent / name for name in sorted(set(json.loads(file.read_text(encoding="utf8"))["weight_map"].values()))]
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise LoadError(f"{file.name} is damaged: fetch it again") from error


def header(file: Path) -> dict[str, Weight]:
    """The tensors of a file by name, without their numbers."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as held:
            parts = {name: held.get_slice(name) for name in held.keys()}  # noqa: SIM118
            return {name: Weight(file, DTYPES[part.get_dtype()], tuple(part.get_shape())) for name, part in parts.items()}
    held = torch.load(file, map_location="meta", weights_only=True)
    named = held if isinstance(held, dict) else {}
    found = {name: Weight(file, x.dtype, tuple(x.shape)) for name, x in named.items() if isinstance(x, Tensor)}
    if not found:
        raise LoadError(f"{file.name} {no_tensors(held)}")
    return found


def no_tensors(held: object) -> str:
    """What a pickle without weights by name holds instead, and what makes a file of weights of it, as the rest of a sentence."""
    named = held if isinstance(held, dict) else {}
    for name, inner in named.items():
        if isinstance(inner, dict) and any(isinstance(x, Tensor) for x in inner.values()):
            return f"holds the weights under {name!r:.60} and not by themselves: save what lies there, as model.safetensors"
    what = f"an object of {', '.join(map(str, list(named)[:4]))}" if named else f"a {type(held).__name__}"
    return f"holds {what:.100} and no weights by their names: save the model's state_dict(), as model.safetensors"


def readable(file: Path) -> dict[str, Weight]:
    """``header``. Raises ``LoadError`` with the file, what is wrong with it, and the remedy."""
    try:
        return header(file)
    except FileNotFoundError as error:
        raise LoadError(f"{file.name} is missing: fetch it again") from error
    except PermissionError as error:
        raise LoadError(f"{file.name} cannot be read ({error.strerror}): see to its permissions, or fetch it again") from error
    except LoadError:
        raise
    except Exception as error:  # safetensors' own type, or whatever a foreign pickle makes torch raise
        with open(file, "rb") as opened:
            begin = opened.read(1000)
        if begin.startswith(b"version https://git-lfs.github.com/spec"):
            raise LoadError(f"{file.name} is a pointer of Git LFS and not the file itself: fetch it with git lfs pull") from error
        if other := pretender(begin):
            raise LoadError(f"{file.name} {other[0]}") from error
        if file.suffix != ".safetensors" and (isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error)):
            why = "its weights are a pickle that holds more than tensors, which could run code: ask for a checkpoint in safetensors"
            raise LoadError(why) from error
        said = re.split(r"(?<=[.!?]) ", first_line(error))[0].rstrip(".")  # what torch adds of its archives tells nobody anything
        said = "" if isinstance(error, OSError) else f" ({said})"  # "Invalid argument", of a place beyond the end
        raise LoadError(f"{file.name} is damaged or cut short{said}: fetch it again") from error


class Names(dict):
    """What safetensors calls dtypes → torch's; one that is not listed is taken for bytes."""

    def __missing__(self, name: str) -> torch.dtype:
        return torch.uint8


DTYPES = Names(
    BOOL=torch.bool, U8=torch.uint8, I8=torch.int8, I16=torch.int16, U16=torch.uint16, I32=torch.int32, U32=torch.uint32,
    I64=torch.int64, U64=torch.uint64, F16=torch.float16, BF16=torch.bfloat16, F32=torch.float32, F64=torch.float64,
    F8_E4M3=torch.float8_e4m3fn, F8_E5M2=torch.float8_e5m2, F8_E4M3FNUZ=torch.float8_e4m3fnuz, F8_E5M2FNUZ=torch.float8_e5m2fnuz,
)  # fmt: skip


def fit(model: nn.Module, held: Stored) -> Fit:
    """What of the weights a model takes, under their own names or, where that is what makes them the model's, without a prefix.

    ``model`` is of transformers, and may be on the meta device.

    Raises:
        LoadError: two whole models lie in the file, under a prefix each.
    """
    renames = BASE_LAYER if any(".base_layer." in name for name in held.weights) else {}
    best = placed(model, held.weights, "", renames)
    if best.missing:
        others = [placed(model, held.weights, prefix, renames) for prefix in prefixes(held.weights)]
        others = sorted(others, key=lambda one: (len(one.missing), -len(one.taken), -as_written(one), len(one.prefix)))
        if others and len(others[0].taken) > 2 * len(best.taken):
            best = others[0]
            rivals = [one for one in others[1:] if len(one.taken) == len(best.taken) and not one.missing and not nested(one, best)]
            if rivals and not best.missing:
                named = " and ".join(f"{one.prefix!r}" for one in (best, rivals[0]))
                raise LoadError(f"its weights are of two whole models, under {named}: save one of them alone")
    apart, equal = ties(model, held, best)
    base = f"{model.base_model_prefix}."
    if best.taken and all(name == base + own for name, own in best.taken.items()):
        best = replace(best, prefix=base)  # twice, one of which transformers takes off by itself
    return replace(best, apart=apart, equal=equal)


def as_written(found: Fit) -> int:
    """How many names are the model's own as soon as the prefix is off, without more being done to them."""
    return sum(name.removeprefix(found.prefix) == own for name, own in found.taken.items())


def nested(one: Fit, other: Fit) -> bool:
    """Whether one prefix begins with the other."""
    return one.prefix.startswith(other.prefix) or other.prefix.startswith(one.prefix)


def prefixes(names: Iterable[str]) -> list[str]:
    """What many names begin with, the most common first: beginnings of up to five parts, up to the first number."""
    counted: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")[:-1]
        until = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
        counted.update(".".join(parts[:length]) + "." for length in range(1, min(until, 5) + 1))
    return [prefix for prefix, count in counted.most_common(12) if count > 1]


def placed(model: nn.Module, weights: dict[str, Weight], prefix: str, renames: dict[str, str]) -> Fit:
    """Where transformers would put the weights after ``prefix`` is taken off, with its own renamings and conversions."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    renames = ({f"^{re.escape(prefix)}": ""} if prefix else {}) | renames
    transforms = get_model_conversion_mapping(model, renames or None)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    targets = {source: one.target_patterns for one in converters for source in one.source_patterns}
    there, base = model.state_dict(), model.base_model_prefix
    taken, filled, unused, buffers, reshaped = {}, set(), [], [], {}
    for name, weight in weights.items():
        own, source = rename_source_key(name, renamings, converters, base, there)
        if own not in there and name in there:
            own, source = name, None
        if own in there:
            taken[name] = own
            if source is None and weight.shape != (wanted := tuple(there[own].shape)):  # a converter makes the shape itself
                reshaped[own] = (weight.shape, wanted)
            made = targets[source] if source is not None else [""]
            filled |= {own.replace(made[0], other) if made[0] else own for other in made}
        elif BUFFERS.search(name) or (MASKS.search(name) and len(weight.shape) > 1):
            buffers.append(name)
        else:
            unused.append(name)
    return Fit(taken, tuple(unused), tuple(buffers), tuple(missing(model, there, filled)), prefix, renames, reshaped)


def missing(model: nn.Module, there: Iterable[str], filled: set[str]) -> list[str]:
    """The names in a model that are not filled, nor tied to one that is, nor such as its class does without."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    filled = filled | {tied[name] for name in filled if name in tied}
    filled |= {name for name, source in tied.items() if source in filled}
    without = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
    return [name for name in there if name not in filled and not any(pattern.search(name) for pattern in without)]


def ties(model: nn.Module, held: Stored, found: Fit) -> tuple[dict[str, str], tuple[str, ...]]:
    """Weights that are tied and two in the file, and head and embedding that are not tied and one in the file."""
    in_file = {own: name for name, own in found.taken.items()}
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    both = {name: source for name, source in tied.items() if name in in_file and source in in_file}
    apart = {name: source for name, source in both.items() if not same(held, in_file[name], in_file[source])}
    could = getattr(model, "_tied_weights_keys", None) if not tied else None  # what would be tied if the configuration said so
    pairs = list(could.items()) if isinstance(could, dict) else []
    equal = next((pair for pair in pairs if set(pair) <= set(in_file) and same(held, *map(in_file.get, pair))), ())
    return apart, equal


def same(held: Stored, a: str, b: str) -> bool:
    """Whether two weights of a checkpoint have the same values, read a few rows at a time and no further than they are alike."""
    one, other = held.weights[a], held.weights[b]
    if one.shape != other.shape:
        return False
    return all(torch.equal(x.float(), y.float()) for x, y in zip(rows(one, a), rows(other, b), strict=True))


def rows(weight: Weight, name: str) -> Iterator[Tensor]:
    """A matrix in a file, a few rows at a time."""
    count = weight.shape[0] if weight.shape else 0
    if weight.file.suffix != ".safetensors":
        whole = torch.load(weight.file, map_location="cpu", weights_only=True, mmap=is_zip(weight.file))[name]
        yield from (whole[at : at + ROWS] for at in range(0, count, ROWS))
        return
    with safe_open(weight.file, "pt") as held:
        part = held.get_slice(name)
        yield from (part[at : at + ROWS] for at in range(0, count, ROWS))


def is_zip(file: Path) -> bool:
    """Whether torch wrote a file in its present format, which alone can be mapped."""
    with open(file, "rb") as opened:
        return opened.read(2) == b"PK"


# Kinds of weights that a model has no place for: kind → what is looked for in their names.
KINDS = {
    "lora": re.compile(r"(^|[._])(lora_\w+|ia3_\w+|lokr_\w+|loha_\w+|hada_w\w+|oft_\w+|boft_\w+|vera_\w+|modules_to_save)([._]|$)"),
    "optimizer": re.compile(r"(^|[._])(optimizers?|exp_avg\w*|(lr_)?scheduler|momentum_buffer|_extra_state|num_batches_tracked)([._]|$)"),
    "scales": re.compile(r"((_|\.)(scales?|scale_inv|zero_point|zeros|qzeros|g_idx|qweight|absmax|amax)|\.SCB|quant_\w+|\.weight_format)$"),
    "vision": re.compile(
        r"(^|[._])(vision\w*|visual|image_\w+|img_\w+|vit|audio\w*|speech\w*|mm_projector|multi_modal_projector|aligner|resampler|perceiver)([._]|$)"
    ),
    "mtp": re.compile(r"(^|[._])(mtp\w*|nextn\w*|medusa\w*|eagle\w*|multi_token\w*|eh_proj|enorm|hnorm|shared_head)([._]|$)"),
    "classifier": re.compile(
        r"(^|\.)(scores?|classifier|classification_head|v_head|value_head|reward_head|rm_head|regression_head|qa_outputs|cls|critic|rewards?)(\.|$)"
    ),
}


def kinds(model: nn.Module, names: Sequence[str], prefix: str = "") -> dict[str, tuple[str, ...]]:
    """Weights without a place in a model, by kind: those of ``KINDS``, "layers", "bias", "blocks" (of used blocks), "other".

    ``prefix`` is that of the checkpoint's names: blocks under another are of a second model in the file.
    """
    found: dict[str, list[str]] = {}
    place = places(model)
    further = getattr(model.config.get_text_config(decoder=True), "num_nextn_predict_layers", None) or 0
    for name in names:
        at = place(name.removeprefix(prefix))
        beyond = at is not None and at[0] >= at[1]
        kind = next((kind for kind, pattern in KINDS.items() if pattern.search(name)), None)
        if kind == "classifier" and at is not None:
            kind = None  # a head stands behind the blocks, not in one
        if beyond and kind != "lora":
            kind = "mtp" if at[0] < at[1] + further or kind == "mtp" else "layers"
        if kind is None:
            kind = "bias" if name.endswith((".bias", "_bias")) else "blocks" if at is not None else "other"
        found.setdefault(kind, []).append(name)
    ahead = {number(name.removeprefix(prefix), place) for name in found.get("mtp", ())} - {None}
    found["layers"], moved = split_by(
        found.get("layers", []), lambda name: number(name.removeprefix(prefix), place) in ahead
    )  # an mtp layer's own block
    found.setdefault("mtp", []).extend(moved)
    return {kind: tuple(held) for kind, held in found.items() if held}


def split_by(names: Iterable[str], moves) -> tuple[list[str], list[str]]:
    """Names that stay, and those that move."""
    names = list(names)
    return [name for name in names if not moves(name)], [name for name in names if moves(name)]


def places(model: nn.Module):
    """A function that tells the block in which a weight would stand: (its number, how many there are); None for no block."""
    prefix = f"{model.base_model_prefix}."
    lists = {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    lists |= {name.removeprefix(prefix): length for name, length in lists.items()}  # of a checkpoint of the base alone

    def place(name: str) -> tuple[int, int] | None:
        for dot in re.finditer(r"\.(\d+)\.", name):
            before = name[: dot.start()]
            if before in lists:
                return int(dot[1]), lists[before]
        return None

    return place


def number(name: str, place) -> int | None:
    """The number of the block in which a weight would stand."""
    return at[0] if (at := place(name)) is not None else None


def plural(found: Sequence) -> str:
    """ "1 weight is", "3 weights are"."""
    return f"{len(found)} weight{' is' if len(found) == 1 else 's are'}"
