"""What computes in float32 whatever was asked for: by its description, because it overflows, or by name."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from safelight.export.checkpoint import descriptions, open_checkpoint
from safelight.export.component import targets
from safelight.export.folder import export_model
from safelight.export.options import ExportOptions
from safelight.runtime.backends import open_network
from safelight.runtime.manifest import Manifest
from safelight.runtime.model_folder import open_model_folder

Fails = Callable[..., str]
Tiny = Callable[[str], tuple[Path, Path]]
WEIGHTS = Path("vae", "diffusion_pytorch_model.safetensors")


@pytest.fixture
def loud(linear_checkpoint: Path, tmp_path: Path) -> Path:
    """A decoder whose first convolution gives what float16 does not hold; the norm at its end undoes most of it."""
    folder = Path(shutil.copytree(linear_checkpoint, tmp_path / "loud"))
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    tensors["decoder.conv_in.weight"] *= 2e5
    safetensors.torch.save_file(tensors, folder / WEIGHTS)
    return folder


def exported(source: Path, destination: Path, *components: str, **options: object) -> tuple[Manifest, list[str]]:
    lines: list[str] = []
    checkpoint = open_checkpoint(source, components=components)
    chosen = ExportOptions(dtype="fp16", targets=(), validate=False, **options)
    return export_model(checkpoint, destination, chosen, processes=False, progress=lines.append), lines


def test_a_decoder_that_overflows_computes_in_single(loud: Path, linear_checkpoint: Path, tmp_path: Path) -> None:
    manifest, lines = exported(loud, tmp_path / "out", "vae_decoder")
    assert "vae_decoder: fp16 ends before its numbers do: it computes in fp32" in lines
    record = manifest.components["vae_decoder"]
    assert (manifest.dtype, record.dtype) == ("fp16", "fp32")
    assert {tensor.dtype for tensor in (*record.inputs, *record.outputs)} == {"float32"}
    stored = safetensors.torch.load_file(tmp_path / "out" / record.weights)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    network = open_network(open_model_folder(tmp_path / "out").graph("vae_decoder"))
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)
    assert np.isfinite(network({"latent_sample": latents})["sample"]).all()
    network.close()

    quiet, lines = exported(linear_checkpoint, tmp_path / "quiet", "vae_decoder")
    assert quiet.components["vae_decoder"].dtype == "fp16"
    assert not any("fp32" in line for line in lines)


def test_a_weight_that_float16_does_not_hold_is_refused(loud: Path, tmp_path: Path) -> None:
    tensors = safetensors.torch.load_file(loud / WEIGHTS)
    tensors["decoder.conv_in.weight"] *= 1e3
    safetensors.torch.save_file(tensors, loud / WEIGHTS)
    with pytest.raises(
        ValueError,
        match=r"^decoder\.conv_in\.weight has a weight of \S+, and torch\.float16 ends at 6\.55e\+04: store it wider, "
        "--weights-dtype fp32 or bf16$",
    ):
        exported(loud, tmp_path / "out", "vae_decoder")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "wide"), [("SDXL", True), ("SD2", False)])
def test_sdxls_autoencoder_is_wide_by_its_description(tiny: Tiny, name: str, wide: bool) -> None:
    checkpoint = open_checkpoint(tiny(name)[1])
    found = {d.name: d.full_precision for c in checkpoint.components for d in descriptions(c, checkpoint.index)}
    assert {network for network, is_wide in found.items() if is_wide} == (
        {"vae_encoder", "vae_decoder"} if wide else set()
    )


def test_an_autoencoder_that_was_mended_for_float16_is_not(tiny: Tiny, tmp_path: Path) -> None:
    """As madebyollin/sdxl-vae-fp16-fix says of itself."""
    folder = Path(shutil.copytree(tiny("SDXL")[1], tmp_path / "mended"))
    config = folder / "vae" / "config.json"
    config.write_text(config.read_text().replace('"force_upcast": true', '"force_upcast": false'))
    assert '"force_upcast": false' in config.read_text()
    checkpoint = open_checkpoint(folder, components=["vae"])
    (vae,) = checkpoint.components
    assert not any(description.full_precision for description in descriptions(vae, checkpoint.index))


def test_a_network_computes_in_single_when_asked(linear_checkpoint: Path, tmp_path: Path) -> None:
    manifest, _ = exported(linear_checkpoint, tmp_path / "out", "text_encoder", full_precision=("text_encoder",))
    assert manifest.components["text_encoder"].dtype == "fp32"
    assert {tensor.dtype for tensor in manifest.components["text_encoder"].outputs} == {"float32"}


def test_unknown_names_and_targets_are_refused(fails: Fails, linear_checkpoint: Path, tmp_path: Path) -> None:
    options = ["--full-precision", "vae", "--no-validate"]
    assert fails(linear_checkpoint, tmp_path / "out", *options) == (
        "--full-precision: there is no network vae; there are text_encoder, unet, vae_encoder, vae_decoder"
    )
    assert fails(linear_checkpoint, tmp_path / "out", "--targets", "onnx,tensorrt").startswith(
        "unknown target onnx; known: onnxruntime-cpu, "
    )


def test_targets_are_those_that_take_the_dtype() -> None:
    assert targets(ExportOptions(), "fp32") == ["onnxruntime-cpu", "onnxruntime-cuda", "openvino", "tensorrt"]
    assert targets(ExportOptions(dtype="bf16"), "bf16") == ["openvino", "tensorrt"]
    assert targets(ExportOptions(targets=("tensorrt", "onnxruntime-cpu")), "fp16") == ["tensorrt", "onnxruntime-cpu"]
