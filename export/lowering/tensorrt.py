"""The graph that TensorRT and TensorRT for RTX build an engine from.

Both are strongly typed: what the graph computes in float32 stays there. GroupNormalization they have. Attention they
have for some heads only, and refuse to build the rest: those become MatMul, Softmax, MatMul.
"""

import onnx_ir as ir

from .primitives import attention_to_matmul, last_dimension, node_inputs, value_dtype

#: of the arithmetic of an attention that is one kernel
_DTYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
#: of the heads of such an attention
_HEAD_WIDTHS = range(32, 161)


def lower(model: ir.Model) -> dict[str, int]:
    """Rewrites a canonical graph in place.

    Returns:
        How many nodes of each operator were replaced.
    """
    return {"Attention": attention_to_matmul(model, where=_has_no_kernel)}


def _has_no_kernel(attention: ir.Node) -> bool:
    query, key, value = node_inputs(attention, 3)
    return (
        value_dtype(query) not in _DTYPES
        or last_dimension(query) not in _HEAD_WIDTHS
        or len({query, key, value}) < 3  # one tensor in two places crashes the builder
    )
