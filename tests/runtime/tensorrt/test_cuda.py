"""The layer over CUDA: its errors, and that the simulated library has the real one's signatures."""

import inspect
import re

import pytest
from cuda.bindings import runtime as real
from simulated_gpu import SimulatedCuda

from safelight.runtime import doctor
from safelight.runtime.backends.tensorrt import cuda
from safelight.runtime.backends.tensorrt.device import Device


def parameters(function: object) -> list[str]:
    """Of a function of Cython, whose first line says what it takes: "cudaMalloc(size_t size)"."""
    line = (getattr(function, "__doc__", None) or "").splitlines()[0]
    inside = re.fullmatch(r"\w+\((.*)\)", line)
    assert inside, line
    return [part.partition(":")[0].split()[-1] for part in inside[1].split(",") if part.strip()]


CALLS = [name for name in vars(SimulatedCuda) if name.startswith("cuda") and callable(getattr(SimulatedCuda, name))]


@pytest.mark.parametrize("name", [name for name in CALLS if inspect.isfunction(vars(SimulatedCuda)[name])])
def test_simulated_calls_take_what_the_real_ones_take(name: str) -> None:
    ours = list(inspect.signature(getattr(SimulatedCuda, name)).parameters)[1:]
    theirs = parameters(getattr(real, name))
    assert len(ours) == len(theirs), (ours, theirs)


@pytest.mark.skipif(real.cudaGetDeviceCount()[0] == real.cudaError_t.cudaSuccess, reason="there is a GPU")
def test_the_real_library_without_a_driver() -> None:
    with pytest.raises(cuda.CudaError, match=r"there is no NVIDIA (driver on this machine|GPU that CUDA can use)"):
        Device.acquire("cuda")
    with pytest.raises(ValueError, match="device must be 'cuda'"):
        Device.acquire("cpu")
    found = {finding.subject: finding for finding in doctor.examine()}
    assert not found["backend tensorrt-rtx"].works
    assert "no NVIDIA" in found["backend tensorrt-rtx"].detail


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (
            12040,
            r"the NVIDIA driver is for CUDA 12\.4, the installed bindings are for CUDA 13\.5: .*bindings<13'",
        ),
        (0, "there is no NVIDIA driver on this machine"),
    ],
)
def test_an_old_driver(monkeypatch: pytest.MonkeyPatch, driver: int, message: str) -> None:
    simulated = SimulatedCuda()
    simulated.driver = driver
    monkeypatch.setattr(cuda, "cudart", simulated)
    with pytest.raises(cuda.CudaError, match=message):
        Device.acquire("cuda")


def test_an_error_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT takes an error that is still there for one of its own."""
    simulated = SimulatedCuda(memory=100)
    monkeypatch.setattr(cuda, "cudart", simulated)
    with pytest.raises(cuda.CudaOutOfMemoryError, match=r"a test needs 0\.0 MB, 0\.0 MB are free"):
        cuda.DeviceBuffer(101, "a test")
    assert simulated.pending_error == real.cudaError_t.cudaSuccess


def test_doctor_shows_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "cudart", SimulatedCuda([(9, 0), (8, 9)], memory=80 * 10**9))
    found = {finding.subject: finding for finding in doctor.examine()}["backend tensorrt-rtx"]
    assert found.works
    assert "Simulated 0 (sm90, 80 GB), Simulated 1 (sm89, 80 GB)" in found.detail
