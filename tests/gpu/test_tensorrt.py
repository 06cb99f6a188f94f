"""TensorRT and TensorRT for RTX on a real GPU: engines of the bundled model, built and run."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safelight.runtime import DiffusionPipeline, bundled_model
from safelight.runtime.backends import Array
from safelight.runtime.backends.tensorrt import cuda
from safelight.runtime.backends.tensorrt.network import TensorRTNetwork
from safelight.runtime.cli import main
from safelight.runtime.engines import FLAVOURS
from safelight.runtime.engines.flavours import flavour
from safelight.runtime.engines.store import EngineStore
from safelight.runtime.fidelity import psnr
from safelight.runtime.model_folder import open_model_folder
from safelight.runtime.networks import Engine

pytestmark = pytest.mark.gpu

PROMPT = "cat face on a blue background"
CLOSE = 35.0  # dB, of a picture in float16


def unusable(name: str) -> str:
    """Why a flavour cannot be tested on this machine; nothing where it can."""
    try:
        module = flavour(name).module
        capability = cuda.device_properties(0).compute_capability if cuda.device_count() else ""
    except (ImportError, cuda.CudaError) as error:
        return str(error)
    if name == "tensorrt-rtx" and capability.upper() not in module.ComputeCapability.__members__:
        return f"TensorRT-RTX builds nothing for {capability}"
    return ""


@pytest.fixture(scope="module", params=FLAVOURS)
def engines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A flavour, and a store with its engines for pictures of 64x64 and of 96x64."""
    name: str = request.param
    if reason := unusable(name):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp(name)
    build(name, folder)
    return name, folder


def build(name: str, folder: Path, *options: str) -> None:
    """Engines of the bundled model for this GPU."""
    gpu = ["--gpu", cuda.device_properties(0).compute_capability] if name == "tensorrt-rtx" else []
    shapes = ["--shape", "64x64", "--shape", "96x64", "--batch", "1-2"]
    call = ["build", str(bundled_model()), "--target", name, "--output", str(folder), *shapes, *gpu, *options]
    assert main(call) == 0


@pytest.fixture
def pipeline(engines: tuple[str, Path]) -> Iterator[Any]:
    """The bundled model on the GPU."""
    backend, folder = engines
    with DiffusionPipeline.from_pretrained(bundled_model(), backend=backend, device="cuda", engines=folder) as opened:
        opened.set_progress_bar_config(disable=True)
        yield opened


@pytest.fixture
def decoder(engines: tuple[str, Path]) -> Iterator[TensorRTNetwork]:
    """The decoder, in float32."""
    opened = open_network(*engines, "vae_decoder")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def reference() -> Any:
    """The same model on the CPU."""
    opened = DiffusionPipeline.from_pretrained(bundled_model())
    opened.set_progress_bar_config(disable=True)
    return opened


def open_network(backend: str, folder: Path, network: str) -> TensorRTNetwork:
    """The engine of a network."""
    opened = Engine(backend, "cuda", folder).open(open_model_folder(bundled_model()), network)
    assert isinstance(opened, TensorRTNetwork)
    return opened


def latents(seed: int = 0, batch: int = 1) -> dict[str, Array]:
    """Of pictures of 64x64."""
    return {"latent_sample": np.random.default_rng(seed).standard_normal((batch, 4, 16, 16), dtype=np.float32)}


def picture(pipeline: Any, width: int = 64, images: int = 1) -> list[Array]:
    """What a pipeline makes, as numbers from 0 to 255."""
    made = pipeline(
        PROMPT, num_images_per_prompt=images, width=width, height=64, seed=0, num_inference_steps=8, output_type="np"
    ).images
    return [np.asarray((image * 255).round(), np.uint8) for image in made]


def valid(engines: tuple[str, Path], report: Path) -> dict[str, Any]:
    """The report of a validation, which must succeed."""
    backend, folder = engines
    where = ["--backend", backend, "--device", "cuda", "--engines", str(folder)]
    assert main(["validate", str(bundled_model()), *where, "--json", str(report)]) == 0
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def test_within_the_limits_of_the_proof(engines: tuple[str, Path], tmp_path: Path) -> None:
    report = valid(engines, tmp_path / "report.json")
    assert report["run"] is not None
    assert all(graph["not_run"] is None for part in report["components"].values() for graph in part["graphs"].values())


def test_sizes_and_batches_in_turn(pipeline: Any, reference: Any) -> None:
    for width, images in ((64, 1), (96, 1), (64, 2), (96, 1), (64, 1)):
        found, expected = picture(pipeline, width, images), picture(reference, width, images)
        assert min(psnr(one, other) for one, other in zip(found, expected, strict=True)) > CLOSE
    with pytest.raises(ValueError, match=r"this engine was not built for .* it takes "):
        picture(pipeline, 128)


def test_graphs_give_what_plain_calls_give(decoder: TensorRTNetwork) -> None:
    plain = decoder(latents(seed=3))["sample"]
    for seed in range(6):
        decoder(latents(seed))
    (execution,) = decoder._executions.values()
    assert execution._graph is not None
    np.testing.assert_allclose(decoder(latents(seed=3))["sample"], plain, atol=1e-5)
    assert not np.array_equal(decoder(latents(seed=4))["sample"], plain)


def test_the_arena_moves_under_a_graph(decoder: TensorRTNetwork) -> None:
    expected = [decoder(latents(seed))["sample"] for seed in range(3)]
    device = decoder._device
    with device.session():
        device.arena.reserve(256 << 20, "a test")
    for seed in range(3):
        np.testing.assert_allclose(decoder(latents(seed))["sample"], expected[seed], atol=1e-5)


def test_out_of_memory_is_survived(engines: tuple[str, Path]) -> None:
    decoder = open_network(*engines, "vae_decoder")
    expected = decoder(latents())["sample"]
    held = []
    with decoder._device.session():
        size = cuda.free_memory()
        while size > 1 << 12:  # all that can be had, in ever smaller pieces
            try:
                held.append(cuda.DeviceBuffer(size, "a test"))
            except cuda.CudaOutOfMemoryError:
                size //= 2
    try:
        with pytest.raises(cuda.CudaOutOfMemoryError, match="out of"):
            decoder(latents(batch=2))
    finally:
        with decoder._device.session():
            for buffer in held:
                buffer.close()
    np.testing.assert_allclose(decoder(latents())["sample"], expected, atol=1e-5)
    decoder.close()


def test_closing_gives_memory_back(engines: tuple[str, Path]) -> None:
    free = []
    for _ in range(4):
        opened = open_network(*engines, "unet")
        sample = np.zeros((2, 4, 16, 16), np.float32)
        for _ in range(3):
            opened({"sample": sample, "timestep": np.ones(2), "encoder_hidden_states": np.zeros((2, 32, 96))})
        opened.close()
        cuda.select_device(0)
        free.append(cuda.free_memory())
    assert free[-1] >= free[1]  # the first has what CUDA itself takes


def test_an_engine_of_another_gpu(engines: tuple[str, Path], tmp_path: Path) -> None:
    backend, folder = engines
    store, other = EngineStore(folder), EngineStore(tmp_path / "engines")
    (record,) = (record for record in store.records() if record.identity.network == "vae_decoder")
    copy_engine(store, other, record, lambda plan: plan, gpus=("sm50",))
    with pytest.raises(ValueError, match=r"built for sm50.*, here is sm.*safelight build"):
        open_network(backend, other.folder, "vae_decoder")


def test_an_engine_that_tensorrt_refuses(engines: tuple[str, Path], tmp_path: Path) -> None:
    """Its record is in order, and its plan is another version's, or none."""
    backend, folder = engines
    store, other = EngineStore(folder), EngineStore(tmp_path / "engines")
    (record,) = (record for record in store.records() if record.identity.network == "vae_decoder")
    copy_engine(store, other, record, lambda plan: bytes(byte ^ 0xFF for byte in plan[:64]) + plan[64:])
    with pytest.raises(ValueError, match="vae_decoder-"):
        open_network(backend, other.folder, "vae_decoder")


def copy_engine(
    store: EngineStore, other: EngineStore, record: Any, change: Callable[[bytes], bytes], **identity: Any
) -> None:
    """Puts a changed engine into another store, as if it had been built like that."""
    with other.building(replace(record.identity, **identity), progress=pytest.fail) as building:
        building.plan.write_bytes(change(store.read_plan(record)))
        building.commit(inputs=record.inputs, outputs=record.outputs, seconds=1.0, peak_memory=1)


def test_engines_without_weights(engines: tuple[str, Path], tmp_path: Path) -> None:
    backend, whole = engines
    build(backend, tmp_path / "stripped", "--strip-weights", "--components", "text_encoder,unet")
    small = {record.identity.network: record.plan.size for record in EngineStore(tmp_path / "stripped").records()}
    large = {record.identity.network: record.plan.size for record in EngineStore(whole).records()}
    assert small["unet"] < large["unet"] / 2
    for network in small:
        with_weights = open_network(backend, whole, network)
        without = open_network(backend, tmp_path / "stripped", network)
        if network == "unet":
            given = {
                "sample": latents()["latent_sample"],
                "timestep": np.full(1, 500.0),
                "encoder_hidden_states": np.random.default_rng(1).standard_normal((1, 32, 96)),
            }
        else:
            given = {"input_ids": np.arange(32)[None]}
        expected, found = with_weights(given), without(given)
        for name in expected:
            error = np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name])
            assert error < 5e-3, (network, name)
        with_weights.close()
        without.close()


def test_a_second_gpu(engines: tuple[str, Path], reference: Any) -> None:
    if cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    if cuda.device_properties(0) != cuda.device_properties(1):
        pytest.skip("the second GPU is another one")
    backend, folder = engines
    with DiffusionPipeline.from_pretrained(bundled_model(), backend=backend, device="cuda", engines=folder) as opened:
        opened.set_progress_bar_config(disable=True)
        first = picture(opened)[0]
        assert psnr(picture(opened.to("cuda:1"))[0], first) > CLOSE
