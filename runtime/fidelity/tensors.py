"""A proof's arrays in a safetensors file: each once, and no wider than it must be to come back bit for bit."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..backends import Array
from .examples import MAX_ENTRIES
from .view import View

#: arrays of so many entries are numbers in the JSON
_INLINE = 128
_DTYPES = ("float32", "int64", "uint8")


class TensorWriter:
    """Collects arrays, and says how each is found again."""

    def __init__(self) -> None:
        self._tensors: dict[str, Array] = {}
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def whole(self, array: Array) -> dict[str, Any]:
        """An array, kept row by row: those of guidance's two halves, or of two steps, are often the same."""
        about = {"dtype": str(array.dtype), "shape": list(array.shape)}
        if array.size <= _INLINE:
            return {**about, "values": array.ravel().tolist()}
        return {**about, "rows": [self._name(_narrowed(row)) for row in array]}

    def view(self, view: View) -> dict[str, Any]:
        """What is kept of an output."""
        values = view.values.tolist() if view.values.dtype == np.bool_ else self._name(view.values)
        return {"shape": list(view.shape), "values": values}

    def write(self, path: Path) -> None:
        """Writes the file."""
        from safetensors.numpy import save

        path.write_bytes(save(self._tensors))

    def _name(self, tensor: Array) -> str:
        key = str(tensor.dtype), tensor.shape, tensor.tobytes()
        if key not in self._names:
            self._names[key] = str(len(self._tensors))
            self._tensors[self._names[key]] = np.ascontiguousarray(tensor)
        return self._names[key]


class TensorReader:
    """The arrays of a file.

    Raises:
        ValueError: it is no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            self._tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is truncated or corrupt: {error}") from error

    def whole(self, record: Mapping[str, Any]) -> Array:
        """The array that `TensorWriter.whole` was given."""
        dtype, shape = record["dtype"], tuple(map(int, record["shape"]))
        if dtype not in _DTYPES:
            raise ValueError(f"an input cannot be {dtype}")
        if "values" in record:
            return np.array(record["values"], dtype=dtype).reshape(shape)
        rows = [self._tensors[name] for name in record["rows"]]
        entries = sum(row.size for row in rows)
        if entries != math.prod(shape) or entries > MAX_ENTRIES:
            raise ValueError(f"an input of {entries} entries cannot have the shape {shape}")
        return np.stack([_widened(row, dtype) for row in rows]).reshape(shape)

    def view(self, record: Mapping[str, Any]) -> View:
        """The view that `TensorWriter.view` was given."""
        kept = record["values"]
        values = self._tensors[kept] if isinstance(kept, str) else np.array(kept, dtype=np.bool_)
        return View(tuple(map(int, record["shape"])), values)


def _narrowed(row: Array) -> Array:
    """Pixels as bytes and halves as halves, where that loses nothing."""
    if row.dtype != np.float32:
        return row
    with np.errstate(over="ignore", invalid="ignore"):
        bytes_, halves = ((row + 1) * 127.5).round().astype(np.uint8), row.astype(np.float16)
    return next((each for each in (bytes_, halves) if np.array_equal(_widened(each, "float32"), row)), row)


def _widened(row: Array, dtype: str) -> Array:
    """The inverse of `_narrowed`; bytes are the pixels of a picture in [-1, 1], as `preprocess_image` makes them."""
    if row.dtype == np.uint8 and dtype == "float32":
        return np.asarray(2 * (row.astype(np.float32) / 255) - 1, dtype=np.float32)
    return row.astype(dtype)
