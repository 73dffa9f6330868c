"""Why a view of a model is not shown, and what numbers a request may hold."""

from numbers import Integral


class InvariantError(RuntimeError):
    """A view is not shown, because what must hold of it does not; the text says what."""


class NoPartError(ValueError):
    """A view is of a part that the model does not have, or not in a form that is known here."""


def shown(value: object) -> str:
    """A value as Python shows it, the beginning of it, on one line."""
    return " ".join(repr(value)[:200].split())[:60]


def whole(name: str, value: object, low: int | None = None) -> int:
    """A whole number that was asked for. Raises ``ValueError`` where it is none, or below ``low``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or (low is not None and value < low):
        raise ValueError(f"{name}={value!r}: give a whole number" + ("" if low is None else f" from {low} up"))
    return int(value)


class NoSumError(ValueError):
    """The model's stream or head is not of a kind whose logits are a sum over what its components write: a wrong request."""


def in_a_line(error: Exception) -> str:
    """The kind of an error of foreign code, and the first line of what it says."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
