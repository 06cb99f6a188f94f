"""LoRAs fused by the export, from file to picture, against diffusers' pipeline with the same files fused."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers
import pytest
import torch
from pairs import PROMPT, Pair, assert_same, call_both, open_pair, relative, use_scheduler
from safetensors.torch import save_file

from safelight.runtime import StableDiffusionXLPipeline, cli
from safelight.runtime.manifest import file_record, read_manifest

# diffusers' own, with NumPy 2
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

STYLE_SCALE, SUBJECT_SCALE = 0.6, 1.0
CALL: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 10, "height": 88, "width": 176}


PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}


def lora_file(
    pipeline: Any, path: Path, *layers: str, seed: int, prefixes: Mapping[str, str] = MappingProxyType(PREFIXES)
) -> Path:
    """A random LoRA as kohya's trainers write it, of rank 4 and alpha 2, for the layers whose names so end."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for component, prefix in prefixes.items():
        for name, module in getattr(pipeline, component).named_modules():
            if name.endswith(layers):
                out, *inner = module.weight.shape
                key = prefix + name.replace(".", "_")
                tensors[f"{key}.lora_down.weight"] = torch.randn(4, *inner, generator=generator) / inner[0] ** 0.5
                tensors[f"{key}.lora_up.weight"] = torch.randn(out, 4, *(1 for _ in inner[1:]), generator=generator) / 2
                tensors[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)
    return path


def fuse_into(pipeline: Any, path: Path, scale: float) -> None:
    """diffusers strips `text_model.` from a LoRA's keys unless the text encoder has it, which `open_pair` gives it."""
    object.__delattr__(pipeline.text_encoder, "text_model")
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora(lora_scale=scale)
    pipeline.unload_lora_weights()
    object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)


@pytest.fixture(scope="module")
def pair(odd_checkpoint: Path, odd_export: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, Path, Path]:
    """An export with two LoRAs and diffusers' pipeline with both fused; the export; and the folder of the LoRAs."""
    folder = tmp_path_factory.mktemp("loras")
    base = open_pair("StableDiffusionPipeline", odd_export, odd_checkpoint)[1]
    style = lora_file(base, folder / "style.safetensors", "to_q", "proj_in", "conv1", "fc1", seed=0)
    subject = lora_file(base, folder / "subject.safetensors", "to_q", "to_out.0", "v_proj", "out_proj", seed=1)
    options = ["--lora", f"{style}:{STYLE_SCALE}", "--lora", str(subject)]
    assert cli.main(["export", str(odd_checkpoint), str(folder / "model"), "--quiet", *options]) == 0
    opened = open_pair("StableDiffusionPipeline", folder / "model", odd_checkpoint)
    fuse_into(opened[1], style, STYLE_SCALE)
    fuse_into(opened[1], subject, SUBJECT_SCALE)
    use_scheduler(opened, "DDIMScheduler")
    return opened, folder / "model", folder


def test_the_picture_is_diffusers(pair: tuple[Pair, Path, Path], odd_export: Path, odd_checkpoint: Path) -> None:
    assert_same(pair[0], **CALL)
    base = open_pair("StableDiffusionPipeline", odd_export, odd_checkpoint)
    use_scheduler(base, "DDIMScheduler")
    without, _ = call_both(base, output_type="latent", **CALL)
    found, _ = call_both(pair[0], output_type="latent", **CALL)
    assert relative(found, without) > 0.05, "a LoRA that changes nothing would hide a difference"


def test_the_manifest_names_the_loras(pair: tuple[Pair, Path, Path]) -> None:
    _, model, folder = pair
    manifest = read_manifest(model)
    assert manifest is not None
    # the UNet has 7 transformers of 2 attention layers, and 11 resnets; the text encoder has 3 layers
    fused = [
        ("style.safetensors", STYLE_SCALE, {"unet": 14 + 7 + 11, "text_encoder": 3}),
        ("subject.safetensors", SUBJECT_SCALE, {"unet": 14 + 14, "text_encoder": 3 + 3}),
    ]
    assert manifest.source["loras"] == [
        {"file": name, "sha256": file_record(folder / name).sha256, "scale": scale, "fused": counts}
        for name, scale, counts in fused
    ]


def test_every_component_was_checked_against_the_fused_reference(pair: tuple[Pair, Path, Path]) -> None:
    manifest = read_manifest(pair[1])
    assert manifest is not None
    for component in manifest.components.values():
        assert component.fidelity is not None
        graphs = component.fidelity["graphs"]
        assert all(0 < graphs[target]["relative_error"] < 1e-5 for target in ("onnx", "onnxruntime-cpu"))


def test_sdxls_picture_is_diffusers(tiny: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    unfused, checkpoint = tiny("SDXL")
    theirs = diffusers.StableDiffusionXLPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    prefixes = {
        "unet": "lora_unet_",
        "text_encoder": "lora_te1_text_model_",  # transformers 5 has the first one's layers without `text_model`
        "text_encoder_2": "lora_te2_",
    }
    path = lora_file(
        theirs, tmp_path / "style.safetensors", "to_k", "proj_out", "conv2", "fc2", seed=2, prefixes=prefixes
    )
    assert cli.main(["export", str(checkpoint), str(tmp_path / "model"), "--quiet", "--lora", f"{path}:0.7"]) == 0
    theirs.load_lora_weights(path)
    theirs.fuse_lora(["unet", "text_encoder", "text_encoder_2"], lora_scale=0.7)
    theirs.unload_lora_weights()
    theirs.set_progress_bar_config(disable=True)
    ours = StableDiffusionXLPipeline.from_pretrained(tmp_path / "model")
    ours.set_progress_bar_config(disable=True)
    assert_same((ours, theirs), prompt=PROMPT, num_inference_steps=6)
    base = StableDiffusionXLPipeline.from_pretrained(unfused)
    call: dict[str, Any] = {"num_inference_steps": 2, "seed": 0, "output_type": "latent"}
    assert relative(ours(PROMPT, **call).images, base(PROMPT, **call).images) > 0.05
    manifest = read_manifest(tmp_path / "model")
    assert manifest is not None
    (record,) = manifest.source["loras"]
    assert all(record["fused"][component] > 2 for component in prefixes)
