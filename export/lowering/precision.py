"""The dtypes of a graph's own inputs and outputs."""

from collections.abc import Sequence

import onnx_ir as ir


def float32_borders(model: ir.Model, inputs: Sequence[ir.Value]) -> int:
    """Makes the bfloat16 inputs and outputs of a graph float32, in place: NumPy has no bfloat16.

    Args:
        model: its arithmetic stays what it is; a Cast stands at each border.
        inputs: the network's own; the parameters, which follow them in a canonical graph, stay as they are.

    Returns:
        How many inputs and outputs changed.
    """
    inside, outside = ir.DataType.BFLOAT16, ir.TensorType(ir.DataType.FLOAT)
    entering = [value for value in inputs if value.dtype == inside]
    for value in entering:
        cast = _cast(value, inside)
        value.replace_all_uses_with(cast.outputs[0])
        cast.replace_input_with(0, value)
        value.type = outside
        model.graph.insert_before(next(iter(model.graph)), cast)
    leaving = [value for value in model.graph.outputs if value.dtype == inside]
    for value in leaving:
        cast = _cast(value, ir.DataType.FLOAT)
        output = cast.outputs[0]
        output.name, value.name = value.name, f"{value.name}.bfloat16"
        model.graph.outputs[model.graph.outputs.index(value)] = output
        model.graph.append(cast)
    return len(entering) + len(leaving)


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    """A Cast of a value, in no graph yet."""
    cast = ir.node("Cast", [value], attributes={"to": dtype})
    cast.outputs[0].type = ir.TensorType(dtype)
    cast.outputs[0].shape = value.shape
    return cast
