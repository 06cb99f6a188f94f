"""A model repository for NVIDIA's Triton server: each network of a model folder as a model of its own.

Triton runs networks and knows no pipelines: who uses it has the loop, the scheduler and the tokenizer on the other side
of the wire. What is written was checked against `model_config.proto` and against what the sources of Triton's
onnxruntime backend ask of a configuration; docs/triton.md says how to run it.
"""

import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from safelight.runtime.backends.onnxruntime import target
from safelight.runtime.graph_check import check_graph
from safelight.runtime.model_folder import GRAPH, ModelFolder

from .staging import check_destination, staging

CONFIG = "config.pbtxt"
MAX_BATCH_SIZE = 8  # rows of a call that requests may share

#: the element types that Triton's onnxruntime backend has, by ONNX's number
_DATA_TYPES: dict[int, str] = {
    onnx.TensorProto.BOOL: "TYPE_BOOL",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.INT8: "TYPE_INT8",
    onnx.TensorProto.INT32: "TYPE_INT32",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.DOUBLE: "TYPE_FP64",
}
_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Border:
    """An input or output of a graph."""

    name: str
    data_type: str  # as Triton calls it
    shape: tuple[int | str, ...]  # a free dimension is its name, or "" without one


@dataclass(frozen=True)
class ServedGraph:
    """A graph as Triton is to run it."""

    path: Path
    weights: frozenset[Path]  # files beside or below it
    inputs: tuple[Border, ...]
    outputs: tuple[Border, ...]

    @property
    def shares_batches(self) -> bool:
        """Whether the first dimension of every tensor is the same free one, so that requests can share a call."""
        firsts = {border.shape[0] if border.shape else 0 for border in (*self.inputs, *self.outputs)}
        return len(firsts) == 1 and all(isinstance(first, str) and first for first in firsts)


def write_repository(
    folder: ModelFolder,
    destination: Path,
    *,
    networks: Sequence[str] | None = None,
    device: str = "cpu",
    max_batch_size: int = MAX_BATCH_SIZE,
    progress: Progress = lambda _: None,
) -> tuple[Path, ...]:
    """Writes a model folder's networks as a repository that `tritonserver --model-repository` opens.

    Files are copies: onnx, and ONNX Runtime where a folder has no manifest, refuse weights that have a second name. The
    repository appears at its place when it is whole.

    Args:
        folder: an exported model.
        destination: a folder that is new or empty.
        networks: those to write; all when None.
        device: that Triton runs them on: "cpu", "cuda" (each GPU has an instance) or "cuda:1".
        max_batch_size: rows of a call, of networks whose every tensor begins with the batch.
        progress: told one line a network.

    Returns:
        The folders of Triton's models.

    Raises:
        FileExistsError: the destination holds something.
        FileNotFoundError: the folder lacks a file.
        ValueError: an unknown network or device, a destination that is a link or lies in the model, a graph of a dtype
            that Triton's onnxruntime backend does not have, or a model folder that is not as it was exported.
        OSError: the destination cannot be written.
    """
    check_place(destination, folder.path)
    destination = destination.resolve()
    if not _DEVICE.fullmatch(device):
        raise ValueError(f"Triton runs ONNX graphs on cpu, cuda or cuda:N, got {device!r}")
    if max_batch_size < 1:
        raise ValueError(f"max_batch_size must be at least 1, got {max_batch_size}")
    chosen = folder.networks if networks is None else tuple(networks)
    if unknown := [name for name in chosen if name not in folder.networks]:
        raise ValueError(f"{folder.path} has no network {', '.join(unknown)}; it has {', '.join(folder.networks)}")
    if not chosen:
        raise ValueError(f"{folder.path} has no networks that Triton could run")
    graphs = {name: _served_graph(folder, name, device) for name in chosen}
    model = re.sub(r"[^\w.-]", "_", folder.path.resolve().name, flags=re.ASCII)
    with staging(destination, ["triton"], progress) as stage:
        stage.clear({})
        for network, graph in graphs.items():
            name = f"{model}_{network}"
            place = stage.folder / name
            # a model of several files is a folder of the name that one file would have
            _put(graph, place / "1" / GRAPH)
            text = configuration(name, graph, device=device, max_batch_size=max_batch_size)
            (place / CONFIG).write_text(text, encoding="ascii")
            progress(f"{name}: {graph.path.name}, batches {'shared' if graph.shares_batches else 'not shared'}")
    return tuple(destination / f"{model}_{network}" for network in graphs)


def check_place(destination: Path, model: Path) -> None:
    """Refuses a place where no repository can be, or none that ends up whole.

    Args:
        destination: of the repository.
        model: the model folder, which need not be there yet.

    Raises:
        FileExistsError: the destination holds something.
        ValueError: it is a link, or one of the two lies in the other.
    """
    if destination.is_symlink():
        raise ValueError(f"{destination} is a link; name the folder itself")
    place, other = destination.resolve(), model.resolve()
    if place.is_relative_to(other) or other.is_relative_to(place):
        raise ValueError(f"{destination} and the model {model} lie in one another; name a folder beside it")
    check_destination(destination)


def configuration(name: str, graph: ServedGraph, *, device: str, max_batch_size: int = MAX_BATCH_SIZE) -> str:
    """The `config.pbtxt` of a network, in protobuf's text format."""
    shared = graph.shares_batches
    lines = [
        f"name: {_quoted(name)}",
        'backend: "onnxruntime"',
        f"default_model_filename: {_quoted(GRAPH)}",
        f"max_batch_size: {max_batch_size if shared else 0}",
    ]
    for kind, borders in (("input", graph.inputs), ("output", graph.outputs)):
        for border in borders:
            lines += [f"{kind} {{", *_fields(border, border.shape[1:] if shared else border.shape), "}"]
    lines += ["instance_group {", "  count: 1", *_instances(device), "}"]
    if shared:  # requests of one size that wait are computed in one call
        lines.append("dynamic_batching {}")
    return "\n".join(lines) + "\n"


def _served_graph(folder: ModelFolder, network: str, device: str) -> ServedGraph:
    path = folder.graph(network, target(device))
    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    return ServedGraph(
        path,
        frozenset(check_graph(path)),
        tuple(_border(path, value) for value in graph.input if value.name not in constants),
        tuple(_border(path, value) for value in graph.output),
    )


def _border(path: Path, value: onnx.ValueInfoProto) -> Border:
    tensor = value.type.tensor_type
    if tensor.elem_type not in _DATA_TYPES:
        dtype = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise ValueError(
            f"{path}: {value.name} is of {dtype}, which Triton's onnxruntime backend does not have; "
            "export with --dtype fp32 or fp16"
        )
    if not tensor.HasField("shape"):
        raise ValueError(f"{path}: {value.name} has no shape, which Triton asks for")
    shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim)
    return Border(value.name, _DATA_TYPES[tensor.elem_type], shape)


def _put(graph: ServedGraph, place: Path) -> None:
    """Puts a graph and its weights into a folder, the weights under the names by which the graph looks for them.

    Args:
        graph: with its files.
        place: of the folder, which is made.
    """
    own = {weights.relative_to(graph.path.parent): weights for weights in graph.weights}
    if Path(GRAPH) in own:
        raise ValueError(f"{graph.path} has its weights in {GRAPH}, which is the name of the graph itself")
    for name, source in {Path(GRAPH): graph.path, **own}.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place / name)


def _fields(border: Border, shape: Iterable[int | str]) -> list[str]:
    """The fields of a tensor; a free dimension is -1."""
    dims = [-1 if isinstance(size, str) else size for size in shape]
    found = [f"  name: {_quoted(border.name)}", f"  data_type: {border.data_type}"]
    if dims:
        return [*found, f"  dims: [ {', '.join(map(str, dims))} ]"]
    # a request has no tensors without dimensions; a whole scalar is one of [1] as it is, a row of a batch is reshaped
    return [*found, "  dims: [ 1 ]", *(["  reshape { shape: [] }"] if border.shape else [])]


def _instances(device: str) -> list[str]:
    if device == "cpu":
        return ["  kind: KIND_CPU"]
    _, _, index = device.partition(":")
    return ["  kind: KIND_GPU", *([f"  gpus: [ {int(index)} ]"] if index else [])]


def _quoted(text: str) -> str:
    """A string in protobuf's text format: what is not plain ASCII is octal."""
    plain = (chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in text.encode())
    return f'"{"".join(plain)}"'
