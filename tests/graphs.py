"""Graphs of tiny networks, and random inputs of a graph."""

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from checkpoints import randomized

from safelight.export import lowering
from safelight.export.networks import COMPONENT_KINDS, NetworkDescription, build, describe
from safelight.export.trace import parameters, trace
from safelight.export.weights import WeightFile, bind, store_transposed, write_weights
from safelight.runtime.backends import Array, TensorSpec

#: the free dimensions of every network; the latents are not square
SIZES = {
    "batch": 2,
    "sequence_length": 9,
    "height": 48,
    "width": 64,
    "latent_height": 6,
    "latent_width": 10,
}


@dataclass(frozen=True)
class Traced:
    """The canonical graph of a network with random weights, and its weight file."""

    description: NetworkDescription
    reference: torch.nn.Module
    graph: ir.Model
    weights: WeightFile

    def write(self, name: str, rewrite: Callable[[ir.Model], object] = lambda _: None) -> Path:
        """Writes the graph, rewritten, beside the weights."""
        graph = self.graph.clone()
        rewrite(graph)
        lowering.tidy(graph)
        bind(graph, parameters(graph, self.description), self.weights)
        path = self.weights.path.with_name(name)
        ir.save(graph, path)
        return path


def traced(class_name: str, config: Mapping[str, Any], dtype: torch.dtype, folder: Path, part: int = 0) -> Traced:
    """Traces one of the networks of a class in a dtype, and writes its weights in that dtype.

    Args:
        class_name: of `COMPONENT_KINDS`.
        config: of the reference's module, whose weights are random.
        dtype: of the arithmetic and of the storage.
        folder: for the weights.
        part: which of the networks that the class is exported as.
    """
    torch.manual_seed(0)
    reference = randomized(COMPONENT_KINDS[class_name].model.from_config(config))
    complete = reference.config.to_dict()
    description = describe(class_name, "network", complete, {})[part]
    graph = trace(description, build(class_name, complete, dtype))
    transposed = store_transposed(graph, parameters(graph, description))
    state = reference.state_dict()
    shapes = {str(value.name): state[str(value.name)].shape for value in parameters(graph, description)}
    path = folder / "model.onnx_data"
    weights = write_weights(path, shapes, state.__getitem__, transposed=transposed, dtype=dtype)
    return Traced(description, reference, graph, weights)


def rewritten(graph: Path, folder: Path, rewrite: Callable[[ir.Model], object]) -> Path:
    """A graph that was exported, rewritten, in another folder with its weights."""
    model = ir.load(graph)
    rewrite(model)
    shutil.copy(graph.with_name("model.onnx_data"), folder)
    ir.save(model, folder / graph.name)
    return folder / graph.name


def random_inputs(specs: Sequence[TensorSpec], sizes: Mapping[str, int] = SIZES) -> dict[str, Array]:
    """Standard normal numbers, or token ids, of the shapes and dtypes of a network's inputs."""
    rng = np.random.default_rng(0)
    inputs = {}
    for spec in specs:
        shape = [dimension if isinstance(dimension, int) else sizes[dimension] for dimension in spec.shape]
        integers = spec.dtype.kind == "i"
        inputs[spec.name] = (rng.integers(0, 90, shape) if integers else rng.standard_normal(shape)).astype(spec.dtype)
    return inputs


def operators(graph: ir.Model | Path) -> Counter[str]:
    """How many nodes of each operator a graph has."""
    model = ir.load(graph) if isinstance(graph, Path) else graph
    return Counter(node.op_type for node in model.graph)
