"""The graph that ONNX Runtime runs fastest on CUDA.

Attention becomes com.microsoft.MultiHeadAttention. Convolutions and group norms become com.microsoft.NhwcConv and
GroupNorm, channels last, as tensor cores read them; a SiLU after a group norm is part of it. ONNX Runtime's own
optimizer fuses GELUs with biases when it loads a graph, so they are left alone; what sums it leaves see `fused_sums`.
An ArgMax of integers, which CUDA has no kernel for, would be copied to the CPU and back, and keep a run from being
captured as a CUDA graph.
"""

import onnx_ir as ir
from onnx_ir import tape

from .channels_last import to_channels_last
from .fused_sums import fuse_sums
from .multi_head_attention import attention_to_multi_head_attention
from .primitives import group_norm_to_instance_norm, node_inputs, replace_each, value_dtype

#: channels of a group that the CUDA kernel of GroupNorm takes: it reads two at a time, at most 512 a block
_GROUP_WIDTHS = range(2, 513, 2)


def lower(model: ir.Model) -> dict[str, int]:
    """Rewrites a canonical graph in place.

    Returns:
        How many nodes of each operator were replaced: group norms by GroupNorm or, where that has no kernel, by
        InstanceNormalization; Sigmoid counts the SiLUs that became part of a GroupNorm. And how many of each of the
        operators of `fused_sums` there are.
    """
    attentions = attention_to_multi_head_attention(model)
    instance_norms = group_norm_to_instance_norm(model, where=_has_no_kernel)
    counts = to_channels_last(model)
    return {
        **counts,
        "Attention": attentions,
        "GroupNormalization": counts["GroupNormalization"] + instance_norms,
        "ArgMax": replace_each(model, "ArgMax", _of_floats, where=_is_of_integers),
        **fuse_sums(model),
    }


def _has_no_kernel(group_norm: ir.Node) -> bool:
    sample = node_inputs(group_norm, 1)[0]
    groups = group_norm.attributes.get_int("num_groups")
    assert groups is not None
    assert sample.shape is not None
    channels = sample.shape[1]
    assert isinstance(channels, int), f"the channels of {sample.name} are not known"
    return sample.shape.rank() != 4 or channels // groups not in _GROUP_WIDTHS


def _is_of_integers(arg_max: ir.Node) -> bool:
    return value_dtype(node_inputs(arg_max, 1)[0]).is_integer()


def _of_floats(op: tape.Tape, arg_max: ir.Node) -> ir.Value:
    """The ArgMax of the same numbers in float32, which has every token id."""
    floats = op.op("Cast", node_inputs(arg_max, 1), attributes={"to": ir.DataType.FLOAT})
    return op.op("ArgMax", [floats], attributes=dict(arg_max.attributes))
