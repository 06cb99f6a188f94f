"""A file of weights: safetensors, whose tensors are read one at a time, as they are stored."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


class WeightFile(Mapping[str, NDArray[Any]]):
    """The tensors of a safetensors file by name: pages of the file, but for bfloat16, which becomes float32."""

    def __init__(self, path: Path) -> None:
        """Reads the header.

        Raises:
            ValueError: it is no safetensors file.
        """
        from safetensors import SafetensorError, safe_open  # 25 ms to import, and rarely needed

        try:
            with safe_open(path, framework="numpy"):
                pass  # looks at every offset
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file: {error}") from error
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            self._header: dict[str, Any] = json.loads(file.read(size))
        self._header.pop("__metadata__", None)
        self._path, self._start = path, 8 + size

    def __getitem__(self, name: str) -> NDArray[Any]:
        """One tensor; read-only.

        Raises:
            KeyError: there is none of this name.
            ValueError: it is of a dtype that no weight has.
        """
        about = self._header[name]
        if about["dtype"] not in _DTYPES:
            raise ValueError(f"{self._path}: {name} is of {about['dtype']}, which no weight is")
        dtype, shape = np.dtype(_DTYPES[about["dtype"]]), tuple(about["shape"])
        begin, end = about["data_offsets"]
        if begin == end:
            return np.empty(shape, dtype=np.float32 if about["dtype"] == "BF16" else dtype)
        stored = np.memmap(self._path, dtype=dtype, mode="r", offset=self._start + begin, shape=shape)
        if about["dtype"] == "BF16":  # the upper half of a float32
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._header)

    def __len__(self) -> int:
        return len(self._header)
