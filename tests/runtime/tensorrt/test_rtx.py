"""TensorRT for RTX: kernels that are compiled when they first run, and the real library where it needs no GPU."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx
from simulated_gpu import SimulatedCuda
from simulated_machine import Machine, make_machine

from safelight.runtime.backends.tensorrt import cuda
from safelight.runtime.backends.tensorrt.rtx import describe

TOKENS = {"input_ids": np.ones((1, 32), np.int64)}


def run(machine: Machine) -> None:
    network = machine.open("text_encoder")
    network(TOKENS)
    network.close()


def kernels(machine: Machine) -> Path:
    (record,) = machine.store.records()
    return machine.store.path(record.identity.name, ".cache")


def test_a_second_start_compiles_nothing(rtx: Machine) -> None:
    rtx.build("text_encoder")
    run(rtx)
    assert rtx.library.compiled.total() == 1
    written = kernels(rtx).stat()
    run(rtx)
    assert rtx.library.compiled.total() == 1
    assert kernels(rtx).stat().st_mtime_ns == written.st_mtime_ns
    assert written.st_mode & 0o077 == 0
    network = rtx.open("text_encoder")
    network({"input_ids": np.ones((2, 32), np.int64)})
    network.close()
    assert rtx.library.compiled.total() == 2
    assert len(json.loads(kernels(rtx).read_bytes()[32:])) == 2


def test_damaged_kernels_are_compiled_again(rtx: Machine, caplog: pytest.LogCaptureFixture) -> None:
    rtx.build("text_encoder")
    run(rtx)
    content = bytearray(kernels(rtx).read_bytes())
    content[-3] ^= 1
    kernels(rtx).write_bytes(content)
    run(rtx)
    assert rtx.library.compiled.total() == 2
    assert "are damaged: they are compiled again" in caplog.text
    caplog.clear()
    run(rtx)
    assert rtx.library.compiled.total() == 2
    assert caplog.text == ""


def test_kernels_that_others_can_write_are_refused(rtx: Machine) -> None:
    rtx.build("text_encoder")
    run(rtx)
    kernels(rtx).chmod(0o666)
    with pytest.raises(PermissionError, match="can be written by others"):
        run(rtx)


def test_a_store_that_cannot_be_written_only_costs_time(
    rtx: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: Any) -> None:
        raise OSError("read-only file system")

    caplog.set_level(logging.INFO)
    rtx.build("text_encoder")
    monkeypatch.setattr(type(rtx.store), "keep_cache", refused)
    run(rtx)
    assert "are not kept: read-only file system" in caplog.text


def test_an_engine_that_is_not_valid_here_is_not_deserialized(rtx: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record says that it is for this GPU, and TensorRT knows better."""
    import simulated_machine

    make = simulated_machine.make_plan
    monkeypatch.setattr(simulated_machine, "make_plan", lambda *given, gpu, **rest: make(*given, gpu="sm89", **rest))
    rtx.build("text_encoder")
    with pytest.raises(ValueError, match="is not valid on this machine: UNSUPPORTED_CC; safelight build makes it anew"):
        rtx.open("text_encoder")


def real_plan() -> bytes:
    """A plan that TensorRT for RTX has built, for a GPU that is not here: the smallest decoder."""
    logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR)
    builder = tensorrt_rtx.Builder(logger)
    network = builder.create_network(1 << int(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    sample = network.add_input("latent_sample", tensorrt_rtx.float32, (-1, 4, -1, -1))
    output = network.add_unary(sample, tensorrt_rtx.UnaryOperation.NEG).get_output(0)
    output.name = "sample"
    network.mark_output(output)
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.num_compute_capabilities = 1
    config.set_compute_capability(tensorrt_rtx.ComputeCapability.SM89, 0)
    profile.set_shape("latent_sample", (1, 4, 5, 5), (2, 4, 8, 8), (4, 4, 16, 16))
    config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))


@pytest.fixture
def real(rtx: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The same machine with the real TensorRT for RTX, which finds no GPU on it."""
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", tensorrt_rtx)
    rtx.library.__version__ = tensorrt_rtx.__version__
    return rtx


@pytest.mark.skipif(cuda.cudart.cudaGetDeviceCount()[0] == 0, reason="there is a GPU")
def test_the_real_library_refuses_what_it_cannot_load(real: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe() == f"TensorRT-RTX {tensorrt_rtx.__version__}"
    record = real.build("vae_decoder")  # of the simulation: JSON
    with pytest.raises(ValueError, match=f"{record.identity.name} is not valid on this machine: MALFORMED_ENGINE; saf"):
        real.open("vae_decoder")
    monkeypatch.setattr("simulated_machine.make_plan", lambda *_, **__: real_plan())
    real.build("vae_decoder", dtype="fp16")
    with pytest.raises(ValueError, match=r"is not valid on this machine: .*CUDA driver version is insufficient"):
        real.open("vae_decoder")


def test_a_flipped_byte_never_comes_to_the_library(real: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulated_machine.make_plan", lambda *_, **__: real_plan())
    record = real.build("vae_decoder")
    path = real.store.path(record.identity.name, ".plan")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(tensorrt_rtx, "Runtime", pytest.fail)
    with pytest.raises(ValueError, match=f"{record.identity.name}"):
        real.open("vae_decoder")


def test_the_real_library_has_what_is_asked_of_it() -> None:
    """The simulated one stands in for this: every name that the backend uses is there."""
    used = {
        "Runtime": ["deserialize_cuda_engine", "engine_host_code_allowed", "get_engine_validity"],
        "ICudaEngine": [
            "create_execution_context",
            "create_runtime_config",
            "get_device_memory_size_for_profile_v2",
            "get_tensor_dtype",
            "get_tensor_location",
            "get_tensor_mode",
            "get_tensor_name",
            "get_tensor_profile_shape",
            "get_tensor_shape",
            "num_io_tensors",
            "num_optimization_profiles",
        ],
        "IExecutionContext": [
            "execute_async_v3",
            "get_tensor_shape",
            "infer_shapes",
            "is_stream_capturable",
            "set_device_memory",
            "set_input_shape",
            "set_optimization_profile_async",
            "set_tensor_address",
        ],
        "IRuntimeConfig": [
            "create_runtime_cache",
            "cuda_graph_strategy",
            "dynamic_shapes_kernel_specialization_strategy",
            "set_execution_context_allocation_strategy",
            "set_runtime_cache",
        ],
        "IRuntimeCache": ["deserialize", "serialize"],
        "Refitter": ["get_missing_weights", "get_weights_prototype", "refit_cuda_engine", "set_named_weights"],
        "Weights": ["dtype", "size"],
        "DataType": ["FLOAT", "HALF", "BF16", "INT64", "INT32", "BOOL"],
        "ILogger": ["Severity", "log"],
        "TensorIOMode": ["INPUT"],
        "TensorLocation": ["DEVICE"],
        "ExecutionContextAllocationStrategy": ["USER_MANAGED"],
        "CudaGraphStrategy": ["DISABLED"],
        "DynamicShapesKernelSpecializationStrategy": ["EAGER"],
        "EngineValidity": ["INVALID"],
        "EngineInvalidityDiagnostics": ["UNSUPPORTED_CC", "MALFORMED_ENGINE"],
    }
    for kind, names in used.items():
        assert set(names) <= set(dir(getattr(tensorrt_rtx, kind))), kind
    for name in ("cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy"):
        assert getattr(tensorrt_rtx.IRuntimeConfig, name).fset is not None


def test_another_gpu_has_engines_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = make_machine("tensorrt-rtx", monkeypatch, tmp_path, SimulatedCuda([(9, 0), (8, 9)]))
    machine.build("text_encoder")
    machine.build("text_encoder", gpu="sm89")
    first, second = machine.open("text_encoder", "cuda:0"), machine.open("text_encoder", "cuda:1")
    assert (first.record.identity.gpus, second.record.identity.gpus) == (("sm90",), ("sm89",))
    for name, values in first(TOKENS).items():
        np.testing.assert_array_equal(values, second(TOKENS)[name])
    first.close()
    second.close()
    machine.check_nothing_is_left()


def test_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = make_machine("tensorrt-rtx", monkeypatch, tmp_path, SimulatedCuda([]))
    with pytest.raises(cuda.CudaError, match="there is no NVIDIA GPU that CUDA can use"):
        machine.open("text_encoder")
