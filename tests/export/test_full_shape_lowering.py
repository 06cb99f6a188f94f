"""What each lowering replaces in UNets of the published shapes: graphs alone, without weights.

`make test-full`. With SAFELIGHT_RECORD=FILE the counts are written there (benchmarks/results/full-shape.json).
"""

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import pytest
import torch
from graphs import operators
from recorded import record

from safelight.benchmarks.published import SHAPES
from safelight.export import lowering
from safelight.export.networks import COMPONENT_KINDS, build, describe
from safelight.export.trace import parameters, trace
from safelight.export.weights import store_transposed

pytestmark = pytest.mark.full_shape

# every resnet has two group norms, each with a SiLU; so has the way out, and every transformer a group norm without.
# The first group norm of a resnet is of a sum where neither a convolution nor a concatenation comes before it, and all
# others are
CASES = [
    ("Stable Diffusion 1.5, UNet", "sd15", 22, 16, 16, 45),
    ("SDXL, UNet", "sdxl", 17, 11, 70, 34),
]


@pytest.mark.parametrize(("name", "shape", "resnets", "transformers", "layers", "sums"), CASES)
def test_counts(name: str, shape: str, resnets: int, transformers: int, layers: int, sums: int) -> None:
    graph = canonical(SHAPES[shape].networks["unet"][1])
    norms, attentions, convolutions = 2 * resnets + transformers + 1, 2 * layers, operators(graph)["Conv"]
    expected = {
        "onnxruntime-cpu": {"Attention": attentions, "GroupNormalization": norms},
        "onnxruntime-cuda": {
            "Attention": attentions,
            "Conv": convolutions,
            "GroupNormalization": norms,
            "Sigmoid": 2 * resnets + 1,
            "ArgMax": 0,
            # of a transformer's layer three layer norms, the first of the first with no sum before it
            "SkipLayerNormalization": 3 * layers - transformers,
            "SkipGroupNorm": sums,
            "BiasSplitGelu": layers,
            "BiasAdd": transformers,
        },
        "openvino": {},
        "tensorrt": {"Attention": 0},  # of heads of 40, 80 and 160 channels, or of 64: TensorRT has kernels for all
    }
    counts = {}
    for target, one in lowering.TARGETS.items():
        lowered = graph.clone()
        counts[target] = one.lower(lowered)
        if target == "onnxruntime-cuda":  # of the weights, and of the latents going in and coming out
            assert operators(lowered)["Transpose"] == convolutions + 2
            assert operators(lowered)["GroupNorm"] + operators(lowered)["SkipGroupNorm"] == norms
    assert counts == expected
    record(name, lowered=counts)


def canonical(config: Mapping[str, Any]) -> ir.Model:
    """The graph in float16."""
    with torch.device("meta"):
        complete = COMPONENT_KINDS["UNet2DConditionModel"].model.from_config(config).config.to_dict()
    (description,) = describe("UNet2DConditionModel", "unet", complete, {})
    graph = trace(description, build("UNet2DConditionModel", complete, torch.float16))
    store_transposed(graph, parameters(graph, description))
    return graph
