"""Which precision a network is computed in, and that it is that one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest

from safelight.runtime.backends import Array, Tuning, open_network
from safelight.runtime.backends.openvino import fastest_precision
from safelight.runtime.backends.openvino.devices import Device
from safelight.runtime.backends.openvino.precision import decided, fastest
from safelight.runtime.networks import Engine

CAPABILITIES = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
HAS_BF16 = "BF16" in CAPABILITIES
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16")


@dataclass
class OtherCore:
    """An OpenVINO on another machine."""

    capabilities: tuple[str, ...]
    own: str  # what OpenVINO computes in where it is not told

    def get_property(self, device: str, name: str) -> Any:
        del device
        if name == "INFERENCE_PRECISION_HINT":
            return getattr(openvino.Type, self.own)
        return {"OPTIMIZATION_CAPABILITIES": list(self.capabilities), "FULL_DEVICE_NAME": "a processor"}[name]


def device(*capabilities: str, own: str = "f32", name: str = "CPU") -> Device:
    return Device(name=name, core=OtherCore(("FP32", *capabilities), own))


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (device(), "fp32"),
        (device("BF16", own="bf16"), "bf16"),
        (device("FP16", own="f16"), "fp32"),  # which is slower there than fp32
        (device("BF16", "FP16", own="f16"), "bf16"),
        (device("BF16"), "fp32"),
        (device("FP16", own="f16", name="GPU"), "fp16"),
        (device(own="f32", name="GPU"), "fp32"),
    ],
)
def test_auto_is_the_fastest_and_on_a_cpu_never_fp16(there: Device, expected: str) -> None:
    assert fastest(there) == decided(there, "auto", "fp32") == expected


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_what_the_device_lacks_is_refused_where_it_is_asked_for(precision: str) -> None:
    message = f'this CPU, a processor, does not compute in {precision}; it has fp32, and "auto" is the fastest'
    with pytest.raises(ValueError, match=message):
        decided(device(), precision, "fp32")
    assert decided(device(), None, precision) == "fp32"  # a graph in it is computed in what is wider
    assert decided(device("BF16", "FP16"), None, precision) == precision
    assert decided(device("BF16", "FP16"), "fp32", precision) == "fp32"


@needs_bf16
def test_bf16_is_openvinos_bf16_and_not_float32(
    graph: Path, inputs: Callable[..., dict[str, Array]], opened: Callable[..., Any]
) -> None:
    given = inputs()
    given["timestep"][:] = 0  # whose angles are none to round
    unet, single = opened(precision="bf16"), opened(precision="fp32")
    found, expected = (network(given)["out_sample"] for network in (unet, single))
    assert unet.precision == "bf16"
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, plain_bf16(graph, given))
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 2**-9 < error < 0.2  # more than one rounding to 8 bits


@needs_bf16
@pytest.mark.parametrize("static", [True, False])
def test_timesteps_that_bf16_cannot_tell_apart_are_told_apart(
    static: bool, graph: Path, inputs: Callable[..., dict[str, Array]], opened: Callable[..., Any]
) -> None:
    network = opened(precision="bf16", static_shapes=static)
    first, second = ({**inputs(), "timestep": np.full(2, timestep, np.float32)} for timestep in (999, 1000))
    # where this fails, OpenVINO has mended it, and `keep_angles` can go
    np.testing.assert_array_equal(plain_bf16(graph, first), plain_bf16(graph, second))
    assert (network(first)["out_sample"] != network(second)["out_sample"]).any()
    assert list(network(first)) == ["out_sample"]


@needs_bf16
def test_sines_of_large_angles_are_right_in_bf16(tmp_path: Path) -> None:
    graph = waves(tmp_path)
    timesteps = np.linspace(1, 1000, 64, dtype=np.float32).reshape(8, 8)
    network = open_network(graph, backend="openvino", tuning=Tuning(precision="bf16"))
    expected = np.sin(timesteps.astype(np.float64) * 0.7) @ np.eye(8)
    np.testing.assert_allclose(network({"sample": timesteps})["out_sample"], expected, atol=2**-8)


def plain_bf16(graph: Path, given: dict[str, Array]) -> Array:
    """What OpenVINO gives in bf16, nothing of it kept in float32."""
    core: Any = openvino.Core()
    model = core.read_model(graph)
    model.reshape({name: list(array.shape) for name, array in given.items()})
    found: Array = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})(given)[0]
    return found


def waves(folder: Path) -> Path:
    """A graph that multiplies the sines of 0.7 times its inputs with the identity."""
    single = onnx.TensorProto.FLOAT
    nodes = [
        onnx.helper.make_node("Mul", ["sample", "frequency"], ["angles"]),
        onnx.helper.make_node("Sin", ["angles"], ["sines"]),
        onnx.helper.make_node("MatMul", ["sines", "identity"], ["out_sample"]),
    ]
    weights = [
        onnx.numpy_helper.from_array(np.float32(0.7), "frequency"),
        onnx.numpy_helper.from_array(np.eye(8, dtype=np.float32), "identity"),
    ]
    borders = [onnx.helper.make_tensor_value_info(name, single, ["n", 8]) for name in ("sample", "out_sample")]
    made = onnx.helper.make_graph(nodes, "waves", borders[:1], borders[1:], weights)
    onnx.save(
        onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9),
        folder / "model.onnx",
    )
    return folder / "model.onnx"


@pytest.mark.parametrize(("dtype", "precision"), [("BFLOAT16", "bf16"), ("FLOAT16", "fp16"), ("FLOAT", "fp32")])
def test_without_a_precision_it_is_the_graphs(dtype: str, precision: str, tmp_path: Path) -> None:
    there = precision == "fp32" or precision.upper() in CAPABILITIES
    opened: Any = open_network(product(tmp_path, getattr(onnx.TensorProto, dtype)), backend="openvino")
    assert opened.precision == (precision if there else "fp32")


def product(folder: Path, dtype: int) -> Path:
    """A graph with float32 borders that multiplies two matrices in a dtype."""
    single = onnx.TensorProto.FLOAT
    nodes = [
        onnx.helper.make_node("Cast", ["sample"], ["left"], to=dtype),
        onnx.helper.make_node("MatMul", ["left", "left"], ["squared"]),
        onnx.helper.make_node("Cast", ["squared"], ["out_sample"], to=single),
    ]
    borders = [onnx.helper.make_tensor_value_info(name, single, ["n", "n"]) for name in ("sample", "out_sample")]
    graph = onnx.helper.make_graph(nodes, "product", borders[:1], borders[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def test_an_engine_tells_what_auto_is() -> None:
    expected = fastest_precision("cpu")
    assert expected == ("bf16" if HAS_BF16 else "fp32")
    engine = Engine("openvino", tuning=Tuning(precision="auto"), precisions={"vae_decoder": "fp32"})
    assert engine.precision("unet") == expected
    assert engine.precision("vae_decoder") == "fp32"
    assert Engine("openvino").precision("unet") is None
    assert Engine("onnxruntime", tuning=Tuning(precision="auto")).precision("unet") is None
