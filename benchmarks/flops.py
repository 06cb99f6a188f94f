"""How many floating-point operations a network's graph takes: what a time is to be divided by.

An ONNX graph says which, once its shapes are known. A multiplication and the addition after it are two, as everybody
counts them; convolutions and products of matrices count (attention is two of these), and nothing else, which would
add about one in a hundred.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from safelight.runtime.backends import Array

Shape = Sequence[int]
#: shapes by name; the node; -> operations
_Count = Callable[[Mapping[str, Shape], NodeProto], int]

_SIZES = 64  # an array of integers as long as this is no shape


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run takes, whatever runs it."""

    flops: int
    numbers: int  # that the counted operators read, weights too, and write: each once, as if nothing stayed in a cache


def graph_flops(graph: Path, inputs: Mapping[str, Shape]) -> int:
    """The operations of one run of a graph; see `graph_work`."""
    return graph_work(graph, inputs).flops


def graph_work(graph: Path, inputs: Mapping[str, Shape]) -> Work:
    """The operations of one run of a graph, and the numbers that go through the operators that are counted.

    Args:
        graph: an ONNX file of the standard operators, in one domain; its weights are not read.
        inputs: the shape of each of the network's inputs.

    Raises:
        ValueError: an input that the graph has not, or an operator whose shapes cannot be told from the inputs'.
    """
    model = onnx.load(graph, load_external_data=False)
    _fix_inputs(model, graph, inputs)
    shapes = _shapes(model)
    flops = numbers = 0
    for node in model.graph.node:
        if count := _COUNTS.get(node.op_type):
            try:
                flops += count(shapes, node)
                numbers += sum(math.prod(shapes[name]) for name in {*node.input, *node.output} if name in shapes)
            except KeyError as error:
                raise ValueError(
                    f"{graph}: the shape of {error}, of {node.op_type} {node.name}, does not follow from the inputs'"
                ) from None
    return Work(flops=flops, numbers=numbers)


def _fix_inputs(model: onnx.ModelProto, graph: Path, inputs: Mapping[str, Shape]) -> None:
    """Gives the inputs their shapes; of the outputs' nothing is left but what follows from them."""
    known = {value.name: value for value in model.graph.input}
    for name, shape in inputs.items():
        if name not in known:
            raise ValueError(f"{graph} has no input {name}; it has {', '.join(known)}")
        dimensions = known[name].type.tensor_type.shape.dim
        if len(dimensions) != len(shape):
            raise ValueError(f"{graph}: input {name} has {len(dimensions)} dimensions, got {tuple(shape)}")
        for dimension, size in zip(dimensions, shape, strict=True):
            dimension.dim_value = size
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    for node in model.graph.node:
        if node.op_type == "GroupNormalization":  # whose shape onnx does not infer: it is its input's
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """The shape of every value that has one; integers that are computed from shapes become constants on the way."""
    numbers = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_location != onnx.TensorProto.EXTERNAL and math.prod(tensor.dims) <= _SIZES
    }
    version = {opset.domain: opset.version for opset in model.opset_import}[""]
    while True:
        shapes = _inferred(model)
        found = _folded(model, shapes, numbers, version)
        if not found:
            return shapes
        model.graph.initializer.extend(numpy_helper.from_array(numbers[name], name) for name in found)


def _inferred(model: onnx.ModelProto) -> dict[str, Shape]:
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes = value.type.tensor_type.shape.dim
        if all(size.HasField("dim_value") for size in sizes):
            shapes[value.name] = tuple(size.dim_value for size in sizes)
    return shapes


def _folded(model: onnx.ModelProto, shapes: Mapping[str, Shape], numbers: dict[str, Array], version: int) -> list[str]:
    """Computes the nodes that give integers and need no more than known shapes and `numbers`, to which they go."""
    found, left = [], []
    for node in model.graph.node:
        arguments = {name: numbers[name] for name in node.input if name in numbers}
        if node.op_type == "Shape" and node.input[0] in shapes:
            arguments = {node.input[0]: np.empty(shapes[node.input[0]], dtype=np.bool_)}
        if len(arguments) < len({name for name in node.input if name}) or not arguments:
            left.append(node)
            continue
        results = ReferenceEvaluator(node, opsets={"": version}).run(None, arguments)
        for name, result in zip(node.output, results, strict=True):
            numbers[name] = np.asarray(result)
            found.append(name)
    del model.graph.node[:]
    model.graph.node.extend(left)
    return found


def _convolution(shapes: Mapping[str, Shape], node: NodeProto) -> int:
    """Every output value is a sum over the weights of one of its channels."""
    return 2 * math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])


def _product(shapes: Mapping[str, Shape], node: NodeProto) -> int:
    """Every output value is a sum over the left matrix's columns."""
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)  # of a Gemm
    return 2 * math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-2 if transposed else -1]


def _attention(shapes: Mapping[str, Shape], node: NodeProto) -> int:
    """Scores, and the sum that they weigh: of (batch, heads, tokens, width)."""
    query, key, value = (shapes[name] for name in node.input[:3])
    if len(query) != 4:
        raise ValueError(f"{node.op_type} {node.name}: expected (batch, heads, tokens, width), got {tuple(query)}")
    batch, heads, tokens, width = query
    return 2 * batch * heads * tokens * key[2] * (width + value[3])


_COUNTS: Mapping[str, _Count] = {
    "Attention": _attention,
    "Conv": _convolution,
    "Gemm": _product,
    "MatMul": _product,
}
