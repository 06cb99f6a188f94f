"""ONNX Runtime's operators that have no kernel on a CPU, written in ONNX's own."""

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript import opset23 as op
from onnxscript import script
from onnxscript.values import Opset


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


@script(Opset("com.microsoft", 1), default_opset=op)
def SkipGroupNorm(  # type: ignore[no-untyped-def]  # noqa: N802
    X,  # noqa: N803
    gamma,
    beta,
    skip,
    activation: int,
    groups: int,
    channels_last: int = 0,
    epsilon: float = 0.1,
):
    total = op.Add(X, skip)
    images = op.Transpose(total, perm=[0, 3, 1, 2])
    scale = op.CastLike(gamma, X)
    bias = op.CastLike(beta, X)
    normal = op.GroupNormalization(images, scale, bias, num_groups=groups, epsilon=epsilon)
    if op.Cast(op.Constant(value_int=activation), to=9):
        result = op.Mul(normal, op.Sigmoid(normal))
    else:
        result = op.Identity(normal)
    return op.Transpose(result, perm=[0, 2, 3, 1]), total


@script(Opset("com.microsoft", 1), default_opset=op)
def BiasSplitGelu(X, bias):  # type: ignore[no-untyped-def]  # noqa: N802, N803
    left, right = op.Split(op.Add(X, bias), num_outputs=2, axis=2)
    return op.Mul(left, op.Gelu(right))


@script(Opset("com.microsoft", 1), default_opset=op)
def BiasAdd(X, bias, skip):  # type: ignore[no-untyped-def]  # noqa: N802, N803
    return op.Add(op.Add(X, bias), skip)


def inline(model: ir.Model) -> None:
    """Puts the functions' operators in the place of their calls."""
    for function in (GroupNorm, NhwcConv, SkipGroupNorm, BiasSplitGelu, BiasAdd):
        body = ir.from_proto(function.to_function_proto())
        assert isinstance(body, ir.Function)
        model.functions[body.identifier()] = body
    for node in model.graph:
        if node.op_type == "SkipGroupNorm":
            node.resize_outputs(2)  # of which the second may be missing
    passes.InlinePass()(model)
