"""A safetensors file, read strictly and with plain reads: a tensor is in memory only while somebody holds it.

The library of that name maps the file, so that every page that was looked at counts as the process's own until the
file is closed, and takes the last of two tensors of one name. Both matter where a checkpoint of many gigabytes, which
somebody else wrote, is read one tensor at a time.

The format: 8 bytes with the length of the header, little-endian; the header, a JSON object that gives dtype, shape and
place of each tensor; the tensors' bytes, without gaps.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeGuard

import torch
from torch import Tensor

from .json_file import parse_json
from .regular_file import open_regular_file

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
}
_METADATA = "__metadata__"
_PREFIX = 8  # bytes, which hold the length of the header
_LONGEST_HEADER = 100_000_000  # the format's own limit, in bytes
_MOST_DIMENSIONS = 64  # torch's own limit
_LARGEST_SIZE = 2**63 - 1


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies in the file, and what it is."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # of its first byte, from the start of the file
    length: int  # in bytes


class SafetensorsFile:
    """A safetensors file, whose header was read and found to describe exactly the bytes that are there.

    It is open only while something is read.

    Attributes:
        path: of the file.
        tensors: every tensor by its name, in the order in which they lie in the file.
        metadata: what the writer noted; empty when nothing.
    """

    path: Path
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]

    def __init__(self, path: str | Path) -> None:
        """Opens the file and reads its header.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is truncated or corrupt, or describes other bytes than it has; it is no regular file, or a
                Git LFS pointer.
        """
        self.path = Path(path)
        with open_regular_file(self.path) as file:
            self._size = os.fstat(file.fileno()).st_size
            try:
                header, start = _read_header(file, self._size)
                self.metadata = MappingProxyType(_metadata(header.pop(_METADATA, None)))
                self.tensors = MappingProxyType(_entries(header, start, self._size))
            except ValueError as error:
                raise self._corrupt(error) from error

    def read(self, name: str) -> Tensor:
        """A tensor of its own memory, on the CPU, with the dtype and the shape of its entry.

        Raises:
            KeyError: there is no such tensor.
            ValueError: the file has another size than when it was opened.
        """
        entry = self.tensors[name]
        buffer = torch.empty(entry.length, dtype=torch.uint8)
        with open_regular_file(self.path) as file:
            file.seek(entry.offset)
            read = file.readinto(buffer.numpy().data)
            if read != entry.length or os.fstat(file.fileno()).st_size != self._size:
                raise self._corrupt(f"it changed before {name} was read")
        return buffer.view(entry.dtype).reshape(entry.shape)

    def _corrupt(self, reason: object) -> ValueError:
        return ValueError(f"{self.path} is truncated or corrupt; download it again ({reason})")


def _read_header(file: BufferedReader, size: int) -> tuple[dict[str, Any], int]:
    """The header, and where it ends in the file."""
    length = int.from_bytes(file.read(_PREFIX), "little")
    if size < _PREFIX:
        raise ValueError(f"it has {size} bytes, less than the length of a header")
    if length > _LONGEST_HEADER:
        raise ValueError(f"it claims a header of {length} bytes; at most {_LONGEST_HEADER} are allowed")
    if length > size - _PREFIX:
        raise ValueError(f"it claims a header of {length} bytes, and has {size - _PREFIX}")
    header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"its header must be a JSON object, got {type(header).__name__}")
    return header, _PREFIX + length


def _metadata(values: object) -> dict[str, str]:
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise ValueError(f"its {_METADATA} must be an object of strings")
    return values


def _entries(header: Mapping[str, Any], start: int, size: int) -> dict[str, TensorEntry]:
    """The tensors in the order of the file, whose bytes they share out between them: no gap, nothing twice."""
    entries = sorted(
        ((name, _entry(name, value, start)) for name, value in header.items()),
        key=lambda item: (item[1].offset, item[1].length),
    )
    position = start
    for name, entry in entries:
        if entry.offset != position:
            fault = "overlaps the tensor before it" if entry.offset < position else "leaves a gap before it"
            raise ValueError(f"{name} {fault}: it begins at {entry.offset - start}, expected {position - start}")
        position += entry.length
    if position != size:
        raise ValueError(f"its header describes {position} bytes, and it has {size}")
    return dict(entries)


def _entry(name: str, value: object, start: int) -> TensorEntry:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be described by an object, got {type(value).__name__}")
    spelled, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(spelled, str) or spelled not in _DTYPES:
        raise ValueError(f"{name} has the dtype {str(spelled)[:20]!r}; known: {', '.join(_DTYPES)}")
    # a limit on the dimensions keeps their product, which Python computes without overflow, from taking forever
    if not _are_sizes(shape) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"{name} has an unusable shape: expected at most {_MOST_DIMENSIONS} sizes of 0 or more")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{name} has unusable data_offsets: expected where it begins and ends")
    dtype = _DTYPES[spelled]
    begin, end = offsets
    if prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"{name} is {spelled} of shape {shape}, and has {end - begin} bytes")
    return TensorEntry(dtype, tuple(shape), start + begin, end - begin)


def _are_sizes(values: object) -> TypeGuard[list[int]]:
    """Whether a JSON value is a list of integers that 64 bits with a sign can hold, none of them negative."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= _LARGEST_SIZE for value in values)


__all__ = ["SafetensorsFile", "TensorEntry"]
