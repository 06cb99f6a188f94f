"""ONNX Runtime on a GPU: the CPU's pictures, CUDA graphs, and what happens when memory is used up."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import random_inputs
from pairs import relative

from safelight.runtime import DiffusionPipeline, bundled_model
from safelight.runtime.backends import Array, Network, backend_module, open_network
from safelight.runtime.backends.onnxruntime import binding, cuda

FLOAT16 = 2e-2  # relative, of a whole UNet with tiny widths
TF32 = 5e-3  # which float32 networks are computed in
SIZES = {"batch": 2, "sequence_length": 9, "height": 16, "width": 24, "latent_height": 16, "latent_width": 24}
PROMPT = {"prompt": "cat face on a blue background", "num_inference_steps": 8, "seed": 0}


def missing(backend: str) -> str:
    """Why a backend cannot be tried here; empty where it can."""
    if not cuda.has_driver():
        return "no driver for an NVIDIA GPU"
    try:
        open_network(bundled_model() / "vae_decoder" / "model.onnx", backend=backend, device="cuda").close()
    except (ImportError, ValueError) as error:
        return str(error)
    return ""


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(missing("onnxruntime")), reason=missing("onnxruntime"))]


def pair(folder: Path, network: str, backend: str = "onnxruntime") -> tuple[Network, Network]:
    """A network on the GPU, in the graph that suits it, and on the CPU."""
    target = backend_module(backend).target("cuda")
    lowered = folder / network / f"model.{target}.onnx"
    graph = lowered if lowered.exists() else folder / network / "model.onnx"
    return open_network(graph, backend=backend, device="cuda"), open_network(folder / network / "model.onnx")


def uncaptured(network: Any) -> list[str]:
    """Whether a network gave up CUDA graphs."""
    return [] if network._session._place.capture is not None else ["runs without CUDA graphs"]


@pytest.mark.parametrize("network", ["text_encoder", "unet", "vae_encoder", "vae_decoder"])
def test_a_network_is_the_cpus_and_replays_itself(network: str, caplog: pytest.LogCaptureFixture) -> None:
    on_gpu, on_cpu = pair(bundled_model(), network)
    inputs = random_inputs(on_cpu.inputs, SIZES)
    expected = on_cpu(inputs)
    for _ in range(4):  # as it is, captured, replayed, replayed
        for name, values in on_gpu(inputs).items():
            assert relative(values, expected[name]) < TF32
    other = random_inputs(on_cpu.inputs, SIZES)
    for name in other:
        other[name] = other[name][::-1].copy()  # the second of the batch first: a replay reads what is new
    for name, values in on_gpu(other).items():
        assert relative(values, on_cpu(other)[name]) < TF32
    assert not uncaptured(on_gpu)
    assert "CUDA graphs" not in caplog.text


def test_shapes_take_turns_without_mixing_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Concatenations keep host memory that a graph reads again: another shape's run must not have changed it."""
    monkeypatch.setattr(binding, "MOST_BUCKETS", 2)
    on_gpu, on_cpu = pair(bundled_model(), "unet")
    cases = [random_inputs(on_cpu.inputs, {**SIZES, "height": height}) for height in (8, 16, 24)]
    expected = [on_cpu(inputs)["out_sample"] for inputs in cases]
    for order in ([0, 0, 0, 1, 1, 1], [0, 1, 0, 1], [2, 2, 2, 0, 2, 1, 1, 1, 0, 0, 0]):
        for number in order:
            assert relative(on_gpu(cases[number])["out_sample"], expected[number]) < TF32


def test_half_precision(odd_half_export: Path) -> None:
    for network in ("text_encoder", "unet"):
        on_gpu, on_cpu = pair(odd_half_export, network)
        inputs = random_inputs(on_cpu.inputs, {**SIZES, "height": 12, "width": 20})
        expected = on_cpu(inputs)
        for _ in range(3):
            for name, values in on_gpu(inputs).items():
                assert values.dtype == expected[name].dtype
                assert relative(values.astype(np.float32), expected[name].astype(np.float32)) < FLOAT16
        assert not uncaptured(on_gpu)


@pytest.fixture(scope="module")
def odd_half_export() -> Path:
    import checkpoints

    checkpoint = checkpoints.make_checkpoint(checkpoints.LINEAR)
    return checkpoints.export_checkpoint(checkpoint, targets=("onnxruntime-cuda",), dtype="fp16", validate=False)  # type: ignore[no-any-return]


def picture(device: str, **options: Any) -> Array:
    with DiffusionPipeline.from_pretrained(bundled_model(), device=device, **options) as pipeline:
        pipeline.set_progress_bar_config(disable=True)
        found: Array = pipeline(**PROMPT, output_type="np").images
        return found


def test_the_picture_is_the_cpus() -> None:
    assert np.abs(picture("cuda") - picture("cpu")).mean() < 1e-2


def test_a_pipeline_moves_there_and_back() -> None:
    with DiffusionPipeline.from_pretrained(bundled_model()) as pipeline:
        pipeline.set_progress_bar_config(disable=True)
        before = pipeline(**PROMPT, output_type="np").images
        assert np.abs(pipeline.to("cuda:0")(**PROMPT, output_type="np").images - before).mean() < 1e-2
        np.testing.assert_array_equal(pipeline.to("cpu")(**PROMPT, output_type="np").images, before)


def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"device 'cuda:99' is not usable: .*99"):
        open_network(bundled_model() / "unet" / "model.onnx", device="cuda:99")


def test_used_up_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    open_limited: Callable[..., Any] = backend_module("onnxruntime").open_network
    limit = str(512 * 2**20)
    decoder = open_limited(
        bundled_model() / "vae_decoder" / "model.onnxruntime-cuda.onnx",
        device="cuda",
        provider_options={"gpu_mem_limit": limit},
    )
    large = random_inputs(decoder.inputs, {**SIZES, "batch": 4, "latent_height": 256, "latent_width": 256})
    small = random_inputs(decoder.inputs, SIZES)
    expected = decoder(small)["sample"]
    for _ in range(2):
        with pytest.raises(MemoryError, match=r"vae_decoder: the memory of cuda is used up, on latent_sample \(4, "):
            decoder(large)
        for _ in range(3):
            assert relative(decoder(small)["sample"], expected) < TF32


@pytest.mark.parametrize("backend", ["onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx"])
def test_tensorrt_within_onnx_runtime(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path))
    if reason := missing(backend):
        pytest.skip(reason)
    on_gpu, on_cpu = pair(bundled_model(), "unet", backend)
    for height in (16, 24, 16):
        inputs = random_inputs(on_cpu.inputs, {**SIZES, "height": height})
        for _ in range(3):
            assert relative(on_gpu(inputs)["out_sample"], on_cpu(inputs)["out_sample"]) < TF32
    on_gpu.close()
    assert any((tmp_path / backend).rglob("*.*")), "nothing was kept for the next time"
