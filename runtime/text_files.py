"""Reading text and JSON that somebody else wrote: strict, and with a limit to what is read at all."""

import json
from pathlib import Path
from typing import Any

#: in bytes; a manifest of the largest model is a twentieth of it
LARGEST_CONFIGURATION = 8 * 2**20
#: in bytes; of CLIP, 4 MiB
LARGEST_VOCABULARY = 64 * 2**20

_MOST_DIGITS = 300  # of an integer: what a float can hold, so that none overflows where it becomes one


def read_text(path: Path, *, limit: int = LARGEST_CONFIGURATION) -> str:
    """A file's text, which is UTF-8.

    Args:
        path: of a regular file.
        limit: of its size, in bytes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, larger, or not UTF-8.
    """
    try:
        return _content(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


def read_json(path: Path, *, limit: int = LARGEST_CONFIGURATION) -> Any:
    """The value of a JSON file; it may hold the infinities, which diffusers writes, but is else RFC 8259.

    Args:
        path: of a regular file.
        limit: of its size, in bytes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read (see `read_text`), is no JSON, has a key twice or a number that no float can hold,
            or is nested more deeply than can be read.
    """
    return parse_json(_content(path, limit), path)


def parse_json(content: bytes, path: Path) -> Any:
    """The value of a JSON file whose content was read; see `read_json`.

    Raises:
        ValueError: it is none; the message names the path.
    """
    try:
        return json.loads(
            content.decode("utf-8"), object_pairs_hook=_unique, parse_int=_integer, parse_constant=_constant
        )
    except RecursionError as error:
        raise ValueError(f"{path} is not valid JSON: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def read_json_object(path: Path, *, limit: int = LARGEST_CONFIGURATION) -> dict[str, Any]:
    """A JSON file's object; see `read_json`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or not an object.
    """
    value = read_json(path, limit=limit)
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


def _content(path: Path, limit: int) -> bytes:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not path.is_file():  # asked before it is opened: to open a pipe is to wait for its writer
        raise ValueError(f"{path} is not a regular file")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path} is larger than {limit} bytes, which no file of its kind is")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses a second value for a key: readers do not agree on which of the two counts."""
    values = dict(pairs)
    if len(values) < len(pairs):
        for name, _ in pairs:
            if name not in values:
                raise ValueError(f"the key {name!r} occurs twice")
            del values[name]
    return values


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is no number")
    return float(name)
