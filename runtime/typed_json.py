"""Dataclasses from their JSON: every field is there, no other is, and each value is of the type that is annotated."""

import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

_SHOWN = 60  # characters of a value that is refused


def from_json(kind: Any, value: object, where: str) -> Any:
    """A value of a type, made of what JSON has for it.

    Args:
        kind: a dataclass, `str`, `int`, `float` or `bool`; `None` too, and tuples, lists, mappings and unions of those.
        value: as `json` reads it.
        where: what the value is of, for errors.

    Raises:
        TypeError: it, or a part of it, is of another type; a number that is not finite is none.
        ValueError: a dataclass lacks a field, or has one too many.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(value, dict):
        return _dataclass(kind, value, where)
    if origin in (tuple, list) and isinstance(value, list):
        return origin(from_json(arguments[0], part, f"{where}[{index}]") for index, part in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {name: from_json(arguments[1], part, f"{where}[{name!r}]") for name, part in value.items()}
    if origin is UnionType:
        for choice in arguments:
            try:
                return from_json(choice, value, where)
            except TypeError:
                continue
    if kind is float and type(value) in (int, float) and math.isfinite(value):  # type: ignore[arg-type]
        return value
    if kind in (str, int, bool, NoneType) and type(value) is kind:  # a bool is an int elsewhere
        return value
    raise TypeError(f"{where} must be {_spoken(kind)}, got {repr(value)[:_SHOWN]}")


def _dataclass(kind: Any, fields: dict[str, Any], where: str) -> Any:
    types = _types(kind)
    if missing := [name for name in types if name not in fields]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    if unknown := [name for name in fields if name not in types]:
        raise ValueError(f"{where} has the unknown {', '.join(unknown)[:_SHOWN]}")
    return kind(**{name: from_json(types[name], value, f"{where}.{name}") for name, value in fields.items()})


@cache
def _types(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _spoken(kind: Any) -> str:
    if get_origin(kind) in (tuple, list):
        return "a list"
    if get_origin(kind) is Mapping or is_dataclass(kind):
        return "an object"
    return str(kind) if get_origin(kind) is UnionType else str(kind.__name__)
