"""Engines of networks at their published shapes, random weights, by TensorRT for RTX, which needs no GPU.

`make test-full`. With SAFELIGHT_RECORD=FILE the numbers are written there (benchmarks/results/engines-full-shape.json).
"""

import shutil
from pathlib import Path

import pytest
from engine_graphs import FLAVOUR
from recorded import record

from safelight.benchmarks.published import SHAPES, write_checkpoint
from safelight.export.checkpoint import open_checkpoint
from safelight.export.engines.build import BuildOptions, build_engines
from safelight.export.engines.pictures import Pictures
from safelight.export.folder import export_model
from safelight.export.options import ExportOptions
from safelight.runtime.engines.store import EngineStore
from safelight.runtime.model_folder import open_model_folder
from safelight.runtime.onnx_file import read_graph

pytestmark = pytest.mark.full_shape

#: shape -> the networks that are built, and pictures of which size
CASES = {
    "small": (("text_encoder", "unet", "vae_encoder", "vae_decoder"), (512, 512)),
    "sd15": (("text_encoder", "unet", "vae_encoder", "vae_decoder"), (512, 512)),
    "sdxl-unet": (("unet",), (1024, 1024)),
}


@pytest.mark.parametrize("name", CASES)
def test_engines_in_float16(name: str, tmp_path: Path) -> None:
    networks, shape = CASES[name]
    autoencoders = tuple(network for network in networks if network.startswith("vae"))
    write_checkpoint(tmp_path / "checkpoint", SHAPES[name])
    options = ExportOptions(dtype="fp16", full_precision=autoencoders, targets=("tensorrt",), validate=False)
    export_model(open_checkpoint(tmp_path / "checkpoint"), tmp_path / "model", options)
    shutil.rmtree(tmp_path / "checkpoint")  # gigabytes
    folder, store = open_model_folder(tmp_path / "model"), EngineStore(tmp_path / "store")
    assert folder.manifest is not None
    pictures = Pictures(shapes=(shape,), images=(1, 4))
    for network in networks:
        build = BuildOptions(flavour=FLAVOUR, pictures=pictures, components=(network,), gpus=("sm89",))
        (engine,) = build_engines(folder, build, store)
        component = folder.manifest.components[network]
        weights = folder.manifest.files[component.weights].size
        record(
            f"{name}, {network}",
            dtype=engine.identity.dtype,
            gpus=list(engine.identity.gpus),
            version=engine.identity.version,
            profile=engine.identity.profiles[0].label,
            seconds=engine.seconds,
            weights_bytes=weights,
            plan_bytes=engine.plan.size,
            peak_memory=engine.peak_memory,
        )
        assert engine.identity.dtype == ("fp32" if network.startswith("vae") else "fp16")
        assert engine.plan.size > weights
        if name != "small" and network == "unet":  # of heads that TensorRT has kernels for, and no others
            assert ("", "Attention") in read_graph(folder.graph(network, "tensorrt")).operators
            assert ("", "Softmax") not in read_graph(folder.graph(network, "tensorrt")).operators
        store.remove(engine)
