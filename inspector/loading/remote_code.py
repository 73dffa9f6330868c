"""Code that comes with a checkpoint and was written for an older transformers: what that did by itself is done here."""

import functools
import re

import transformers
from torch import nn
from transformers import PretrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module


def mend(source: str, config: PretrainedConfig, offline: bool) -> None:
    """Has the model's class of a checkpoint's own code end its construction as this transformers wants it.

    Older classes list the weights that are tied, or leave that to their output embedding, and some never call ``post_init``.
    """
    code = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
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
    if module.split(".")[0] == "transformers":
        return (
            f"its code imports {name!r} from {module}, which transformers {transformers.__version__} does not have: "
            "take a checkpoint without code of its own, or correct the import in its modeling file"
        )
    return f"its code imports {name!r} ({module}), which is not here: install that package"
