"""From a name to a place: embedded, a folder, the hub; and the configuration that lies there. Nothing of the weights is read."""

import json
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import transformers
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import HFValidationError, get_session, validate_repo_id
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from ..files import settle
from ..models.checkpoints import without_bars
from ..records.generation import Origin
from ..records.notices import Notice
from .checking import LoadError, check_checkpoint, check_regular, read_object
from .formats import a_file, no_config
from .remote_code import absent_import, fault, named, unnamed
from .settings import understood
from .sizes import impossible

DEFAULT = "Qwen/Qwen2.5-0.5B-Instruct"
FALLBACK = "names-qwen2"
ASSETS = Path(__file__).parents[1] / "assets"
PROBE_SECONDS = 2.5


def load_config(name: str, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a model, and nothing else of it: a name as for ``load``, or the path of a config.json.

    Raises:
        LoadError: it cannot be had, or is of no causal language model.
    """
    return read_config(name, trust_remote_code)[0]


def read_config(name: str, trust_remote_code: bool = False) -> tuple[PretrainedConfig, tuple[Notice, ...]]:
    """As ``load_config``, and what of its config.json was read otherwise than it is written (``settings.understood``)."""
    path = place(name)
    if path.is_file():
        read_object(name, path)
        source, offline = str(path), True
    elif isinstance(try_to_load_from_cache(name, "config.json") if is_hub_id(name) else None, str):
        source, offline = name, True
    else:
        source, _, offline = find(name)
    check_source(name, source)
    with quiet(bars=offline):
        try:
            written, _ = PretrainedConfig.get_config_dict(source, local_files_only=offline)
            read, notices = understood(written, trust_remote_code) if isinstance(written, dict) else (written, ())
            check_known(name, read, trust_remote_code)
            config = config_of(source, written, read, trust_remote_code, offline)
        except LoadError as error:
            said = str(error)
            raise error if said.startswith(name) else LoadError(f"{name}: its config.json says {said}") from error
        except Exception as error:  # whatever a damaged or foreign configuration makes transformers raise
            if found := absent_import(error) or fault(error, path if path.is_dir() else None):
                raise LoadError(f"{name}: {found}") from error
            raise LoadError(
                f"{name}: its config.json cannot be read: {first_line(error).rstrip('.')}: correct it or fetch it again"
            ) from error
    check_causal(name, config)
    return config, notices


def config_of(source: str, written: dict, read: dict, trust_remote_code: bool, offline: bool) -> PretrainedConfig:
    """The configuration that a config.json describes, of the settings as they are ``read`` where that is not as they are ``written``."""
    if read == written:
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, local_files_only=offline)
    code = named(read).get("AutoConfig")
    if code and trust_remote_code:
        kind = get_class_from_dynamic_module(code, source, local_files_only=offline)
        kind.register_for_auto_class()
    else:
        kind = CONFIG_MAPPING[read["model_type"]]
    return kind.from_dict(read, name_or_path=source)


def check_source(name: str, source: str) -> None:
    """Refuses a damaged or hostile folder, the hub's cache of a model included. Raises ``LoadError``."""
    held = None if Path(source).exists() else try_to_load_from_cache(source, "config.json")
    folder = Path(held).parent if isinstance(held, str) else Path(source)
    if folder.is_dir():
        check_checkpoint(name, folder)


def place(name: str) -> Path:
    """The path that a name would be. Raises ``LoadError`` for what can be none, such as a name of ten thousand characters."""
    try:
        path = Path(name).expanduser()
        path.exists()
        return path
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: of a user that there is not
        reason = getattr(error, "strerror", None) or first_line(error)
        raise LoadError(
            f"{name[:60]!r}: no path ({reason.rstrip('.')}): give a folder, a hub id, or one of {', '.join(embedded())}"
        ) from error


def check_known(name: str, settings: dict, trust_remote_code: bool) -> None:
    """Refuses a configuration without a model type, or of one that transformers does not know. Raises ``LoadError``."""
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if kind is None:
        raise LoadError(f"{name}: its config.json names no model_type: it is not a model's configuration")
    if why := impossible(settings):
        raise LoadError(f"{name}: its config.json says {why}")
    if kind not in CONFIG_MAPPING and not (trust_remote_code and settings.get("auto_map")):
        remedy = "it brings code of its own: read it, then add --trust-remote-code" if settings.get("auto_map") else "update transformers"
        raise LoadError(f"{name}: transformers {transformers.__version__} does not know its model_type {kind!r:.60}: {remedy}")
    if kind not in CONFIG_MAPPING and "AutoConfig" not in named(settings):
        raise LoadError(f"{name}: {unnamed(settings, 'AutoConfig')}")


def check_causal(name: str, config: PretrainedConfig) -> None:
    """Refuses what ``AutoModelForCausalLM`` does not build, and encoder-decoders. Raises ``LoadError``."""
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise LoadError(f"{name} is an encoder-decoder ({kind}): only decoders have one backbone and one head")
    if type(config) not in AutoModelForCausalLM._model_mapping and "AutoModelForCausalLM" not in named(config):
        if named(config):
            raise LoadError(f"{name}: {unnamed(config, 'AutoModelForCausalLM')}")
        raise LoadError(f"{name} is a {kind or type(config).__name__}, which is no causal language model of transformers")


@contextmanager
def quiet(bars: bool) -> Iterator[None]:
    """Without transformers' warnings, whose substance becomes errors here; ``bars`` hides progress too, downloads' included."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    accelerate = logging.getLogger("accelerate")
    level = accelerate.level
    accelerate.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), without_bars() if bars else nullcontext():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        accelerate.setLevel(level)


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
    path = place(name)
    if name.strip() and path.is_dir():
        settle(path)
        if not check_regular(name, path / "config.json"):
            if (path / "training_state.pt").is_file():
                raise LoadError(f"{name}: a training that has not ended: end it with inspector train --resume and the options it had")
            raise LoadError(f"{name}: {no_config(path)}")
        return str(path), Origin(name, "folder"), True
    if path.is_file():
        raise LoadError(f"{name} {a_file(path)}")
    if name.strip() and path.exists():
        raise LoadError(f"{name} is a pipe, socket or device: give the folder that holds the checkpoint")
    if name.endswith(".onnx"):
        raise LoadError(f"{name}: no such file: give one that inspector export wrote")
    if not is_hub_id(name):
        raise LoadError(f"{name!r:.80}: no such folder, and not a hub id: the embedded models are {', '.join(embedded())}")
    if is_cached(name):
        return name, Origin(name, "hub"), True
    if hub_answers():
        return name, Origin(name, "hub"), False
    raise LoadError(
        f"{name!r} is no folder here, not embedded ({', '.join(embedded())}), not in the hub's cache, and the hub does not answer: "
        "check the spelling or the network"
    )


def is_hub_id(name: str) -> bool:
    """Whether a name can be a model's on the hub."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 or not name.startswith((".", "/", "~"))


def is_cached(name: str) -> bool:
    """Whether a hub model lies whole in the local cache: configuration, tokenizer, and every shard of its weights."""

    def cached(file: str) -> str | None:
        path = try_to_load_from_cache(name, file)
        return path if isinstance(path, str) else None

    if not cached("config.json") or not (cached("tokenizer.json") or cached("tokenizer_config.json")):
        return False
    if index := cached("model.safetensors.index.json"):
        try:
            shards = set(json.loads(Path(index).read_text(encoding="utf8"))["weight_map"].values())
            return all(cached(shard) for shard in shards)
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            return True  # it is there, and ``check_source`` says what is wrong with it
    return bool(cached("model.safetensors") or cached("pytorch_model.bin"))


def is_here(name: str) -> bool:
    """Whether loading a name fetches nothing; also where it leads nowhere."""
    return not is_hub_id(name) or name in embedded() or place(name).is_dir() or is_cached(name)


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


POINTERS = (  # what a library says beside what is wrong: of reports that are not shown, of pages, of its own switches
    r"see (the )?(report|log|warning|message|traceback|error)s? (above|below)|\b(listed|shown|printed|reported) above\b",
    r"https?://|(for|find) more (details|information)|please (open|file|report|consider|refer|check out|see)|learn more",
    r"set .{1,60} to see|you can inspect|pass the argument|\bpip install\b.{0,40}git\+|stack ?trace|if you (think|believe)",
)
POINTS = re.compile("|".join(POINTERS), re.IGNORECASE)
VALIDATOR = re.compile(r"^Class validation error for validator '\w+':\s+\w+:\s+")
LONGEST = 300


def first_line(error: BaseException) -> str:
    """What an error says first, on one line: whole sentences, of at most 300 characters together unless one alone is longer.

    A line that ends in a colon or a comma goes on in the next. Sentences that send the reader to what is not shown here, such as a
    report or a page, are left out. The type stands before a message that alone says nothing, or is empty.
    """
    lines = [" ".join(line.split()) for line in VALIDATOR.sub("", str(error)).splitlines() if line.strip()]
    said = ""
    while lines and not said:
        text = lines.pop(0)
        while lines and text.endswith((":", ",")):
            text += f" {lines.pop(0)}"
        for one in re.split(r"(?<=[.!?])\s+(?=[A-ZА-Я`'\"])", text):
            if not POINTS.search(one) and (not said or len(said) + len(one) < LONGEST):
                said = f"{said} {one}".strip()
    if len(said) > LONGEST:  # of one sentence alone as many words as fit, and that it goes on
        said = said[: LONGEST + 1].rsplit(" ", 1)[0].rstrip(" ,;:.(") + " …" if " " in said[:LONGEST] else f"{said[:LONGEST]}…"
    if not said or isinstance(error, (LookupError, AttributeError, RecursionError, AssertionError)):
        said = f"{type(error).__name__} {said}".strip()
    return said
