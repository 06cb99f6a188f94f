"""A machine with simulated GPUs and a simulated TensorRT, and engines of the bundled model for it."""

import gc
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from simulated_gpu import SimulatedCuda, SimulatedTensorRT, make_plan

from safelight.runtime import DiffusionPipeline, bundled_model
from safelight.runtime.backends.tensorrt import cuda as cuda_layer
from safelight.runtime.backends.tensorrt.device import Device
from safelight.runtime.backends.tensorrt.network import TensorRTNetwork
from safelight.runtime.engines import EngineIdentity, EngineRecord, Profile, ShapeRange
from safelight.runtime.engines.store import EngineStore
from safelight.runtime.model_folder import ModelFolder, open_model_folder
from safelight.runtime.networks import Engine

NETWORKS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
#: free dimension -> smallest, usual and largest, in a bucket
Bucket = Mapping[str, tuple[int, int, int]]
ACTIVATIONS = 10_000  # bytes, of a bucket


def bucket(smallest: int, largest: int, images: int = 2) -> Bucket:
    """The shapes of pictures of so many pixels a side; the bundled model's latents are a fourth of that."""
    pixels, latents = (smallest, largest, largest), (smallest // 4, largest // 4, largest // 4)
    return {
        "batch": (1, 2, 2 * images),
        "sequence_length": (5, 32, 32),
        "pixels": pixels,
        "latents": latents,
    }


OWN = bucket(20, 64)


@dataclass
class Machine:
    """A simulated machine: its GPUs, its TensorRT, and a store of engines."""

    cuda: SimulatedCuda
    library: SimulatedTensorRT
    flavour: str
    store: EngineStore
    folder: ModelFolder

    def build(
        self,
        network: str,
        buckets: Sequence[Bucket] = (OWN,),
        *,
        memory: Sequence[int] | None = None,
        target: str = "onnxruntime-cpu",
        folder: ModelFolder | None = None,
        stripped: bool = False,
        refittable: Sequence[str] | None = None,
        gpu: str = "sm90",
        **changes: Any,
    ) -> EngineRecord:
        """Puts an engine of a network into the store."""
        folder = folder or self.folder
        assert folder.manifest is not None
        component, files = folder.manifest.components[network], folder.manifest.files
        of_latents = network != "vae_encoder"
        profiles = []
        for sizes in buckets:
            shapes = {}
            for tensor in component.inputs:
                ranges = [_range(dimension, sizes, latents=of_latents) for dimension in tensor.shape]
                smallest, usual, largest = zip(*ranges, strict=True)
                shapes[tensor.name] = ShapeRange(smallest=smallest, usual=usual, largest=largest)
            profiles.append(Profile(label=f"up to {sizes['pixels'][2]} pixels", shapes=shapes))
        identity = EngineIdentity(
            flavour=self.flavour,
            version=self.library.__version__,
            gpus=(gpu,),
            gpu_name="Simulated 0" if self.flavour == "tensorrt" else None,
            network=network,
            graph=files[component.graphs["onnx"]].sha256,
            weights=None if stripped else files[component.weights].sha256,
            dtype="fp32",
            lowering=1,
            profiles=tuple(profiles),
        )
        identity = replace(identity, **changes)
        names = list(folder.weights(network)) if stripped else []
        recorded = names if refittable is None else refittable
        plan = make_plan(
            folder.path / component.graphs.get(target, component.graphs["onnx"]),
            [profile.shapes for profile in profiles],
            memory=memory or [ACTIVATIONS] * len(profiles),
            gpu=gpu,
            stripped=names,
        )
        with self.store.building(identity, progress=pytest.fail) as building:
            building.plan.write_bytes(plan)
            return building.commit(
                inputs=component.inputs, outputs=component.outputs, refittable=recorded, seconds=1.0, peak_memory=1
            )

    def build_all(self, buckets: Sequence[Bucket] = (OWN,), **options: Any) -> None:
        """Builds engines of all networks."""
        for network in NETWORKS:
            self.build(network, buckets, **options)

    def open(self, network: str, device: str = "cuda", folder: ModelFolder | None = None) -> TensorRTNetwork:
        """Opens the engine of a network."""
        opened = Engine(self.flavour, device, self.store.folder).open(folder or self.folder, network)
        assert isinstance(opened, TensorRTNetwork)
        return opened

    def pipeline(self, device: str = "cuda") -> Any:
        """The bundled model's pipeline."""
        pipeline = DiffusionPipeline.from_pretrained(
            self.folder.path, backend=self.flavour, device=device, engines=self.store.folder
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def check_nothing_is_left(self) -> None:
        """Everything was freed."""
        if self.cuda.leaks or self.library.alive:  # which takes a moment, and is rarely needed
            gc.collect()
        assert self.cuda.leaks == []
        assert list(self.library.alive) == []
        assert Device._open == {}


def _range(dimension: int | str, sizes: Bucket, *, latents: bool) -> tuple[int, int, int]:
    if isinstance(dimension, int):
        return dimension, dimension, dimension
    if dimension in ("height", "width", "latent_height", "latent_width"):
        return sizes["latents" if latents else "pixels"]
    return sizes[dimension]


def make_machine(
    flavour: str, monkeypatch: pytest.MonkeyPatch, folder: Path, cuda: SimulatedCuda | None = None
) -> Machine:
    """A machine whose CUDA and TensorRT are simulated, until the test ends."""
    cuda = cuda or SimulatedCuda()
    library = SimulatedTensorRT(cuda, rtx=flavour == "tensorrt-rtx")
    monkeypatch.setitem(sys.modules, flavour.replace("-", "_"), library)
    monkeypatch.setattr(cuda_layer, "cudart", cuda)
    return Machine(cuda, library, flavour, EngineStore(folder / "engines"), open_model_folder(bundled_model()))
