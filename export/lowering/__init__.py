"""From the canonical graph to the graph that one engine, or one older opset, wants."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir
from onnx_ir.passes import common as passes

from . import onnxruntime_cpu, onnxruntime_cuda, openvino, primitives, tensorrt

#: the opsets that `model.onnx` can be written in
OPSETS = range(18, 24)


@dataclass(frozen=True)
class Lowering:
    """What one engine wants of a graph."""

    lower: Callable[[ir.Model], dict[str, int]]  # rewrites a canonical graph in place, and counts what it replaced
    dtypes: frozenset[str]  # of the arithmetic that the engine can do
    runs_on_cpu: bool  # by ONNX Runtime, for the check at export
    built: bool = False  # whether `safelight build` compiles it, and nothing opens it


#: target -> its lowering; one that replaces nothing in a graph leaves the engine the canonical one
TARGETS: Mapping[str, Lowering] = MappingProxyType(
    {
        "onnxruntime-cpu": Lowering(onnxruntime_cpu.lower, frozenset({"fp32", "fp16"}), runs_on_cpu=True),
        "onnxruntime-cuda": Lowering(onnxruntime_cuda.lower, frozenset({"fp32", "fp16"}), runs_on_cpu=False),
        "openvino": Lowering(openvino.lower, frozenset({"fp32", "fp16", "bf16"}), runs_on_cpu=True),
        "tensorrt": Lowering(tensorrt.lower, frozenset({"fp32", "fp16", "bf16"}), runs_on_cpu=True, built=True),
    }
)

#: operator -> the opset that brought it, and its replacement below that
_NEWER_OPERATORS: Mapping[str, tuple[int, Callable[[ir.Model], int]]] = MappingProxyType(
    {
        "Attention": (23, primitives.attention_to_matmul),
        "GroupNormalization": (21, primitives.group_norm_to_instance_norm),
        "Gelu": (20, primitives.gelu_to_erf),
    }
)


def to_opset(model: ir.Model, opset: int) -> dict[str, int]:
    """Rewrites a canonical graph, in place, for an older opset.

    What remains after the newer operators are replaced means the same in every opset of `OPSETS`.

    Returns:
        How many nodes of each operator were replaced.
    """
    for node in model.graph:
        if node.op_type == "Cast":
            node.attributes.pop("saturate", None)  # of opset 19, and of float 8 alone
    counts = {operator: rewrite(model) for operator, (since, rewrite) in _NEWER_OPERATORS.items() if opset < since}
    model.opset_imports[""] = opset
    return counts


def tidy(model: ir.Model) -> None:
    """Removes what nothing reads, and stores equal small constants once.

    Args:
        model: without its weights, of which two that happen to be equal keep their names.
    """
    initializers = model.graph.initializers.values()
    assert not any(isinstance(value.const_value, ir.ExternalTensor) for value in initializers), "tidy, then bind"
    passes.DeduplicateInitializersPass(size_limit=64)(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.TopologicalSortPass()(model)
