"""The graph for TensorRT, with the parser and the builder of TensorRT for RTX, which need no GPU."""

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import tensorrt_rtx
import torch
from graphs import Traced, operators, random_inputs, rewritten, traced
from pairs import relative

from safelight.export import lowering
from safelight.runtime.backends import open_network

LOWERING = lowering.TARGETS["tensorrt"]

#: two heads of 40 channels above, eight of 8 below
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": [80, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": [2, 8],
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
}
WIDE, NARROW = 2 * (1 + 2), 2 * (1 + 1 + 2)  # attentions: to itself and to the text; down, in the middle, and up
#: the other attentions: causal heads of 64 channels, and of as many channels as a VAE's deepest level has
TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "vocab_size": 100,
    "max_position_embeddings": 16,
}
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": [16, 192],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
HALF = 5e-3  # relative: of float16 against float16, whose sums are in another order


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return traced("UNet2DConditionModel", UNET, torch.float16, tmp_path_factory.mktemp("unet"))


@pytest.fixture(scope="module")
def upcast(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    config = {**UNET, "upcast_attention": True}
    return traced("UNet2DConditionModel", config, torch.float16, tmp_path_factory.mktemp("upcast"))


def lower(network: Traced) -> tuple[Path, dict[str, int]]:
    """Writes the graph for TensorRT."""
    counts: dict[str, int] = {}
    return network.write("model.tensorrt.onnx", lambda model: counts.update(LOWERING.lower(model))), counts


def parsed(graph: Path) -> tuple[Any, Any]:
    """What TensorRT reads of a graph, in the dtypes that it has, and the builder to make an engine of it."""
    logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR)
    builder = tensorrt_rtx.Builder(logger)
    network = builder.create_network(1 << int(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt_rtx.OnnxParser(network, logger)
    assert parser.parse_from_file(str(graph)), [parser.get_error(at).desc() for at in range(parser.num_errors)]
    return network, builder


def build(network: Any, builder: Any, described: Traced) -> Any:
    """An engine for a GPU that is not here; None where TensorRT refuses."""
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(tensorrt_rtx.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    sizes = described.description.trace_sizes
    for tensor in described.description.inputs:
        shape = [sizes[dimension] if isinstance(dimension, str) else dimension for dimension in tensor.shape]
        profile.set_shape(tensor.name, [1, *shape[1:]], shape, shape)
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config)


def test_wide_heads_keep_their_attention(unet: Traced) -> None:
    assert operators(unet.graph)["Attention"] == WIDE + NARROW
    graph, counts = lower(unet)
    assert counts == {"Attention": NARROW}
    found = operators(graph)
    assert (found["Attention"], found["Softmax"]) == (WIDE, NARROW)
    assert found["GroupNormalization"] == operators(unet.graph)["GroupNormalization"]


def test_lowered_unet_is_the_canonical_one(unet: Traced) -> None:
    canonical, lowered = open_network(unet.write("model.onnx")), open_network(lower(unet)[0])
    inputs = random_inputs(canonical.inputs, {"batch": 2, "height": 7, "width": 6, "sequence_length": 5})
    assert relative(lowered(inputs)["out_sample"], canonical(inputs)["out_sample"]) < HALF


@pytest.mark.parametrize(("network", "attentions"), [("text_encoder", 2), ("unet", 12)])
def test_in_float32_every_attention_is_primitive(
    linear_export: Path, network: str, attentions: int, tmp_path: Path
) -> None:
    graph, counts = linear_export / network / "model.onnx", dict[str, int]()
    canonical = open_network(graph)
    lowered = open_network(rewritten(graph, tmp_path, lambda model: counts.update(LOWERING.lower(model))))
    assert counts == {"Attention": attentions}
    inputs = random_inputs(canonical.inputs)
    expected = canonical(inputs)
    for name, values in lowered(inputs).items():
        assert relative(values, expected[name]) < 1e-5


def test_tensorrt_builds_the_unet(unet: Traced) -> None:
    network, builder = parsed(lower(unet)[0])
    assert network.get_output(0).dtype == tensorrt_rtx.DataType.HALF
    engine = build(network, builder, unet)
    assert engine is not None
    assert engine.nbytes > unet.weights.path.stat().st_size / 2


@pytest.mark.parametrize(
    ("class_name", "config", "part", "replaced"),
    [("CLIPTextModel", TEXT_ENCODER, 0, 0), ("AutoencoderKL", AUTOENCODER, 1, 1)],
    ids=["text_encoder", "vae_decoder"],
)
def test_tensorrt_reads_the_other_networks(
    class_name: str, config: dict[str, Any], part: int, replaced: int, tmp_path: Path
) -> None:
    graph, counts = lower(traced(class_name, config, torch.float16, tmp_path, part))
    assert counts == {"Attention": replaced}
    network, _ = parsed(graph)
    assert network.num_outputs > 0


@pytest.mark.parametrize("target", lowering.TARGETS)
def test_scores_that_overflow_stay_in_float32(upcast: Traced, target: str) -> None:
    """Stable Diffusion 2.1: `upcast_attention` in a float16 graph."""
    graph = upcast.write(f"{target}.onnx", lowering.TARGETS[target].lower)
    model = onnx.shape_inference.infer_shapes(onnx.load(graph, load_external_data=False))
    dtypes = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    attentions = [n for n in model.graph.node if n.op_type in {"Attention", "MultiHeadAttention", "Softmax"}]
    assert len(attentions) == WIDE + NARROW
    for node in attentions:
        inputs = node.input[:1] if node.op_type == "Softmax" else node.input[:3]
        assert {dtypes[name] for name in inputs} == {onnx.TensorProto.FLOAT}


def test_no_attention_in_float32_is_left_to_tensorrt(upcast: Traced) -> None:
    graph, counts = lower(upcast)
    assert counts == {"Attention": WIDE + NARROW}
    network, _ = parsed(graph)
    softmaxes = [layer for layer in map(network.get_layer, range(network.num_layers)) if layer.type.name == "SOFTMAX"]
    assert len(softmaxes) == WIDE + NARROW
    assert {layer.get_output(0).dtype for layer in softmaxes} == {tensorrt_rtx.DataType.FLOAT}


def test_one_tensor_as_query_key_and_value_is_replaced() -> None:
    """Which crashes TensorRT's builder."""
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23]>
        agraph (float16[2, 1, 5, 64] x, float16[2, 1, 5, 64] y) => (float16[2, 1, 5, 64] z) {
            same = Attention(x, x, x)
            z = Attention(same, x, y)
        }"""
    )
    for value in (*model.graph.inputs, *(output for node in model.graph for output in node.outputs)):
        value.dtype, value.shape = ir.DataType.FLOAT16, ir.Shape([2, 1, 5, 64])
    assert LOWERING.lower(model) == {"Attention": 1}
    assert [node.op_type for node in model.graph].count("Attention") == 1
