"""From the canonical graph to the graph that one engine, or one older opset, wants."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx_ir as ir
from onnx_ir.passes import common as passes

from . import onnxruntime_cpu, primitives

#: the opsets that `model.onnx` can be written in
OPSETS = range(18, 24)

#: target -> the pass that rewrites a canonical graph for it, in place, and counts what it replaced
TARGETS: Mapping[str, Callable[[ir.Model], dict[str, int]]] = MappingProxyType(
    {
        "onnxruntime-cpu": onnxruntime_cpu.lower,
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
    """Removes what nothing reads, and stores equal small constants once."""
    passes.DeduplicateInitializersPass(size_limit=64)(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.TopologicalSortPass()(model)
