"""The graph for ONNX Runtime on CUDA: what it replaces, and that the replacements mean the same.

GroupNorm and NhwcConv have no kernel on a CPU. What they mean is written here in ONNX's own operators, as functions
that take their place before ONNX Runtime opens the graph.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from graphs import operators, random_inputs, rewritten, traced
from onnx_ir.passes import common as passes
from onnxscript import opset23 as op
from onnxscript import script
from onnxscript.values import Opset
from pairs import relative

from safelight.export import lowering
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


@script(Opset("com.microsoft", 1), default_opset=op)
def GroupNorm(X, gamma, beta, activation: int, groups: int, channels_last: int = 0, epsilon: float = 0.1):  # type: ignore[no-untyped-def]  # noqa: N802, N803
    images = op.Transpose(X, perm=[0, 3, 1, 2])
    scale = op.CastLike(gamma, X)
    bias = op.CastLike(beta, X)
    normal = op.GroupNormalization(images, scale, bias, num_groups=groups, epsilon=epsilon)
    if op.Cast(op.Constant(value_int=activation), to=9):  # a bool
        result = op.Mul(normal, op.Sigmoid(normal))
    else:
        result = op.Identity(normal)
    return op.Transpose(result, perm=[0, 2, 3, 1])


@script(Opset("com.microsoft", 1), default_opset=op)
def NhwcConv(  # type: ignore[no-untyped-def]  # noqa: N802
    X,  # noqa: N803
    W,  # noqa: N803
    B,  # noqa: N803
    auto_pad: str,
    dilations: Sequence[int],
    group: int,
    kernel_shape: Sequence[int],
    pads: Sequence[int],
    strides: Sequence[int],
):
    images = op.Transpose(X, perm=[0, 3, 1, 2])
    weight = op.Transpose(W, perm=[0, 3, 1, 2])
    result = op.Conv(
        images,
        weight,
        B,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    return op.Transpose(result, perm=[0, 2, 3, 1])


def inline(model: ir.Model) -> None:
    """Puts the functions' operators in the place of their calls."""
    for function in (GroupNorm, NhwcConv):
        body = ir.from_proto(function.to_function_proto())
        assert isinstance(body, ir.Function)
        model.functions[body.identifier()] = body
    passes.InlinePass()(model)


#: of a checkpoint: a network, what is replaced, the transposes that remain beside those of the convolutions' weights
NETWORKS = [
    # widths of 3, 5 and 9 channels a group, for which CUDA has no GroupNorm, keep most group norms channels first
    ("ODD", "unet", {"Attention": 14, "Conv": 50, "GroupNormalization": 30, "Sigmoid": 6}, 50),
    ("LINEAR", "text_encoder", {"Attention": 2, "Conv": 0, "GroupNormalization": 0, "Sigmoid": 0}, 0),
    # channels first remain the latents, going in and coming out
    ("LINEAR", "unet", {"Attention": 12, "Conv": 35, "GroupNormalization": 31, "Sigmoid": 25}, 2),
    ("LINEAR", "vae_encoder", {"Attention": 0, "Conv": 20, "GroupNormalization": 13, "Sigmoid": 11}, 6),
    ("LINEAR", "vae_decoder", {"Attention": 0, "Conv": 28, "GroupNormalization": 21, "Sigmoid": 17}, 10),
    ("SDXL", "unet", {"Attention": 16, "Conv": 25, "GroupNormalization": 21, "Sigmoid": 17}, 2),
    ("UNCONDITIONAL", "unet", {"Attention": 4, "Conv": 36, "GroupNormalization": 27, "Sigmoid": 15}, 24),
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
        assert after["GroupNorm"] + after["InstanceNormalization"] == before["GroupNormalization"]
        assert after["Sigmoid"] == before["Sigmoid"] - counts["Sigmoid"]
        assert after["Transpose"] == counts["Conv"] + transposes
        inline(model)

    lowered = open_network(rewritten(graph, tmp_path, lower))
    assert found == counts
    canonical = open_network(graph)
    inputs = random_inputs(canonical.inputs)
    expected = canonical(inputs)
    for name, values in lowered(inputs).items():
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
