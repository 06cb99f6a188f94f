"""From a reference module to the canonical ONNX graph of its network, without any weights.

The module lives on the meta device, so tracing SDXL takes no more memory than tracing a toy. While the graph is
optimized its parameters are inputs: nothing can read, fold, rename or copy them. `weights.bind` makes them
initializers at the end.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer
from torch import nn

from .networks import NetworkDescription
from .translate import translate

_PREFIX = "model."  # of the parameters: `networks._Part` holds the model under this name


def trace(description: NetworkDescription, model: nn.Module) -> ir.Model:
    """The canonical graph of a network.

    Args:
        description: which part of the model, and its inputs and outputs.
        model: on the meta device, in the dtype of the graph's arithmetic.

    Returns:
        A model of opset 23 whose inputs are the network's and, after them, every parameter that it uses, under the
        reference's name. `Attention` has rank-4 inputs; group norms are `GroupNormalization`.
    """
    dtype = next(model.parameters()).dtype
    examples = tuple(tensor.without_values(description.trace_sizes, dtype) for tensor in description.inputs)
    free = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, dimension in enumerate(tensor.shape) if isinstance(dimension, str)}
        for tensor in description.inputs
    )
    with _quiet():
        exported = torch.export.export(description.module(model), examples, dynamic_shapes=(free,), strict=False)
        program = translate(
            exported,
            examples,
            input_names=[tensor.name for tensor in description.inputs],
            output_names=[tensor.name for tensor in description.outputs],
        )
    graph: ir.Model = program.model
    parameters = _parameters_to_inputs(graph)
    optimizer.optimize_ir(graph)
    passes.CommonSubexpressionEliminationPass()(graph)
    passes.RemoveUnusedNodesPass()(graph)
    passes.ClearMetadataAndDocStringPass()(graph)
    for parameter in parameters:
        if not parameter.uses():
            graph.graph.inputs.remove(parameter)
    _name_dimensions(graph, description)
    return graph


def parameters(graph: ir.Model, description: NetworkDescription) -> list[ir.Value]:
    """The parameters of a canonical or lowered graph: what follows the network's own inputs."""
    return list(graph.graph.inputs)[len(description.inputs) :]


def _parameters_to_inputs(model: ir.Model) -> list[ir.Value]:
    """Makes every initializer an input without a value, so that no pass reads what is not there."""
    values = list(model.graph.initializers.values())
    model.graph.initializers.clear()
    for value in values:
        assert value.name is not None
        value.name = value.name.removeprefix(_PREFIX)
        value.const_value = None
    model.graph.inputs.extend(values)
    return values


def _name_dimensions(model: ir.Model, description: NetworkDescription) -> None:
    """Gives inputs and outputs the description's dimensions, and lets the rest go: an engine infers them anew."""
    described = [*description.inputs, *description.outputs]
    values = [*list(model.graph.inputs)[: len(description.inputs)], *model.graph.outputs]
    for tensor, value in zip(described, values, strict=True):
        value.name = tensor.name
        value.shape = ir.Shape(tensor.shape)
    outer = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    for node in model.graph:
        for value in node.outputs:
            if id(value) not in outer and value.shape is not None:
                value.shape = ir.Shape([d if isinstance(d, int) else None for d in value.shape])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch's exporter from printing and warning about its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
