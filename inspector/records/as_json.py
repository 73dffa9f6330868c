"""Records to JSON and back."""

import math
import types
import typing
from dataclasses import fields, is_dataclass

SCHEMA = 1


def to_json(record) -> object:
    """A record as what ``json.dumps`` takes. Numbers that JSON lacks become the strings "inf", "-inf" and "nan"."""
    if is_dataclass(record):
        return {f.name: to_json(getattr(record, f.name)) for f in fields(record)}
    if isinstance(record, dict):
        return {key: to_json(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [to_json(value) for value in record]
    if isinstance(record, float) and not math.isfinite(record):
        return str(record)
    return record


def from_json(kind, data):
    """The inverse of ``to_json``: a record of the class ``kind``.

    A kind that has grown since its first files says in ``SCHEMAS`` which it reads, the one that it writes last: what those files lack
    has its default.

    Raises:
        ValueError: the data is of another schema, or not a record of this kind.
    """
    if is_dataclass(kind):
        if not isinstance(data, dict):
            raise ValueError(f"expected a {kind.__name__}, found {str(data)[:40]!r}: give what --json wrote")
        hints = typing.get_type_hints(kind)
        known = getattr(kind, "SCHEMAS", (SCHEMA,))
        if "schema" in hints:
            if (schema := data.get("schema")) not in known:
                these = " or ".join(map(str, known))
                raise ValueError(f"schema {schema} of {kind.__name__} is not {these}: read it with the version that wrote it")
            data = data | dict(schema=known[-1])
        if unknown := set(data) - {own.name for own in fields(kind)}:
            raise ValueError(f"{kind.__name__} has no {', '.join(sorted(unknown))}: give what --json wrote")
        try:
            return kind(**{name: of_field(kind, name, hints[name], value) for name, value in data.items()})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not a whole {kind.__name__} ({error}): give what --json wrote") from error
    if isinstance(kind, types.UnionType):
        kinds = [one for one in kind.__args__ if one is not type(None)]
        if len(kinds) > 1 or (data is None and len(kinds) < len(kind.__args__)):
            return data
        return from_json(kinds[0], data)
    if typing.get_origin(kind) is tuple:
        return tuple(from_json(kind.__args__[0], value) for value in of_kind(list, data))
    if typing.get_origin(kind) is dict:
        return {key: from_json(kind.__args__[1], value) for key, value in of_kind(dict, data).items()}
    if kind is object and isinstance(data, list):  # a value of any kind: records hold no lists
        return tuple(from_json(object, value) for value in data)
    if kind is float:
        try:
            return float(data if data in NOT_FINITE else of_kind(float, data))
        except OverflowError:
            raise UnfitError(f"a number, not one of {len(str(data))} digits") from None
    return of_kind(kind, data) if kind in (int, str, bool) else data


NOT_FINITE = ("inf", "-inf", "nan")
WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", list: "a list", dict: "an object"}


class UnfitError(ValueError):
    """Data is of another type than a record has there; says of which it must be."""


def of_kind(kind: type, data):
    """The data, if JSON writes such a value so. Raises ``UnfitError``."""
    kinds = {float: (int, float), list: (list, tuple)}.get(kind, (kind,))
    if type(data) not in kinds:
        raise UnfitError(f"{WORDS[kind]}, not {str(data)[:40]!r}")
    return data


def of_field(kind: type, name: str, hint, value):
    """The value of a record's field. Raises ``ValueError``, which names the field."""
    try:
        return from_json(hint, value)
    except UnfitError as error:
        raise ValueError(f"{name} of {kind.__name__} must be {error}: give what --json wrote") from None
