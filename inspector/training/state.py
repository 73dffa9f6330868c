"""The saved state of a training run, and what must hold of it: others may have put anything in its place."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ..files import replacing
from ..models.checkpoints import read_tensors
from ..parts.errors import InvariantError
from .folder import STATE
from .recipe import Recipe

MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # of AdamW, for each parameter that has had a gradient


def save_state(out: Path, state: Mapping) -> None:
    """Puts a state in the place of the old one in ``out``. Raises ``OSError`` where there is no room; the old one is still there."""
    with replacing(out / STATE) as new, open(new, "wb") as file:  # a file of Python's: errors of torch's own do not say what went wrong
        torch.save(dict(state), file)


def check_finite(model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, remedy: str) -> None:
    """What must hold before anything is saved.

    Raises:
        InvariantError: a weight, or a moment of the optimizer, is not finite.
    """
    named = dict(model.state_dict())
    for i, moments in optimizer.state_dict()["state"].items():
        named |= {f"{name} of parameter {i}": value for name, value in moments.items()}
    for name, value in named.items():
        if isinstance(value, Tensor) and not bool(value.isfinite().all()):
            raise InvariantError(f"step {step}: {name} is not finite: {remedy}")


def read_state(out: Path, recipe: Recipe, data: str) -> dict:
    """The saved state to go on from, as far as it can be looked at without a model.

    Raises:
        ValueError: there is none, it is not whole, or of another recipe or corpus; ``data`` is the fingerprint of this one.
    """
    path = out / STATE
    if not path.is_file():
        raise ValueError(f"{path}: there is nothing to resume: leave --resume out to begin a run")
    with as_refusal(path):
        state = read_tensors(path)
        own = Recipe(**state["recipe"])  # one saved before a setting was there has its default
        check_course(state, own)
    saved = asdict(own)
    if changed := [f"{k}={saved[k]!r}, now {v!r}" for k, v in asdict(recipe).items() if saved[k] != v]:
        raise ValueError(f"{path} is of another recipe ({'; '.join(changed)}): resume with the same options")
    if state["fingerprint"] != data:
        raise ValueError(f"{path} was trained on another corpus: resume with the same one")
    return state


@contextmanager
def as_refusal(path: Path) -> Iterator[None]:
    """Whatever is wrong with a state that is looked at in the block is one line that names the file and the remedy."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else f"{error}".partition("\n")[0][:200]
        raise ValueError(f"{path}: not a whole training state ({reason}): begin the run anew in another folder") from error


def check_course(state: dict, recipe: Recipe) -> None:
    """The step of a state and the losses until there. Raises ``ValueError``, ``KeyError`` or ``TypeError``."""
    step, losses = state["step"], state["losses"]
    if type(step) is not int or not 0 <= step <= recipe.steps:
        raise ValueError(f"step is {step!r:.40} of {recipe.steps}")
    if not isinstance(state["fingerprint"], str):
        raise ValueError("fingerprint is no text")
    if not isinstance(losses, list) or not all(isinstance(row, dict) and row.keys() == {"step", "train", "validation"} for row in losses):
        raise ValueError("losses are no list of measurements")
    at = [row["step"] for row in losses]
    if not all(type(own) is int and 0 < own <= step for own in at) or sorted(set(at)) != at:
        raise ValueError("losses are of impossible steps")
    told = [row["train"] for row in losses] + [row["validation"] for row in losses if row["validation"] is not None]
    if not all(type(loss) is float and math.isfinite(loss) for loss in told):
        raise ValueError("a loss is no finite number")


def check_fits(state: dict, model: torch.nn.Module, optimizer: torch.optim.Optimizer, scaler, out: Path) -> None:
    """Refuses a state that is not one of this fresh model and what trains it, before anything of it is taken over.

    Args:
        scaler: of gradients; None where there is none.

    Raises:
        ValueError: it is not.
    """
    with as_refusal(out / STATE):
        check_tensors(state["model"], model.state_dict())
        check_optimizer(state["optimizer"], optimizer.state_dict(), list(model.parameters()), state["step"])
        if state["step"] and scaler is None and not state["optimizer"]["state"]:  # which scaled gradients that overflow leave out
            raise ValueError("the optimizer has no moments")
        kept, own = state["scaler"], None if scaler is None else scaler.state_dict()
        if (None if kept is None else kept.keys()) != (None if own is None else own.keys()):
            raise ValueError("it is of another precision")
        if kept is not None and not all(type(kept[name]) in (int, float) and math.isfinite(kept[name]) for name in kept):
            raise ValueError("the scale of gradients is no finite number")


def check_tensors(found: object, own: Mapping[str, Tensor]) -> None:
    """Whether tensors have the names, shapes and types that a model has, and are finite. Raises ``ValueError``."""
    if not isinstance(found, dict) or found.keys() != own.keys():
        raise ValueError("the weights have other names")
    for name, value in own.items():
        check_tensor(name, found[name], value)


def check_tensor(name: str, found: object, own: Tensor) -> None:
    """Whether a tensor is like another one, and finite. Raises ``ValueError``."""
    if not isinstance(found, Tensor) or (found.shape, found.dtype, found.layout) != (own.shape, own.dtype, own.layout):
        raise ValueError(f"{name} is of another shape or type")
    if found.device.type != "cpu" or not bool(found.isfinite().all()):
        raise ValueError(f"{name} is not finite")


def check_optimizer(found: object, fresh: dict, parameters: list[Tensor], step: int) -> None:
    """Whether a state is one of AdamW after so many steps, with the settings of a fresh one but for the rate. Raises ``ValueError``."""

    def settings(groups: list[dict]) -> list[dict]:
        return [{name: value for name, value in group.items() if name != "lr"} for group in groups]

    if not isinstance(found, dict) or found.keys() != fresh.keys() or settings(found["param_groups"]) != settings(fresh["param_groups"]):
        raise ValueError("the optimizer has other settings")
    if not all(type(group["lr"]) is float and math.isfinite(group["lr"]) for group in found["param_groups"]):
        raise ValueError("the learning rate is no finite number")
    moments = found["state"]
    if not isinstance(moments, dict) or (moments and not step) or not moments.keys() <= set(range(len(parameters))):
        raise ValueError("the optimizer's moments are of other parameters")
    for i, own in moments.items():
        if not isinstance(own, dict) or own.keys() != MOMENTS:
            raise ValueError(f"parameter {i} has other moments")
        check_tensor(f"step of parameter {i}", own["step"], torch.tensor(0.0))
        for name in ("exp_avg", "exp_avg_sq"):
            check_tensor(f"{name} of parameter {i}", own[name], parameters[i])
        if not 0 < own["step"].item() <= step or bool((own["exp_avg_sq"] < 0).any()):
            raise ValueError(f"parameter {i} has impossible moments")
