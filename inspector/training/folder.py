"""The folder of a training run: what lies there, and whether a run may begin or go on there. Importing this needs no torch."""

import os
from pathlib import Path

from ..files import check_folder, check_places, is_empty, read_json, settle
from .recipe import Recipe

STATE = "training_state.pt"
RECIPE = "recipe.json"
METRICS = "metrics.jsonl"
PICTURE = "report.png"
OWN = (STATE, METRICS)  # written while it trains
LAST = "config.json"  # comes to its place last: where it is, the result is whole
RESULT = (RECIPE, METRICS, PICTURE, LAST, "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def check_out(out: Path, resume: bool) -> None:
    """Refuses a folder in which a run cannot begin, or with ``resume`` not go on. What dead processes left half-written is nothing.

    Raises:
        ValueError: it is not empty, or there is nothing to resume, or it cannot be written to, or a file is where the result must come.
    """
    if not resume:
        check_folder(out)
        settle(out)  # whoever is refused finds a whole result there
        if not is_empty(out):
            raise ValueError(f"{out} exists and is not an empty folder: give another --out, or --resume to go on with what is there")
        return
    settle(out)
    if (out / STATE).is_file():
        check_folder(out)
        check_places(out, RESULT, OWN)  # now, and not when all is trained
    elif not os.path.lexists(out / RECIPE):
        raise ValueError(f"{out / STATE}: there is nothing to resume: leave --resume out to begin a run")


def is_finished(out: Path, recipe: Recipe) -> bool:
    """Whether a settled folder holds the result of this very recipe: to resume it there is nothing left to do.

    Raises:
        ValueError: a recipe lies there that ``train`` did not write.
    """
    path = out / RECIPE
    if not (os.path.lexists(path) and (out / LAST).is_file()):
        return False
    try:
        return Recipe(**read_json(path)["recipe"]) == recipe
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} was not written by inspector, or is damaged: move it away") from error
