"""Sums in small graphs: which become part of the operator that reads them, and that they mean the same there."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from cuda_operators import inline
from onnx_ir.passes import common as passes

from safelight.export.lowering import fused_sums
from safelight.export.lowering.fused_sums import fuse_sums
from safelight.runtime.backends import Array

INPUTS = """float[a, b, 8] x, float[a, b, 8] skip, float[a, 1, 8] token, float[8] bias, float[8] scale, float[8] shift,
    float[a, h, w, 8] image, float[a, h, w, 8] other, float[a, 1, 1, 8] vector"""
SHAPES = {
    "x": (2, 5, 8),
    "skip": (2, 5, 8),
    "token": (2, 1, 8),
    **dict.fromkeys(("bias", "scale", "shift"), (8,)),
    "image": (2, 3, 4, 8),
    "other": (2, 3, 4, 8),
    "vector": (2, 1, 1, 8),
}
NORM = "LayerNormalization<axis = -1, epsilon = 0.001>"
GROUPS = "com.microsoft.GroupNorm<groups = 2, activation = 1, channels_last = 1, epsilon = 0.001>"
GATED = "left, right = Split<axis = -1, num_outputs = 2>(sum) act = Gelu(right)"
TANH = GATED.replace("Gelu", 'Gelu<approximate = "tanh">')


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the width of these graphs."""
    monkeypatch.setattr(fused_sums, "SPLIT_GELU_WIDTHS", (8,))
    monkeypatch.setattr(fused_sums, "BIAS_ADD_WIDTHS", (8,))


@pytest.mark.parametrize(
    ("graph", "fused"),
    [
        (f"sum = Add(x, skip) y = {NORM}(sum, scale, shift)", {"SkipLayerNormalization": 1}),
        (f"sum = Add(x, skip) n = {NORM}(sum, scale, shift) y = Add(n, sum)", {"SkipLayerNormalization": 1}),
        (f"p = Add(x, bias) sum = Add(p, skip) y = {NORM}(sum, scale, shift)", {"SkipLayerNormalization": 1}),
        (f"p = Add(bias, x) sum = Add(skip, p) y = {NORM}(sum, scale, shift)", {"SkipLayerNormalization": 1}),
        # the biased value has another reader, so that it is computed anyway
        (
            f"p = Add(x, bias) sum = Add(p, skip) n = {NORM}(sum, scale, shift) y = Mul(n, p)",
            {"SkipLayerNormalization": 1},
        ),
        # one that is repeated to fit; a norm over other axes; a norm without a shift
        (f"sum = Add(x, token) y = {NORM}(sum, scale, shift)", {}),
        ("sum = Add(x, skip) y = LayerNormalization<axis = 1>(sum, full, full)", {}),
        (f"sum = Add(x, skip) y = {NORM}(sum, scale)", {}),
        (f"y = {GROUPS}(image, scale, shift)", {}),
        (f"sum = Add(image, other) y = {GROUPS}(sum, scale, shift)", {"SkipGroupNorm": 1}),
        (f"sum = Add(vector, image) y = {GROUPS}(sum, scale, shift)", {"SkipGroupNorm": 1}),
        (f"sum = Add(image, vector) n = {GROUPS}(sum, scale, shift) y = Add(sum, n)", {"SkipGroupNorm": 1}),
        (f"sum = Add(vector, vector) y = {GROUPS}(sum, scale, shift)", {}),
        (f"sum = Add(x, bias) {GATED} y = Mul(left, act)", {"BiasSplitGelu": 1}),
        (f"sum = Add(bias, x) {GATED} y = Mul(act, left)", {"BiasSplitGelu": 1}),
        (f"sum = Add(x, bias) {GATED} y = Mul(right, act)", {}),
        (f"sum = Add(x, bias) {GATED} p = Mul(left, act) y = Sub(p, act)", {}),
        (f"sum = Add(x, skip) {GATED} y = Mul(left, act)", {}),
        (f"sum = Add(x, bias) {TANH} y = Mul(left, act)", {}),
        ("p = Add(x, bias) y = Add(p, skip)", {"BiasAdd": 1}),
        ("p = Add(x, bias) y = Add(skip, p)", {"BiasAdd": 1}),
        ("p = Add(x, bias) s = Add(p, skip) y = Mul(s, p)", {}),
        ("p = Add(x, bias) y = Add(p, token)", {}),
        ("y = Add(x, skip)", {}),
    ],
)
def test_sums(graph: str, fused: dict[str, int]) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
        agraph ({INPUTS}) => (float[c, d, e] y) <float[5, 8] full = {{{", ".join(["1.0"] * 40)}}}> {{ {graph} }}"""
    expected, lowered = ir.from_onnx_text(text), ir.from_onnx_text(text)
    for model in (expected, lowered):
        model.graph.outputs[0].shape = None
        passes.ShapeInferencePass()(model)
    assert {name: count for name, count in fuse_sums(lowered).items() if count} == fused
    sums = sum(node.op_type == "Add" for node in expected.graph) - sum(node.op_type == "Add" for node in lowered.graph)
    assert bool(sums) == bool(fused)
    np.testing.assert_allclose(run(lowered), run(expected), atol=1e-6)


@pytest.mark.parametrize(
    "graph", [f"sum = Add(x, bias) {GATED} y = Mul(left, act)", "p = Add(x, bias) y = Add(p, skip)"]
)
def test_other_widths_have_no_kernel(graph: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    header = f'<ir_version: 10, opset_import: ["" : 23]> agraph ({INPUTS}) => (float[c, d, e] y)'
    model = ir.from_onnx_text(f"{header} {{ {graph} }}")
    passes.ShapeInferencePass()(model)
    assert not any(fuse_sums(model).values())


def run(model: ir.Model) -> Array:
    inline(model)
    rng = np.random.default_rng(0)
    names = {value.name for value in model.graph.inputs}
    inputs = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in SHAPES.items() if name in names}
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    result: Array = session.run(None, inputs)[0]
    return result
