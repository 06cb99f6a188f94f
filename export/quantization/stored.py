"""Between a graph whose weights lie in a safetensors file, and one that holds them in float32, for a quantizer."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

WEIGHTS_NAME = "model.onnx_data"
_ALIGNMENT = 64  # of the first tensor: a cache line
#: tensors of fewer bytes stay in the graph: shapes, and the scale of an activation
_LARGEST_INLINE = 64
#: NumPy's names, and ml_dtypes' -> those of safetensors
_DTYPES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int8": "I8",
    "uint8": "U8",
    "int32": "I32",
    "int64": "I64",
}

#: the weights of a graph -> the dtype that its file stores them in
StoredDtypes = Mapping[str, np.dtype[Any]]


def float_graph(path: Path, *, load: bool = True) -> tuple[Any, StoredDtypes]:
    """A canonical graph that holds its weights in float32, without Casts of weights that are stored in another dtype.

    Args:
        path: of the graph; its weights lie beside it.
        load: whether the weights are read; the graph has their names alone otherwise.

    Returns:
        The ModelProto, and in which dtype each weight was stored.
    """
    model = onnx.load(path, load_external_data=False)
    stored = {
        tensor.name: onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        for tensor in model.graph.initializer
        if tensor.external_data
    }
    casts = {node.output[0]: node.input[0] for node in model.graph.node if _is_cast_of(node, stored)}
    if load:
        onnx.load_external_data_for_model(model, str(path.parent))
        narrow = {name for name in casts.values() if stored[name] != np.float32}
        for tensor in model.graph.initializer:
            if tensor.name in narrow:
                array = numpy_helper.to_array(tensor).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    kept = [node for node in model.graph.node if node.output[0] not in casts]
    for node in kept:
        node.input[:] = [casts.get(name, name) for name in node.input]
    typed = [value for value in model.graph.value_info if value.name not in casts and value.name not in stored]
    _replace(model.graph.node, kept)
    _replace(model.graph.value_info, typed)
    return model, stored


def save_graph(model: Any, path: Path, stored: StoredDtypes) -> None:
    """Writes a graph, and its weights beside it into a safetensors file that it points into.

    Args:
        model: the ModelProto, which is used up.
        path: of the graph to write.
        stored: the dtypes that floats are stored in, each with a Cast after it; others are stored as they are.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    casts = [
        _narrowed(tensor, stored[tensor.name])
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and stored.get(tensor.name, np.dtype(np.float32)) != np.float32
    ]
    wide = {node.input[0]: node.output[0] for node in casts}
    for node in model.graph.node:
        node.input[:] = [wide.get(name, name) for name in node.input]
    _replace(model.graph.node, [*casts, *model.graph.node])
    outside = [t for t in model.graph.initializer if t.name in stored or _nbytes(t) > _LARGEST_INLINE]
    _write(path.with_name(WEIGHTS_NAME), outside)
    onnx.save(model, path)


def _is_cast_of(node: Any, weights: StoredDtypes) -> bool:
    to_float = any(a.name == "to" and a.i == onnx.TensorProto.FLOAT for a in node.attribute)
    return node.op_type == "Cast" and to_float and node.input[0] in weights


def _narrowed(tensor: Any, dtype: np.dtype[Any]) -> Any:
    """Puts a weight back into the dtype that it was stored in; returns the Cast that makes it float32."""
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    output = f"{tensor.name}.float"
    return onnx.helper.make_node("Cast", [tensor.name], [output], f"{tensor.name}.cast", to=onnx.TensorProto.FLOAT)


def _write(path: Path, tensors: Sequence[Any]) -> None:
    """Writes tensors one after the other, and makes each an external one."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}  # views of their bytes
    position = 0
    for name, array in arrays.items():
        end = position + array.nbytes
        about = {"dtype": _DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": [position, end]}
        header[name], position = about, end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    try:
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors:
                data = np.ascontiguousarray(arrays.pop(tensor.name)).tobytes()
                offset = file.tell()
                file.write(data)
                _point(tensor, path.name, offset, len(data))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _nbytes(tensor: Any) -> int:
    return int(numpy_helper.to_array(tensor).nbytes)


def _point(tensor: Any, location: str, offset: int, length: int) -> None:
    """Makes a tensor external."""
    for field in ("float_data", "int32_data", "int64_data", "raw_data", "external_data"):
        tensor.ClearField(field)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _replace(repeated: Any, values: Sequence[Any]) -> None:
    copies = list(values)
    del repeated[:]
    repeated.extend(copies)
