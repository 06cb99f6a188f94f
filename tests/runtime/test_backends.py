"""The backend protocol, on ONNX Runtime and on a fake that shows how narrow it is."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from safelight.runtime import UNet2DConditionModel, bundled_model
from safelight.runtime.backends import BACKENDS, COMPILED, ON_GPU, Array, Network, TensorSpec, open_network
from safelight.runtime.config import FrozenConfig
from safelight.runtime.engines import FLAVOURS

UNET = bundled_model() / "unet" / "model.onnx"


@pytest.fixture(scope="module")
def unet() -> Network:
    return open_network(UNET)


def arrays(batch: int = 1, **changed: Array) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        "sample": rng.standard_normal((batch, 4, 8, 8), dtype=np.float32),
        "timestep": np.full((batch,), 10.0, np.float32),
        "encoder_hidden_states": rng.standard_normal((batch, 5, 96), dtype=np.float32),
        **changed,
    }


def test_compiled_backends_are_the_flavours_of_engines() -> None:
    assert COMPILED == FLAVOURS
    assert set(COMPILED) < set(ON_GPU) < set(BACKENDS)


def test_specs_name_free_dimensions(unet: Network) -> None:
    specs = {spec.name: spec for spec in (*unet.inputs, *unet.outputs)}
    assert specs["sample"].shape == ("batch", 4, "height", "width")
    assert specs["sample"].dtype == np.float32
    assert specs["out_sample"].shape == ("batch", 4, "height", "width")


def test_inputs_are_cast_to_the_networks_dtypes(unet: Network) -> None:
    single = unet(arrays())["out_sample"]
    double = unet({name: array.astype(np.float64) for name, array in arrays().items()})["out_sample"]
    assert single.dtype == np.float32
    np.testing.assert_array_equal(single, double)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sample": np.zeros((1, 3, 8, 8))}, r"unet: input sample must be float32 \(batch, 4, height, width\), got .*"),
        ({"sample": np.zeros((4, 8, 8))}, "unet: input sample must be"),
        ({"other": np.zeros(1)}, "unet: unknown input other; it takes sample, timestep, encoder_hidden_states"),
    ],
)
def test_wrong_inputs_are_refused_by_name(unet: Network, changed: dict[str, Array], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unet(arrays(**changed))


def test_missing_inputs_and_unknown_outputs_are_refused_by_name(unet: Network) -> None:
    with pytest.raises(ValueError, match="unet: missing input encoder_hidden_states, timestep"):
        unet({"sample": arrays()["sample"]})
    with pytest.raises(ValueError, match="unet: unknown output nothing; it has out_sample"):
        unet(arrays(), ["nothing"])


def test_a_failing_run_says_with_which_shapes(unet: Network) -> None:
    mismatched = arrays(batch=2, encoder_hidden_states=np.zeros((3, 5, 96)))
    with pytest.raises(RuntimeError, match=r"unet failed on sample \(2, 4, 8, 8\)"):
        unet(mismatched)


def test_a_closed_network_says_so() -> None:
    network = open_network(UNET)
    network.close()
    with pytest.raises(RuntimeError, match="unet is closed"):
        network(arrays())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "tensorflow"}, ValueError, "unknown backend 'tensorflow'; known: onnxruntime"),
        (
            {"device": "tpu"},
            ValueError,
            "unknown device 'tpu' for the onnxruntime backend; it knows cpu, cuda and cuda:N",
        ),
        ({"device": "cuda:x"}, ValueError, "unknown device 'cuda:x'"),
    ],
)
def test_unknown_backends_and_devices_are_refused(options: dict[str, str], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        open_network(UNET, **options)


def test_cuda_without_the_gpu_build_says_what_to_install() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA: the message is for those that have not")
    with pytest.raises(ValueError, match=r"pip install 'safelight\[gpu\]'"):
        open_network(UNET, device="cuda")


def test_a_broken_graph_is_refused_by_name(tmp_path: Path) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(UNET.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"model\.onnx cannot be opened by ONNX Runtime"):
        open_network(broken)
    with pytest.raises(FileNotFoundError, match=r"none\.onnx does not exist"):
        open_network(tmp_path / "none.onnx")


class Doubling:
    """A network that doubles its sample: all that the protocol asks of a backend."""

    def __init__(self, timestep_shape: tuple[int | str, ...]) -> None:
        spec = TensorSpec("sample", np.dtype(np.float32), ("batch", 4, "height", "width"))
        self.inputs = (spec, TensorSpec("timestep", np.dtype(np.float32), timestep_shape))
        self.outputs = (spec,)
        self.timestep: Array = np.zeros(0)

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        self.timestep = inputs["timestep"]
        return {"out_sample": inputs["sample"] * 2}

    def close(self) -> None:
        pass


def test_a_fake_of_ten_lines_is_a_network() -> None:
    sample = np.ones((2, 4, 3, 3), np.float32)
    for shape, expected in ((("batch",), (2,)), ((), ())):
        network: Network = (fake := Doubling(shape))
        output = UNet2DConditionModel(network, FrozenConfig({}))(sample, 7.5, np.zeros((2, 1, 1)))
        np.testing.assert_array_equal(output.sample, sample * 2)
        assert fake.timestep.shape == expected
        assert np.all(fake.timestep == 7.5)
