"""Reading JSON that somebody else wrote: strict, and with a limit of what is read at all."""

import json
from pathlib import Path
from typing import Any, NoReturn

from .regular_file import open_regular_file

#: in bytes; an index of a thousand shards is a tenth of it
_LARGEST_FILE = 16 * 2**20


def read_json_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not valid JSON (see `parse_json_object`), no regular file, a Git LFS pointer, or of more than
            16 MiB.
    """
    with open_regular_file(path) as file:
        text = file.read(_LARGEST_FILE + 1)
    if len(text) > _LARGEST_FILE:
        raise ValueError(f"{path} is of more than {_LARGEST_FILE} bytes, which no configuration is")
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


def parse_json(text: bytes) -> Any:
    """The value of a JSON text (RFC 8259): UTF-8 without a byte order mark, finite numbers, each key once.

    Raises:
        ValueError: it is something else, or nested more deeply than can be read.
    """
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses a second value for a key: readers do not agree on which of the two counts."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"the key {name!r} occurs twice")
        values[name] = value
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


__all__ = ["parse_json", "read_json_object"]
