"""Where ONNX Runtime would run the nodes of a graph lowered for CUDA: what it leaves to the CPU computes shapes alone.

A CUDA graph is captured only of runs without a copy between the two. Without a GPU the placement is computed here, from
what ONNX Runtime's documentation says of its kernels (docs/OperatorKernels.md) and its source of their memory.
"""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from safelight.export import lowering

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
NUMBERS = FLOATS | {ir.DataType.INT32, ir.DataType.INT64}
ANY = NUMBERS | {ir.DataType.BOOL}
#: operator -> the dtypes of the first input that CUDA has a kernel for
KERNELS = {
    **dict.fromkeys(("NhwcConv", "GroupNorm", "SkipGroupNorm", "BiasAdd", "BiasSplitGelu"), FLOATS),
    **dict.fromkeys(("Attention", "MultiHeadAttention", "SkipLayerNormalization"), FLOATS),
    **dict.fromkeys(("ArgMax", "ConvTranspose", "Cos", "Erf", "Gelu", "Gemm", "InstanceNormalization"), FLOATS),
    **dict.fromkeys(("LayerNormalization", "MatMul", "Relu", "Resize", "Sigmoid", "Sin", "Softmax", "Sqrt"), FLOATS),
    **dict.fromkeys(("Clip", "ReduceL2", "Round", "Tanh"), FLOATS),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Equal", "Greater", "Less", "Pow", "Range", "ReduceMax"), NUMBERS),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMin"), NUMBERS),
    **dict.fromkeys(("Cast", "Concat", "Expand", "Gather", "GatherND", "Reshape", "Shape", "Slice", "Split"), ANY),
    **dict.fromkeys(("Squeeze", "Transpose", "Unsqueeze", "Where", "Identity"), ANY),
}
#: operator -> the inputs that its kernel reads in the CPU's memory
CPU_INPUTS = {
    "Expand": {1},
    "Range": {0, 1, 2},
    "Reshape": {1},
    "Resize": {1, 2, 3},
    "Slice": {1, 2, 3, 4},
    "Split": {1},
    "Squeeze": {1},
    "Unsqueeze": {1},
}
SMALL = 100  # elements of a constant that is at home on either


def dtype(value: ir.Value) -> ir.DataType:
    """The dtype of a value, which that of what it was computed from tells where it is not written down."""
    node = value.producer()
    if value.dtype is not None or node is None:
        assert value.dtype is not None
        return value.dtype
    if node.op_type in ("Shape", "ArgMax"):
        return ir.DataType.INT64
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    (first, *_) = [value for value in node.inputs if value is not None]
    return dtype(first)


def on_cpu(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that ONNX Runtime puts on the CPU: without a kernel, or of nothing but what is there already.

    It follows `GetCpuPreferredNodes` of ONNX Runtime's core/framework/fallback_cpu_capability.cc.
    """
    found: set[ir.Node] = set()
    values: set[ir.Value] = set()
    for node in graph:
        inputs = list(enumerate(node.inputs))
        reads = [value for _, value in inputs if value is not None]
        if dtype(reads[0]) not in KERNELS[node.op_type]:
            found.add(node)
        elif node.op_type == "Shape":
            values.add(node.outputs[0])
            continue
        elif values & set(reads) and all(
            value is None
            or is_small(value)
            or (
                dtype(value) != ir.DataType.FLOAT16
                and (value.is_graph_input() or (value in values and index not in CPU_INPUTS.get(node.op_type, set())))
            )
            for index, value in inputs
        ):
            found.add(node)
        if node in found:
            values |= set(node.outputs)
    return found


def is_small(value: ir.Value) -> bool:
    if not value.is_initializer() or value.shape is None:
        return False
    size = 1
    for dimension in value.shape:
        assert isinstance(dimension, int)
        size *= dimension
    return size <= SMALL


def copies(graph: ir.Graph, cpu: set[ir.Node]) -> list[str]:
    """The values that are computed on one side and read on the other."""
    copied = []
    for node in graph:
        for value in node.outputs:
            computed = node in cpu or node.op_type == "Shape"
            sides = {use.node in cpu or use.idx in CPU_INPUTS.get(use.node.op_type, set()) for use in value.uses()}
            if sides - {computed}:
                copied.append(f"{node.op_type} {value.name}")
    return copied


#: of a checkpoint: a network, and how many of its nodes compute shapes on the CPU
NETWORKS = [
    ("LINEAR", "text_encoder", 1),
    ("LINEAR", "unet", 21),
    ("LINEAR", "vae_encoder", 2),
    ("LINEAR", "vae_decoder", 4),
    ("ODD", "unet", 58),
    ("SDXL", "unet", 20),
    ("SDXL", "text_encoder_2", 1),
    ("UNCONDITIONAL", "unet", 33),
    ("DEPTH", "depth_estimator", 2),
    ("CHECKED", "safety_checker", 2),
]


@pytest.mark.parametrize(("checkpoint", "network", "shapes"), NETWORKS)
def test_only_shapes_are_computed_on_the_cpu(
    checkpoint: str, network: str, shapes: int, exported: Callable[[str], Path]
) -> None:
    model = ir.load(exported(checkpoint) / network / "model.onnx")
    if network.startswith("text_encoder"):
        assert copies(model.graph, on_cpu(model.graph)) != [], "the canonical graph has an ArgMax of integers"
    lowering.TARGETS["onnxruntime-cuda"].lower(model)
    cpu = on_cpu(model.graph)
    assert copies(model.graph, cpu) == []
    assert len(cpu) == shapes
