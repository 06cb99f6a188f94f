"""OpenVINO reads the canonical graphs as they are, and agrees with ONNX Runtime on what they compute."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import openvino
import pytest
from graphs import operators, random_inputs
from pairs import relative

import safelight.runtime
from safelight.export import lowering
from safelight.runtime.backends import Array, open_network
from safelight.runtime.model_folder import open_model_folder

LIMIT = 2e-5  # relative, float32


def test_nothing_is_replaced(odd_export: Path) -> None:
    graph = ir.load(odd_export / "unet" / "model.onnx")
    before = ir.to_proto(graph).SerializeToString(deterministic=True)
    assert lowering.TARGETS["openvino"].lower(graph) == {}
    assert ir.to_proto(graph).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("checkpoint", ["ODD", "LINEAR", "DEPTH", "CHECKED", "UNCONDITIONAL", "SDXL"])
def test_every_canonical_graph_gives_the_numbers_of_onnx_runtime(
    checkpoint: str, exported: Callable[[str], Path]
) -> None:
    model = open_model_folder(exported(checkpoint))
    assert model.manifest is not None
    for name in model.manifest.components:
        agrees(model.graph(name))


def test_weights_stored_in_half_precision() -> None:
    graph = open_model_folder(Path(safelight.runtime.__path__[0]) / "models" / "emoji").graph("unet")
    assert operators(graph)["Cast"] > 100
    agrees(graph)


def agrees(graph: Path) -> None:
    """Both engines on one graph, at one size."""
    network = open_network(graph)
    inputs = random_inputs(network.inputs)
    expected, found = network(inputs), run(graph, inputs)
    assert found.keys() == expected.keys()
    for output, values in expected.items():
        assert found[output].shape == values.shape
        if values.dtype == np.bool_:
            assert (found[output] == values).all(), (graph, output)
        else:
            assert relative(found[output], values) < LIMIT, (graph, output)


def run(graph: Path, inputs: dict[str, Array], precision: str = "f32") -> dict[str, Array]:
    """OpenVINO, in float32 unless told otherwise: it chooses bfloat16 by itself where the CPU has it."""
    core: Any = openvino.Core()
    compiled = core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": precision})
    results = compiled(inputs)
    return {output.get_any_name(): results[output] for output in compiled.outputs}
