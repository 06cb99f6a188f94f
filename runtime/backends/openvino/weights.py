"""Weights that stand in for those of a graph's file."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvino

from ..protocol import Array


def replace_weights(model: Any, initializers: Mapping[str, Array], graph: Path) -> None:
    """Puts weights in the place of a graph's own, which its nodes are named after.

    Args:
        model: openvino.Model, changed in place. It reads the arrays' memory from then on, and keeps it.
        initializers: by name, of the shape and dtype of those that they replace.
        graph: the file, for messages.

    Raises:
        ValueError: the graph has no weight of a name, or it is of another shape or dtype.
    """
    weights = {node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() == "Constant"}
    for name, array in initializers.items():
        if name not in weights:
            raise ValueError(f"{graph} has no weight {name!r}")
        weight = weights[name]
        dtype, shape = weight.get_element_type().to_dtype(), tuple(weight.get_output_shape(0))
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(f"{graph}: weight {name} must be {dtype} {shape}, got {array.dtype} {array.shape}")
        constant = openvino.op.Constant(array, shared_memory=True)
        constant.set_friendly_name(name)
        for reader in weight.output(0).get_target_inputs():
            reader.replace_source_output(constant.output(0))


def count_weights(model: Any) -> int:
    """The number of elements of a model's constants."""
    return sum(math.prod(node.shape) for node in model.get_ops() if node.get_type_name() == "Constant")
