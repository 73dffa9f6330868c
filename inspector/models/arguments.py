"""What the builders of native models take, and what a configuration from a file may say of it."""

import math
from inspect import Parameter, signature

from .expert import ExpertModel
from .families import FAMILY_BUILDERS
from .variants import VARIANTS

BUILDERS = {"expert": ExpertModel, **VARIANTS, **FAMILY_BUILDERS}
PREFIX = "inspector-"


def arguments_of(variant: str) -> dict[str, Parameter]:
    """What a variant's builder takes, without the counts that ``ExpertModel`` is checked against: they make no other model."""
    parameters = signature(BUILDERS[variant]).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in ("total_params", "non_embedding_params")}


NONE_ALLOWED = ("n_shared_experts", "n_dense_layers", "mtp_depth")  # counts that may be 0


def check_arguments(variant: str, arguments: dict) -> None:
    """Refuses arguments of a builder that are of another type than its signature says, and counts below 1.

    A configuration from a file holds whatever its writer put there, and a layer count of ``true`` would pass for 1.

    Raises:
        ValueError: with the name, the value and what to give.
    """
    for name, parameter in arguments_of(variant).items():
        value, kind = arguments[name], str(parameter.annotation)
        if value is None and "None" in kind:
            continue
        least = 0 if name in NONE_ALLOWED else 1
        if "int" in kind and not (type(value) is int and value >= least):
            raise ValueError(f"{name}={value!r:.60}: give a whole number from {least} up")
        if "float" in kind and not (type(value) in (int, float) and 0 <= value < math.inf):
            raise ValueError(f"{name}={value!r:.60}: give a number from 0 up")
        if "bool" in kind and type(value) is not bool:
            raise ValueError(f"{name}={value!r:.60}: give true or false")
