"""The weight file of a network: a safetensors file that every graph of the network points into.

An ONNX graph's external data is (file, offset, length); a safetensors file is a JSON header and then plain bytes. So
one file is both, and whoever reads safetensors finds a weight by its name.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

#: the name that optimum and its kin look for beside `model.onnx`
WEIGHTS_NAME = "model.onnx_data"

_ALIGNMENT = 64  # of the first tensor: a cache line
_TELL_EVERY = 5.0  # seconds between lines of progress
_SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_IR_DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in the weight file: bytes from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True)
class WeightFile:
    """A weight file that was written."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    transposed: frozenset[str]  # stored as the transpose of the checkpoint's


def store_transposed(model: ir.Model, candidates: Iterable[ir.Value]) -> frozenset[str]:
    """Takes the transposes of weights out of a graph, for the file to hold them.

    torch multiplies by the transpose of a Linear's weight. Where nothing else reads the weight, the graph is to read
    the transpose straight from the file, so that an engine maps it without making a copy.

    Returns:
        The names of the parameters whose transpose the file must hold.
    """
    transposed = set()
    for parameter in candidates:
        nodes = [usage.node for usage in parameter.uses()]
        if not nodes or any(node.op_type != "Transpose" for node in nodes) or parameter.shape is None:
            continue
        if len(parameter.shape) != 2:
            continue
        for node in nodes:
            node.outputs[0].replace_all_uses_with(parameter)
            model.graph.remove(node, safe=True)
        parameter.shape = ir.Shape(list(parameter.shape)[::-1])
        assert parameter.name is not None
        transposed.add(parameter.name)
    return frozenset(transposed)


def write_weights(
    path: Path,
    shapes: Mapping[str, Sequence[int]],
    read: Callable[[str], Tensor],
    *,
    transposed: Collection[str],
    dtype: torch.dtype,
    wider: str = "--weights-dtype fp32 or bf16",
    progress: Callable[[str], None] = lambda _: None,
) -> WeightFile:
    """Writes the weight file of a network; see `write_safetensors`.

    Args:
        path: the file to write.
        shapes: the tensors of the file, in its order, with the shapes that `read` gives them.
        read: gives a tensor by its name.
        transposed: the tensors to store as their transpose.
        dtype: of the storage.
        wider: the options with which a number beyond its range can be stored.
        progress: told every few seconds how far the file is.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
        ValueError: a number is beyond the range of the storage's dtype.
    """
    entries = {
        name: (dtype, tuple(reversed(shape)) if name in transposed else tuple(shape)) for name, shape in shapes.items()
    }

    def stored(name: str) -> Tensor:
        tensor = _converted(name, read(name).detach(), dtype, wider)
        return tensor.T if name in transposed else tensor

    return WeightFile(path, write_safetensors(path, entries, stored, progress=progress), frozenset(transposed))


def write_safetensors(
    path: Path,
    entries: Mapping[str, tuple[torch.dtype, Sequence[int]]],
    read: Callable[[str], Tensor],
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, StoredTensor]:
    """Writes a safetensors file, one tensor after the other: memory holds one of them.

    Args:
        path: the file to write.
        entries: dtype and shape of each tensor, in the order of the file.
        read: gives a tensor, of that dtype and shape, by its name.
        progress: told every few seconds how far the file is.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
        ValueError: the format has no such dtype.
    """
    header: dict[str, dict[str, object]] = {}
    position = 0
    for name, (dtype, shape) in entries.items():
        if dtype not in _SAFETENSORS_DTYPES:
            raise ValueError(f"{name} is {dtype}, which a safetensors file does not hold")
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _SAFETENSORS_DTYPES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    tensors = {}
    told = time.monotonic()
    with path.open("wb") as file, _named(path):
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (dtype, shape) in entries.items():
            tensor = read(name).contiguous()
            assert (tensor.dtype, tuple(tensor.shape)) == (dtype, tuple(shape)), name
            offset = file.tell()
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            tensors[name] = StoredTensor(dtype, tuple(shape), offset, file.tell() - offset)
            if time.monotonic() - told > _TELL_EVERY:
                told = time.monotonic()
                progress(f"{file.tell() / 1e9:.1f} of {position / 1e9:.1f} GB written")
    return tensors


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Says which file it was that could not be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _converted(name: str, tensor: Tensor, dtype: torch.dtype, wider: str) -> Tensor:
    """A tensor in another dtype, whose range must hold it."""
    converted = tensor.to(dtype)
    if dtype.itemsize < tensor.dtype.itemsize and not torch.isfinite(converted).all() and torch.isfinite(tensor).all():
        largest = float(tensor.abs().max())
        raise ValueError(
            f"{name} has a weight of {largest:.3g}, and {dtype} ends at {torch.finfo(dtype).max:.3g}: "
            f"store it wider, {wider}"
        )
    return converted


def bind(model: ir.Model, parameters: Iterable[ir.Value], weights: WeightFile) -> None:
    """Makes a graph's parameters initializers whose data lie in the weight file.

    Where the file's dtype is not the graph's, a Cast follows the initializer: engines fold it when they load.
    """
    for value in list(parameters):
        assert value.name is not None
        stored = weights.tensors[value.name]
        arithmetic = value.dtype
        model.graph.inputs.remove(value)
        value.type = ir.TensorType(_IR_DTYPES[stored.dtype])  # a new one: clones of a graph share theirs
        value.const_value = ir.ExternalTensor(
            location=weights.path.name,
            offset=stored.offset,
            length=stored.length,
            dtype=_IR_DTYPES[stored.dtype],
            shape=ir.Shape(stored.shape),
            name=value.name,
            base_dir=weights.path.parent,
        )
        if arithmetic is not None and arithmetic != value.dtype:
            _cast(model, value, arithmetic)
        model.graph.register_initializer(value)


def _cast(model: ir.Model, value: ir.Value, dtype: ir.DataType) -> None:
    """Puts a Cast between a value and all its readers, the graph's own outputs apart."""
    cast = ir.node("Cast", [value], attributes={"to": dtype.value}, name=f"{value.name}.cast")
    cast.outputs[0].name = f"{value.name}.{dtype.name.lower()}"
    cast.outputs[0].type = ir.TensorType(dtype)
    cast.outputs[0].shape = value.shape
    for usage in list(value.uses()):
        if usage.node is not cast:
            usage.node.replace_input_with(usage.idx, cast.outputs[0])
    model.graph.insert_before(next(iter(model.graph)), cast)
