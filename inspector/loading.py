"""From a name to a model that can be taken apart: hub id, local folder, native checkpoint, embedded model."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
import transformers
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import HFValidationError, get_session, validate_repo_id
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from .decoding import Texts
from .models.checkpoints import without_bars  # importing models also registers them with the Auto classes
from .records import Origin, Token
from .splitting import Split, context_length, split

DEFAULT = "Qwen/Qwen2.5-0.5B-Instruct"
FALLBACK = "names-qwen2"
ASSETS = Path(__file__).parent / "assets"
PROBE_SECONDS = 2.5
OTHER_SETTINGS = (  # of a generation config, that change what is drawn and that Sampling does not have
    *("min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "no_repeat_ngram_size", "bad_words_ids", "sequence_bias"),
    *("min_length", "min_new_tokens", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"),
    *("exponential_decay_length_penalty", "guidance_scale", "num_beams", "penalty_alpha", "watermarking_config"),
)
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


class LoadError(ValueError):
    """A model that was asked for cannot be had."""


@dataclass(frozen=True)
class Loaded:
    """A model with everything a run by hand needs.

    Args:
        model: as transformers built it, in evaluation mode.
        tokenizer: of the model.
        split: its backbone and head, proved.
        stop_ids: tokens that end a generation.
        context_length: the most tokens the model reads; None when its configuration does not say.
        texts: how ids become text.
        origin: where it is from.
        device: where it is.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    split: Split
    stop_ids: tuple[int, ...]
    context_length: int | None
    texts: Texts
    origin: Origin
    device: torch.device

    def encode(self, prompt: str, system: str | None = None, raw: bool = False) -> list[int]:
        """The ids that are fed for a prompt: through the chat template if the tokenizer has one and ``raw`` is off.

        Raises:
            ValueError: a system message for a model without a chat template, or for a raw prompt.
        """
        chat = self.tokenizer.chat_template is not None and not raw
        if system is not None and not chat:
            why = "--raw leaves the chat template out" if raw else f"{self.origin.name} has no chat template"
            raise ValueError(f"a system message has no place: {why}: leave --system out")
        if not chat:
            return self.tokenizer(prompt)["input_ids"]
        messages = [{"role": "system", "content": system}] if system is not None else []
        messages.append({"role": "user", "content": prompt})
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]

    def unknown(self, prompt: str) -> list[str]:
        """The characters of a prompt that the tokenizer does not know, in order, each once."""
        unk = self.tokenizer.unk_token_id
        if unk is None or not self.tokenizer.is_fast:
            return []
        encoded = self.tokenizer(prompt, return_offsets_mapping=True, add_special_tokens=False)
        spans = [span for id, span in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True) if id == unk]
        return list(dict.fromkeys(prompt[a:b] for a, b in spans))

    def checkpoint_settings(self) -> dict:
        """The sampling settings that the checkpoint ships, as arguments of ``Sampling``.

        Raises:
            ValueError: it ships a setting that ``Sampling`` does not have.
        """
        own = self.model.generation_config
        others = {name: value for name in OTHER_SETTINGS if (value := getattr(own, name, None)) not in (None, 0, 1.0, False, [])}
        if others:
            listed = ", ".join(f"{name}={value}" for name, value in others.items())
            raise ValueError(f"{self.origin.name} also ships {listed}, which is not applied here: leave --checkpoint-settings out")
        settings = dict(repetition_penalty=own.repetition_penalty, temperature=own.temperature, top_k=own.top_k or None, top_p=own.top_p)
        if own.do_sample is False or own.do_sample is None:
            settings = dict(repetition_penalty=own.repetition_penalty, temperature=0.0)
        elif own.top_k is None:
            settings["top_k"] = 50  # what generate() fills in when it samples and nobody says otherwise
        return {name: value for name, value in settings.items() if value is not None}


def load(name: str, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False) -> Loaded:
    """Loads a causal language model and splits it, with the proof.

    Args:
        name: an embedded model ("names-expert", "names-qwen2"), a folder, or a hub id such as "Qwen/Qwen2.5-0.5B-Instruct".
        device: "auto" takes cuda, mps or cpu, the first that is there.
        dtype: "auto" keeps the checkpoint's on an accelerator and takes float32 on the CPU.
        trust_remote_code: run code that comes with the checkpoint. Leave it off unless you have read that code.

    Raises:
        LoadError: the model cannot be had, or is not whole. Without network this takes at most three seconds.
        SplitError: it cannot be split.
    """
    where = pick_device(device)
    as_dtype = pick_dtype(dtype, where)
    source, origin, offline = find(name)
    options = dict(trust_remote_code=trust_remote_code, local_files_only=offline)
    try:
        with quiet(bars=offline):
            model, report = AutoModelForCausalLM.from_pretrained(source, dtype=as_dtype, output_loading_info=True, **options)
            tokenizer = load_tokenizer(source, options)
    except Exception as error:  # whatever a damaged or foreign checkpoint makes transformers raise
        raise LoadError(f"{name}: cannot be loaded: {first_line(error)}") from error
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise LoadError(f"{name}: its tokenizer has no vocabulary: put tokenizer.json beside the weights")
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise LoadError(
            f"{name}: {len(missing)} weights are missing, the first is {missing[0]}: the checkpoint is not whole, fetch it again"
        )
    return attach(model.eval().to(where), tokenizer, origin)


@contextmanager
def quiet(bars: bool) -> Iterator[None]:
    """Without transformers' warnings, whose substance becomes errors here; ``bars`` hides progress too, downloads' included."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with without_bars() if bars else nullcontext():
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def load_tokenizer(source: str, options: dict) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, of the class that the checkpoint names.

    ``AutoTokenizer`` overrules a generic class by the model's type, and so reads a character tokenizer beside a Qwen2
    as Qwen's: everything becomes nothing, silently.
    """
    generic = get_tokenizer_config(source, **options).get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")
    return (PreTrainedTokenizerFast if generic else AutoTokenizer).from_pretrained(source, **options)


def attach(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, origin: Origin) -> Loaded:
    """A ``Loaded`` around a model and a tokenizer that are already there. Raises ``SplitError`` as ``split`` does."""
    stop = model.generation_config.eos_token_id
    if stop is None:
        stop = getattr(model.config, "eos_token_id", None)
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        split=split(model),
        stop_ids=() if stop is None else tuple(stop) if isinstance(stop, list) else (stop,),
        context_length=context_length(model),
        texts=Texts(token=partial(token_of, tokenizer), whole=partial(tokenizer.decode, skip_special_tokens=True)),
        origin=origin,
        device=next(model.parameters()).device,
    )


def token_of(tokenizer: PreTrainedTokenizerBase, id: int) -> Token:
    """A token's text; one that is part of a character shows its bytes, such as ``<D0>``."""
    special = id in tokenizer.all_special_ids or id in tokenizer.added_tokens_decoder
    text = tokenizer.decode([id])
    if "\ufffd" in text:
        text = as_bytes(tokenizer.convert_ids_to_tokens(id)) or text
    return Token(id, text, special)


def as_bytes(piece: str | None) -> str | None:
    """The bytes behind a piece of a byte-level vocabulary, which writes each byte as a printable character; else None."""
    printable = {character: byte for byte, character in byte_characters().items()}
    if not piece or any(character not in printable for character in piece):
        return None
    return "".join(f"<{printable[character]:02X}>" for character in piece)


@cache
def byte_characters() -> dict[int, str]:
    """Byte → the character that byte-level tokenizers write for it (GPT-2's table: printable Latin-1 stays as it is)."""
    as_is = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in as_is]
    return {byte: chr(byte) for byte in as_is} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def embedded() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in ASSETS.glob("*/config.json"))


def find(name: str) -> tuple[str, Origin, bool]:
    """Where a name leads: what to hand to ``from_pretrained``, the origin, and whether to stay off the network.

    Raises:
        LoadError: nowhere.
    """
    if name in embedded():
        return str(ASSETS / name), Origin(name, "embedded"), True
    path = Path(name).expanduser()
    if name.strip() and path.is_dir():
        if not (path / "config.json").is_file():
            raise LoadError(f"{name}: the folder has no config.json: give the folder that save_pretrained or inspector train wrote")
        return str(path), Origin(name, "folder"), True
    if path.is_file():
        raise LoadError(f"{name} is a file: give the folder that holds the checkpoint")
    try:
        validate_repo_id(name)
        is_path = name.count("/") != 1 and name.startswith((".", "/", "~"))
    except HFValidationError:
        is_path = True
    if is_path:
        raise LoadError(f"{name!r}: no such folder, and not a hub id: the embedded models are {', '.join(embedded())}")
    if is_cached(name):
        return name, Origin(name, "hub"), True
    if hub_answers():
        return name, Origin(name, "hub"), False
    raise LoadError(
        f"{name!r} is no folder here, not embedded ({', '.join(embedded())}), not in the hub's cache, and the hub does not answer: "
        "check the spelling or the network"
    )


def is_cached(name: str) -> bool:
    """Whether a hub model lies whole in the local cache: configuration, tokenizer, and every shard of its weights."""

    def cached(file: str) -> str | None:
        path = try_to_load_from_cache(name, file)
        return path if isinstance(path, str) else None

    if not cached("config.json") or not (cached("tokenizer.json") or cached("tokenizer_config.json")):
        return False
    if index := cached("model.safetensors.index.json"):
        shards = set(json.loads(Path(index).read_text())["weight_map"].values())
        return all(cached(shard) for shard in shards)
    return bool(cached("model.safetensors") or cached("pytorch_model.bin"))


def hub_answers(seconds: float = PROBE_SECONDS) -> bool:
    """Whether the hub can be reached, decided within ``seconds``: a name server that hangs must not hang us."""
    if constants.is_offline_mode():
        return False
    answers = []

    def ask() -> None:
        try:
            answers.append(get_session().head(constants.ENDPOINT, timeout=seconds).status_code)
        except Exception:  # any failure to reach it means the same
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers) and answers[0] < 500


def load_default(**options) -> Loaded:
    """The model to show when the user names none: the real Qwen if it is cached or the hub has it, else an embedded one.

    ``options`` as in ``load``. Which of the two it became is in ``origin.name``.
    """
    if is_cached(DEFAULT) or hub_answers():
        try:
            return load(DEFAULT, **options)
        except LoadError:  # a hub that answers and then breaks off, or a network that answers for it
            pass
    return load(FALLBACK, **options)


def pick_device(device: str) -> torch.device:
    """ "auto", or the name of a device that this machine has.

    Raises:
        LoadError: it has none of that name.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, available in there.items() if available)
    if not there.get(device.split(":")[0], False):
        have = ", ".join(name for name, available in there.items() if available)
        raise LoadError(f"device {device!r} is not on this machine: choose auto or one of {have}")
    return torch.device(device)


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """What to hand to ``from_pretrained`` as dtype. Raises ``LoadError`` for an unknown one."""
    if dtype not in DTYPES:
        raise LoadError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    return getattr(torch, dtype)


def first_line(error: Exception) -> str:
    """An error's message on one line, its type where the message is empty."""
    lines: Sequence[str] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
