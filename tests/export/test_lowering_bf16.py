"""Arithmetic in bfloat16, which NumPy does not have: float32 at the borders of the graph."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import openvino
import pytest
import tensorrt_rtx
import torch
from graphs import Traced, random_inputs, traced
from pairs import relative

from safelight.export import lowering
from safelight.export.lowering.precision import float32_borders
from safelight.runtime.backends import TensorSpec

UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 1,
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
}
LIMIT = 5e-2  # relative to float32: six times the rounding of bfloat16


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    network = traced("UNet2DConditionModel", UNET, torch.bfloat16, tmp_path_factory.mktemp("unet"))
    inputs = network.graph.graph.inputs[: len(network.description.inputs)]
    assert float32_borders(network.graph, inputs) == 3  # sample, text, result; the timestep is float32 as it is
    return network


def test_borders_are_float32_and_the_arithmetic_is_not(unet: Traced) -> None:
    path = unet.write("model.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    model = ir.load(path)
    assert {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)} == {ir.DataType.FLOAT}
    assert [value.name for value in model.graph.outputs] == ["out_sample"]
    arithmetic = [node for node in model.graph if node.op_type in {"Conv", "MatMul", "Gemm", "Attention"}]
    assert arithmetic
    assert {value.dtype for node in arithmetic for value in node.outputs} == {ir.DataType.BFLOAT16}


def test_openvino_gives_the_references_numbers(unet: Traced) -> None:
    core: Any = openvino.Core()
    model = core.read_model(unet.write("model.onnx"))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    specs = [TensorSpec(tensor.name, np.dtype(np.float32), tensor.shape) for tensor in unet.description.inputs]
    inputs = random_inputs(specs, {"batch": 2, "height": 8, "width": 6, "sequence_length": 5})
    with torch.no_grad():
        expected = unet.description.module(unet.reference)(*map(torch.from_numpy, inputs.values()))
    (found,) = compiled(inputs).values()
    assert found.dtype == np.float32
    assert relative(found, expected.numpy()) < LIMIT


def test_tensorrt_reads_it(unet: Traced) -> None:
    counts: dict[str, int] = {}
    path = unet.write("model.tensorrt.onnx", lambda model: counts.update(lowering.TARGETS["tensorrt"].lower(model)))
    assert counts == {"Attention": 0}
    logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR)
    network = tensorrt_rtx.Builder(logger).create_network(
        1 << int(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    parser = tensorrt_rtx.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path)), parser.get_error(0).desc()
    assert network.get_output(0).dtype == tensorrt_rtx.DataType.FLOAT


def test_other_borders_stay_as_they_are() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23]>
        agraph (float16[2] x, bfloat16[2] weight) => (float16[2] y) {
            y = CastLike(weight, x)
        }"""
    )
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert float32_borders(model, model.graph.inputs[:1]) == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
