"""Code that comes with a checkpoint and was written for an older transformers: what that did by itself is done here."""

import functools
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import transformers
from torch import nn
from transformers import PretrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module


def mend(source: str, config: PretrainedConfig, offline: bool) -> None:
    """Has the model's class of a checkpoint's own code end its construction as this transformers wants it.

    Older classes list the weights that are tied, or leave that to their output embedding, and some never call ``post_init``.
    """
    code = named(config).get("AutoModelForCausalLM")
    if not code:
        return
    kind = get_class_from_dynamic_module(code, source, local_files_only=offline)
    listed = getattr(kind, "_tied_weights_keys", None)
    if not hasattr(kind, "post_init") or isinstance(listed, dict) or hasattr(kind.__init__, "__wrapped__"):
        return
    kind._tied_weights_keys = None
    build = kind.__init__

    @functools.wraps(build)
    def whole(self, *args, **options):
        build(self, *args, **options)
        tied = ties(self, list(listed or [])) if getattr(self.config, "tie_word_embeddings", False) else {}
        if tied or not hasattr(self, "all_tied_weights_keys"):
            self._tied_weights_keys = tied
            self.post_init()

    kind.__init__ = whole


def named(config: PretrainedConfig | dict) -> dict:
    """The classes of a checkpoint's own code that its configuration names for transformers' automatic ones; of no dict, none."""
    said = config.get("auto_map") if isinstance(config, dict) else getattr(config, "auto_map", None)
    return said if isinstance(said, dict) else {}


def unnamed(config: PretrainedConfig | dict, wanted: str) -> str:
    """The rest of a sentence about a configuration that brings code and names no class of it for ``wanted``."""
    there = ", ".join(map(str, named(config))) or "nothing"
    return (
        f"its config.json names code of its own (auto_map) for {there:.60}, and none for {wanted}: "
        f'write "{wanted}": "FILE.CLASS" into its auto_map, as of a file FILE.py beside it'
    )


def ties(model: nn.Module, listed: list[str]) -> dict[str, str]:
    """Name of a tied weight → that of the input embedding; of the output embedding's where a class lists none."""
    names = {id(weight): name for name, weight in model.named_parameters(remove_duplicate=False)}
    begin, end = model.get_input_embeddings(), model.get_output_embeddings()
    source = names.get(id(getattr(begin, "weight", None)))
    listed = listed or [names.get(id(getattr(end, "weight", None)))]
    return {name: source for name in listed if source and name and name != source}


def absent_import(error: BaseException) -> str | None:
    """The rest of a sentence about an import that a checkpoint's code asks for and that is not here; None for other errors."""
    said = str(error)
    if found := re.search(r"packages that were not found in your environment: ([\w, .-]+?)\. ", said):
        return f"its code imports {found[1]}, which is not installed: pip install {found[1].replace(', ', ' ')}"
    if not isinstance(error, ImportError):
        return None
    if found := re.search(r"cannot import name '(\w+)' from '([\w.]+)'", said):
        name, module = found[1], found[2]
    elif found := re.search(r"No module named '([\w.]+)'", said):
        module, _, name = found[1].rpartition(".")
        module = module or name
    else:
        return None
    place = f" ({found})" if (found := line_of(error)) else ""
    if module.split(".")[0] == "transformers":
        return (
            f"its code imports {name!r} from {module}{place}, which transformers {transformers.__version__} does not have: "
            "take a checkpoint without code of its own, or correct the import in its modeling file"
        )
    return f"its code imports {name!r} ({module}){place}, which is not here: install that package"


def fault(error: BaseException | None, folder: Path | None = None) -> str | None:
    """The rest of a sentence about an error in a checkpoint's own code, with the line of it; None of an error elsewhere.

    ``folder`` holds that code: of a file that does not parse the error does not tell which it is.
    """
    if error is None:
        return None
    if isinstance(error, SyntaxError):
        place = next(unparsed(folder), None) if folder else None
        return place and f"its own code does not parse: {place}: {error.msg}: correct it, or fetch it again"
    if not (place := line_of(error)):
        return None
    said = " ".join(str(error).split())
    if asked := asked_of_transformers(error):
        return (
            f"its own code asks {asked[0]} for {asked[1]!r} ({place}), which transformers {transformers.__version__} does not have: "
            "it was written for an older version: take a checkpoint without code of its own, or correct that line"
        )
    return f"its own code fails in {place}: {type(error).__name__}{f': {said:.200}' if said else ''}: correct it, or fetch it again"


def line_of(error: BaseException) -> str:
    """File and line of a checkpoint's own code where an error began, the deepest; nothing where none of its lines is in it."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if "transformers_modules" in Path(frame.filename).parts]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""


def unparsed(folder: Path) -> Iterator[str]:
    """File and line, of the Python files of a folder that do not parse."""
    for path in sorted(folder.glob("*.py")):
        try:
            compile(path.read_bytes(), str(path), "exec")
        except (SyntaxError, ValueError) as error:
            yield f"{path.name}, line {getattr(error, 'lineno', 1)}"


def asked_of_transformers(error: BaseException) -> tuple[str, str] | None:
    """Class and attribute, where transformers does not have it; of a model's own class, where its code defines it nowhere."""
    found = re.search(r"'(\w+)' (?:object )?has no attribute '(\w+)'", str(error))
    if not isinstance(error, AttributeError) or not found:
        return None
    last = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    asked = last.f_locals.get("self") if error.obj is None else error.obj  # torch's own modules do not tell it
    kind = asked if isinstance(asked, type) else type(asked)
    own = kind.__module__.split(".")[0] == "transformers"
    modelling = sys.modules.get("transformers.modeling_utils")
    if not own and modelling is not None and issubclass(kind, modelling.PreTrainedModel):
        files = {frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)}
        code = "".join(Path(file).read_text() for file in files if "transformers_modules" in Path(file).parts)
        own = not re.search(rf"(def |\.|^\s*){found[2]}\s*(\(self|=[^=])", code, re.MULTILINE)
    return (found[1], found[2]) if own else None
