"""Operators of recent opsets written in older ones, for engines and opsets that lack them.

Each pass rewrites a graph in place and returns how many nodes it replaced.
"""

import math
from collections.abc import Callable

import onnx_ir as ir
from onnx_ir import tape

Rewrite = Callable[[tape.Tape, ir.Node], ir.Value]
Choice = Callable[[ir.Node], bool]


def any_node(_node: ir.Node) -> bool:
    """The choice of all nodes."""
    return True


def replace_each(model: ir.Model, op_type: str, rewrite: Rewrite, *, where: Choice = any_node) -> int:
    """Replaces the nodes of a type by what `rewrite` puts on the tape; returns how many.

    Args:
        model: rewritten in place.
        op_type: of the nodes to replace; they have one output.
        rewrite: writes the new nodes on the tape and returns the value that takes the output's place.
        where: which of the nodes to replace.
    """
    nodes = [node for node in model.graph if node.op_type == op_type and where(node)]
    for node in nodes:
        new = tape.Tape(model.graph)
        output = rewrite(new, node)
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], new.nodes, [node.outputs[0]], [output])
    return len(nodes)


def group_norm_to_instance_norm(model: ir.Model, *, where: Choice = any_node) -> int:
    """GroupNormalization (opset 21) as InstanceNormalization over (batch, groups, everything else), then the affine."""

    def rewrite(op: tape.Tape, node: ir.Node) -> ir.Value:
        sample, scale, bias = node_inputs(node, 3)
        groups = node.attributes.get_int("num_groups")
        assert groups is not None
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        dtype = value_dtype(sample)
        ones = op.initializer(ir.tensor([1.0] * groups, dtype=dtype), name=f"{node.name}.ones")
        zeros = op.initializer(ir.tensor([0.0] * groups, dtype=dtype), name=f"{node.name}.zeros")
        grouped = op.op("Reshape", [sample, _ints(op, node, "grouped", [0, groups, -1])])
        normal = op.op("InstanceNormalization", [grouped, ones, zeros], attributes={"epsilon": epsilon})
        shaped = op.op("Reshape", [normal, op.op("Shape", [sample])])
        axes = _ints(op, node, "axes", [1, 2])
        scaled = op.op("Mul", [shaped, op.op("Unsqueeze", [scale, axes])])
        return op.op("Add", [scaled, op.op("Unsqueeze", [bias, axes])])

    return replace_each(model, "GroupNormalization", rewrite, where=where)


def attention_to_matmul(model: ir.Model, *, where: Choice = any_node) -> int:
    """Attention (opset 23) over (batch, heads, length, width) as softmax(q k^T / sqrt(width) + mask) v."""

    def rewrite(op: tape.Tape, node: ir.Node) -> ir.Value:
        query, key, value = node_inputs(node, 3)
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        scale = node.attributes.get_float("scale", 0.0) or 1 / math.sqrt(last_dimension(query))
        dtype = value_dtype(query)
        factor = op.initializer(ir.tensor(scale, dtype=dtype), name=f"{node.name}.scale")
        keys = op.op("Transpose", [key], attributes={"perm": [0, 1, 3, 2]})
        scores = op.op("MatMul", [op.op("Mul", [query, factor]), keys])
        if mask is not None:
            scores = op.op("Add", [scores, mask])
        if node.attributes.get_int("is_causal", 0):
            # everything above the diagonal at -inf, in a square as long as the sequence
            length = op.op("Shape", [query], attributes={"start": 2, "end": 3})
            square = op.op("Concat", [length, length], attributes={"axis": 0})
            low = op.initializer(ir.tensor(-math.inf, dtype=dtype), name=f"{node.name}.low")
            full = op.op("Expand", [low, square])
            one = op.initializer(ir.tensor(1, dtype=ir.DataType.INT64), name=f"{node.name}.diagonal")
            scores = op.op("Add", [scores, op.op("Trilu", [full, one], attributes={"upper": 1})])
        return op.op("MatMul", [op.op("Softmax", [scores], attributes={"axis": -1}), value])

    return replace_each(model, "Attention", rewrite, where=where)


def gelu_to_erf(model: ir.Model) -> int:
    """Gelu (opset 20) as x * (1 + erf(x / sqrt 2)) / 2."""

    def rewrite(op: tape.Tape, node: ir.Node) -> ir.Value:
        (sample,) = node_inputs(node, 1)
        assert node.attributes.get_string("approximate", "none") == "none", "only the exact gelu is in the networks"
        dtype = value_dtype(sample)

        def constant(number: float, name: str) -> ir.Value:
            return op.initializer(ir.tensor(number, dtype=dtype), name=f"{node.name}.{name}")

        erf = op.op("Erf", [op.op("Mul", [sample, constant(math.sqrt(0.5), "root")])])
        half = op.op("Mul", [sample, constant(0.5, "half")])
        return op.op("Mul", [half, op.op("Add", [erf, constant(1.0, "one")])])

    return replace_each(model, "Gelu", rewrite)


def node_inputs(node: ir.Node, count: int) -> list[ir.Value]:
    """The first inputs of a node, which must be there."""
    values = [value for value in node.inputs[:count] if value is not None]
    assert len(values) == count, f"{node.op_type} {node.name} lacks an input"
    return values


def _ints(op: tape.Tape, node: ir.Node, name: str, values: list[int]) -> ir.Value:
    return op.initializer(ir.tensor(values, dtype=ir.DataType.INT64), name=f"{node.name}.{name}")


def value_dtype(value: ir.Value) -> ir.DataType:
    """The dtype of a value, which the trace gives all."""
    assert value.dtype is not None
    return value.dtype


def last_dimension(value: ir.Value) -> int:
    """The size of a value's last dimension, which must be fixed."""
    assert value.shape is not None
    width = value.shape[-1]
    assert isinstance(width, int), f"the width of {value.name} is not known"
    return width
