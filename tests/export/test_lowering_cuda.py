"""The graph for ONNX Runtime on CUDA: what it replaces, and that the replacements mean the same.

Operators without a kernel on a CPU are written out in ONNX's own before ONNX Runtime opens the graph: `cuda_operators`.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from cuda_operators import inline
from graphs import operators, random_inputs, rewritten, traced
from onnx_ir.passes import common as passes
from pairs import relative

from safelight.export import lowering
from safelight.export.lowering import fused_sums
from safelight.runtime.backends import Array, open_network

LIMIT = 1e-5  # relative, float32
HALF = 5e-3  # float16
LOWERING = lowering.TARGETS["onnxruntime-cuda"]
#: the attributes of a convolution of single pixels, as the trace writes them
POINTWISE = (
    'kernel_shape = [1, 1], pads = [0, 0, 0, 0], strides = [1, 1], dilations = [1, 1], group = 1, auto_pad = "NOTSET"'
)
#: whose groups have 4 and 6 channels
AUTOENCODER = {
    "block_out_channels": [16, 24],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


@pytest.fixture(autouse=True)
def any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels for sums with a bias take the widths of published networks; those of tiny ones count here too."""
    monkeypatch.setattr(fused_sums, "SPLIT_GELU_WIDTHS", range(4096))
    monkeypatch.setattr(fused_sums, "BIAS_ADD_WIDTHS", range(4096))


FUSED = ("SkipLayerNormalization", "SkipGroupNorm", "BiasSplitGelu", "BiasAdd")


def replaced(
    attentions: int, convolutions: int, norms: int, silus: int, *fused: int, arg_max: int = 0
) -> dict[str, int]:
    counts = {"Attention": attentions, "Conv": convolutions, "GroupNormalization": norms, "Sigmoid": silus}
    return {**counts, "ArgMax": arg_max, **dict(zip(FUSED, fused, strict=True))}


#: of a checkpoint: a network, what is replaced, the transposes that remain beside those of the convolutions' weights
NETWORKS = [
    # widths of 3, 5 and 9 channels a group, for which CUDA has no GroupNorm, keep most group norms channels first
    ("ODD", "unet", replaced(14, 50, 30, 6, 14, 0, 7, 7), 50),
    ("LINEAR", "text_encoder", replaced(2, 0, 0, 0, 4, 0, 0, 0, arg_max=1), 0),
    # channels first remain the latents, going in and coming out
    ("LINEAR", "unet", replaced(12, 35, 31, 25, 12, 23, 6, 6), 2),
    ("LINEAR", "vae_encoder", replaced(0, 20, 13, 11, 0, 3, 0, 0), 6),
    ("LINEAR", "vae_decoder", replaced(0, 28, 21, 17, 0, 6, 0, 0), 10),
    ("SDXL", "unet", replaced(16, 25, 21, 17, 20, 15, 8, 4), 2),
    ("SDXL", "text_encoder_2", replaced(4, 0, 0, 0, 8, 0, 0, 0, arg_max=1), 0),
    ("UNCONDITIONAL", "unet", replaced(4, 36, 27, 15, 0, 12, 0, 0), 24),
    ("CHECKED", "safety_checker", replaced(3, 1, 0, 0, 5, 0, 0, 1), 3),
    ("DEPTH", "depth_estimator", replaced(4, 31, 0, 0, 7, 0, 0, 1), 16),
]


@pytest.mark.parametrize(("checkpoint", "network", "counts", "transposes"), NETWORKS)
def test_every_network_is_the_canonical_one(
    checkpoint: str,
    network: str,
    counts: dict[str, int],
    transposes: int,
    exported: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    graph = exported(checkpoint) / network / "model.onnx"
    before = operators(graph)
    found: dict[str, int] = {}

    def lower(model: ir.Model) -> None:
        found.update(LOWERING.lower(model))
        after = operators(model)
        assert [after[name] for name in ("Attention", "Conv", "GroupNormalization")] == [0, 0, 0]
        assert after["MultiHeadAttention"] == before["Attention"]
        assert after["NhwcConv"] == before["Conv"]
        norms = after["GroupNorm"] + after["SkipGroupNorm"] + after["InstanceNormalization"]
        assert norms == before["GroupNormalization"]
        assert after["LayerNormalization"] + after["SkipLayerNormalization"] == before["LayerNormalization"]
        assert after["Gelu"] + after["BiasSplitGelu"] == before["Gelu"]
        assert after["Sigmoid"] == before["Sigmoid"] - counts["Sigmoid"]
        assert {name: after[name] for name in FUSED} == {name: counts[name] for name in FUSED}
        assert after["Transpose"] == counts["Conv"] + transposes
        inline(model)

    lowered = open_network(rewritten(graph, tmp_path, lower))
    assert found == counts
    canonical = open_network(graph)
    inputs = random_inputs(canonical.inputs)
    expected = canonical(inputs)
    for name, values in lowered(inputs).items():
        if values.dtype == np.bool_:
            np.testing.assert_array_equal(values, expected[name])
        else:
            assert relative(values, expected[name]) < LIMIT


def test_scale_and_bias_of_a_half_precision_group_norm_are_float32(tmp_path: Path) -> None:
    """The CUDA kernel takes no others."""
    network = traced("AutoencoderKL", AUTOENCODER, torch.float16, tmp_path, part=1)
    canonical = open_network(network.write("model.onnx"))

    def lower(model: ir.Model) -> None:
        LOWERING.lower(model)
        norms = [node for node in model.graph if node.op_type == "GroupNorm"]
        assert norms
        for node in norms:
            casts = [value.producer() for value in node.inputs[1:] if value is not None]
            assert [cast.attributes["to"].value for cast in casts if cast is not None] == [ir.DataType.FLOAT] * 2
        inline(model)

    lowered = open_network(network.write("model.onnxruntime-cuda.onnx", lower))
    inputs = random_inputs(canonical.inputs)
    assert relative(lowered(inputs)["sample"], canonical(inputs)["sample"]) < HALF


@pytest.mark.parametrize(
    ("between", "transposes"),  # three at least: of what goes in and of the two results
    [
        ("y = Sub(conv, x)", 4),  # does not follow
        ("half = Mul(conv, factor) y = Add(half, x)", 3),
        ("full = Shape(conv) y = Reshape(conv, full)", 4),
        (
            "some = Shape<start = 1, end = 3>(conv) last = Shape<start = 3>(conv) first = Shape<end = 1>(conv) "
            "sizes = Concat<axis = 0>(first, some, last) y = Expand(conv, sizes)",
            4,
        ),
        (
            "flat = Reshape(conv, tokens) turned = Transpose<perm = [0, 2, 1]>(flat) soft = Softmax<axis = 2>(turned) "
            "back = Transpose<perm = [0, 2, 1]>(soft) size = Shape(x) y = Reshape(back, size)",
            3,
        ),
        (
            "flat = Reshape(conv, rows) turned = Transpose<perm = [0, 2, 1]>(flat) size = Shape(x) "
            "y = Reshape(turned, size)",
            5,
        ),
        ('y = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric">(conv, , scales)', 3),
        ('y = Resize<mode = "linear">(conv, , scales)', 4),
        ("s = Sigmoid(conv) y = Mul(conv, s)", 3),
        ("both = Concat<axis = 1>(x, conv) y = Conv(both, second)", 3),
        ("both = Concat<axis = 2>(x, conv) y = Conv(both, weight)", 5),
    ],
)
def test_what_lies_between_convolutions(between: str, transposes: int) -> None:
    """Small graphs, whose result is read channels first and by another convolution."""
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 23]>
        agraph (float[2, 3, 4, 6] x, float[3, 3, 1, 1] weight, float[3, 6, 1, 1] second) => (float[a, b, c, d] z, y) <
            float factor = {{0.5}}, int64[3] tokens = {{2, 3, 24}}, int64[3] rows = {{2, 12, 6}},
            float[4] scales = {{1.0, 1.0, 2.0, 3.0}}
        > {{
            conv = Conv(x, weight)
            {between}
            z = Conv(y, weight)
        }}""".replace("Conv(", f"Conv<{POINTWISE}>(")
    )
    passes.ShapeInferencePass()(model)
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 3, 4, 6), "weight": (3, 3, 1, 1), "second": (3, 6, 1, 1)}
    inputs = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    expected = run(model, inputs)
    convolutions = LOWERING.lower(model)["Conv"]
    assert operators(model)["Transpose"] == convolutions + transposes
    inline(model)
    for found, values in zip(run(model, inputs), expected, strict=True):
        np.testing.assert_allclose(found, values, atol=1e-6)


def run(model: ir.Model, inputs: dict[str, Array]) -> list[Array]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    results: list[Array] = session.run(None, inputs)
    return results
