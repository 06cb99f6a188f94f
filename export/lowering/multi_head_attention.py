"""Attention as com.microsoft.MultiHeadAttention, which ONNX Runtime has fused kernels for.

It reads and writes (batch, length, heads * width), and so needs none of the transposes that split and merge heads.
"""

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir import tape

from .primitives import node_inputs

#: the domain of ONNX Runtime's own operators, and the version of it that the lowerings use
MICROSOFT, MICROSOFT_VERSION = "com.microsoft", 1


@dataclass(frozen=True)
class _Heads:
    """A (batch, length, heads * width) value that was split into (batch, heads, length, width)."""

    merged: ir.Value
    heads: int


def attention_to_multi_head_attention(model: ir.Model) -> int:
    """Replaces Transpose(Attention(split q, split k, split v)) and its Reshape by one MultiHeadAttention.

    Returns:
        How many were replaced. An attention whose heads are not split and merged the way the reference does it stays
        as it is.
    """
    replaced = 0
    for node in [node for node in model.graph if node.op_type == "Attention" and len(node.inputs) == 3]:
        query, key, value = (_split_heads(tensor) for tensor in node_inputs(node, 3))
        merged = _merged_output(node)
        if query is None or key is None or value is None or merged is None:
            continue
        op = tape.Tape(model.graph)
        attributes: dict[str, int | float] = {"num_heads": query.heads}
        if scale := node.attributes.get_float("scale", 0.0):
            attributes["scale"] = scale
        if node.attributes.get_int("is_causal", 0):
            attributes["unidirectional"] = 1
        output = op.op(
            "MultiHeadAttention", [query.merged, key.merged, value.merged], attributes=attributes, domain=MICROSOFT
        )
        reshape = merged.producer()
        assert reshape is not None
        ir.convenience.replace_nodes_and_values(model.graph, reshape, [reshape], op.nodes, [merged], [output])
        _remove_unread(model, node)
        replaced += 1
    if replaced:
        model.opset_imports[MICROSOFT] = MICROSOFT_VERSION
    return replaced


def _split_heads(value: ir.Value) -> _Heads | None:
    """What a Transpose(0, 2, 1, 3) of a Reshape to (batch, length, heads, width) splits; None where it is not that."""
    transpose = value.producer()
    if transpose is None or transpose.op_type != "Transpose" or not _swaps_heads(transpose):
        return None
    (split,) = node_inputs(transpose, 1)
    reshape = split.producer()
    if reshape is None or reshape.op_type != "Reshape" or split.shape is None:
        return None
    heads = split.shape[2]
    return _Heads(node_inputs(reshape, 1)[0], heads) if isinstance(heads, int) else None


def _merged_output(node: ir.Node) -> ir.Value | None:
    """The (batch, length, heads * width) value that the attention's output is transposed and reshaped into."""
    transposes = [usage.node for usage in node.outputs[0].uses()]
    if len(transposes) != 1 or transposes[0].op_type != "Transpose" or not _swaps_heads(transposes[0]):
        return None
    reshapes = [usage.node for usage in transposes[0].outputs[0].uses()]
    return reshapes[0].outputs[0] if len(reshapes) == 1 and reshapes[0].op_type == "Reshape" else None


def _swaps_heads(transpose: ir.Node) -> bool:
    return tuple(transpose.attributes.get_ints("perm") or ()) == (0, 2, 1, 3)


def _remove_unread(model: ir.Model, attention: ir.Node) -> None:
    """Removes what only led into and out of the attention."""
    for usage in list(attention.outputs[0].uses()):
        model.graph.remove(usage.node, safe=True)
    splits = [value.producer() for value in attention.inputs if value is not None]
    model.graph.remove(attention, safe=True)
    for transpose in {id(node): node for node in splits if node is not None}.values():
        if not transpose.outputs[0].uses():
            reshape = node_inputs(transpose, 1)[0].producer()
            model.graph.remove(transpose, safe=True)
            if reshape is not None and not reshape.outputs[0].uses():
                model.graph.remove(reshape, safe=True)
