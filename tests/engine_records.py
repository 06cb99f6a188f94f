"""Engines that are none: a few bytes with a record, for tests of what keeps and finds them."""

from pathlib import Path
from typing import Any

from safelight.runtime.engines import EngineIdentity, EngineRecord, Profile, ShapeRange
from safelight.runtime.engines.store import EngineStore
from safelight.runtime.manifest import ComponentRecord, FileRecord, Manifest, TensorRecord
from safelight.runtime.model_folder import ModelFolder

GRAPH, WEIGHTS = "a" * 64, "b" * 64

SAMPLE = ShapeRange(smallest=(1, 4, 64, 64), usual=(2, 4, 64, 64), largest=(8, 4, 64, 64))
PROFILE = Profile(label="512x512, 1 to 4 images", shapes={"sample": SAMPLE})


def identity(**changes: Any) -> EngineIdentity:
    """An engine of a UNet for one GPU."""
    fields: dict[str, Any] = {
        "flavour": "tensorrt-rtx",
        "version": "1.7.1.116",
        "gpus": ("sm89",),
        "network": "unet",
        "graph": GRAPH,
        "weights": WEIGHTS,
        "dtype": "fp16",
        "lowering": 1,
        "profiles": (PROFILE,),
        "options": {"tf32": True, "level": 3, "note": "x"},
    }
    return EngineIdentity(**{**fields, **changes})


BUILT: dict[str, Any] = {
    "inputs": [TensorRecord(name="sample", dtype="float16", shape=["batch", 4, "latent_height", "latent_width"])],
    "outputs": [TensorRecord(name="out_sample", dtype="float16", shape=["batch", 4, "latent_height", "latent_width"])],
    "refittable": ["conv_in.weight"],
    "seconds": 12.5,
    "peak_memory": 10**9,
}


def build(store: EngineStore, content: bytes = b"a plan", **changes: Any) -> EngineRecord:
    """Puts an engine into a store."""
    with store.building(identity(**changes), progress=lambda _: None) as building:
        assert building.finished is None
        building.plan.write_bytes(content)
        return building.commit(**BUILT)


def model(path: Path, *, graph: str = GRAPH, weights: str = WEIGHTS, network: str = "unet") -> ModelFolder:
    """A model folder, of which only the manifest is there."""
    component = ComponentRecord(
        class_name="UNet2DConditionModel",
        graphs={"onnx": f"{network}/model.onnx", "tensorrt": f"{network}/model.tensorrt.onnx"},
        weights=f"{network}/model.onnx_data",
        transposed=[],
        inputs=[],
        outputs=[],
    )
    files = {
        f"{network}/model.onnx": FileRecord(size=1, sha256=graph),
        f"{network}/model.tensorrt.onnx": FileRecord(size=1, sha256="c" * 64),
        f"{network}/model.onnx_data": FileRecord(size=1, sha256=weights),
    }
    manifest = Manifest(dtype="fp32", weights_dtype="fp32", components={network: component}, files=files)
    return ModelFolder(path, "StableDiffusionPipeline", {}, manifest)
