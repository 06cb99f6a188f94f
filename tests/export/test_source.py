"""Where a checkpoint comes from: variants and shards that diffusers writes, families that are refused by name."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import safetensors.torch
import torch
import transformers

from safelight.export.checkpoint import open_checkpoint
from safelight.reference import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from safelight.reference.checkpoint import find_weights
from safelight.runtime import cli

NETWORKS = {
    "unet": (diffusers.UNet2DConditionModel, UNet2DConditionModel),
    "vae": (diffusers.AutoencoderKL, AutoencoderKL),
    "text_encoder": (transformers.CLIPTextModel, CLIPTextModel),
}


def rewritten(checkpoint: Path, target: Path, names: tuple[str, ...], **options: Any) -> Path:
    """A copy of a checkpoint with some networks written anew, in half precision, so that one sees which was read."""
    shutil.copytree(checkpoint, target, dirs_exist_ok=True)
    for name in names:
        network = NETWORKS[name][0].from_pretrained(checkpoint / name).half()
        for file in (target / name).glob("*.safetensors"):
            file.unlink()
        network.save_pretrained(target / name, **options)
    return target


def assert_halves(folder: Path, name: str, variant: str | None) -> None:
    """What the reference reads is what diffusers or transformers reads, the weights rounded to half precision."""
    theirs, ours = NETWORKS[name]
    kind = {"torch_dtype": torch.float32} if name == "text_encoder" else {}
    expected = theirs.from_pretrained(folder / name, variant=variant, **kind).float().state_dict()
    found = ours.from_pretrained(folder / name, variant=variant).state_dict()
    assert {key.removeprefix("text_model.") for key in found} == {key.removeprefix("text_model.") for key in expected}
    for key, tensor in found.items():
        own = expected[key] if key in expected else expected[key.removeprefix("text_model.")]
        assert torch.equal(tensor, own)
        assert torch.equal(tensor, tensor.half().float())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("variant", ["fp16", "non_ema", None])
def test_what_is_written_in_variants_and_shards_is_read(
    linear_checkpoint: Path, tmp_path: Path, name: str, shards: bool, variant: str | None
) -> None:
    options = {"max_shard_size": "100KB"} if shards else {}
    folder = rewritten(linear_checkpoint, tmp_path, (name,), variant=variant, **options)
    if shards:
        infix = f".{variant}" if variant else ""
        assert list((folder / name).glob(f"*.safetensors.index{infix}.json"))
        assert len(find_weights(folder / name, variant=variant)) > 1
    assert_halves(folder, name, variant)


@pytest.mark.filterwarnings("ignore:This serialization format is now deprecated:FutureWarning")
def test_the_spelling_of_variants_that_diffusers_once_had_is_read(linear_checkpoint: Path, tmp_path: Path) -> None:
    folder = rewritten(linear_checkpoint, tmp_path, ("unet",), variant="fp16", max_shard_size="100KB") / "unet"
    index = folder / "diffusion_pytorch_model.safetensors.index.fp16.json"
    contents = json.loads(index.read_text())
    for file in list(folder.glob("*.fp16-*.safetensors")):
        file.rename(folder / f"{file.stem.replace('.fp16', '')}.fp16.safetensors")
    contents["weight_map"] = {
        key: f"{Path(name).stem.replace('.fp16', '')}.fp16.safetensors" for key, name in contents["weight_map"].items()
    }
    index.unlink()
    (folder / "diffusion_pytorch_model.safetensors.fp16.index.json").write_text(json.dumps(contents))
    assert_halves(tmp_path, "unet", "fp16")


@pytest.mark.parametrize("name", NETWORKS)
def test_beside_a_single_file_shards_are_read_where_diffusers_reads_them(
    linear_checkpoint: Path, tmp_path: Path, name: str
) -> None:
    """A folder that was saved over: diffusers looks for an index first, transformers for a file."""
    folder = rewritten(linear_checkpoint, tmp_path, (name,), max_shard_size="100KB")
    single = "model" if name == "text_encoder" else "diffusion_pytorch_model"
    state = safetensors.torch.load_file(linear_checkpoint / name / f"{single}.safetensors")
    zeros = {key: torch.zeros_like(tensor).half() for key, tensor in state.items()}
    safetensors.torch.save_file(zeros, folder / name / f"{single}.safetensors", metadata={"format": "pt"})
    assert_halves(folder, name, None)


def test_networks_without_the_variant_are_read_without(
    linear_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = rewritten(linear_checkpoint, tmp_path, ("unet", "vae"), variant="fp16")
    with caplog.at_level(logging.WARNING):
        checkpoint = open_checkpoint(folder, variant="fp16")
    assert {component.name: component.variant for component in checkpoint.components} == {
        "unet": "fp16",
        "vae": "fp16",
        "text_encoder": None,
    }
    assert [record.getMessage() for record in caplog.records if record.name.startswith("safelight")] == [
        f"{folder.name}: no variant 'fp16' of text_encoder, which is read without"
    ]
    files = {name for name in checkpoint.source["files"] if name.endswith(".safetensors")}
    assert files == {
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    }
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder, variant="fp16", dtype=torch.float32)
    for component in checkpoint.components:
        network = NETWORKS[component.name][1].from_pretrained(component.path, variant=component.variant)
        expected = getattr(theirs, component.name).state_dict()
        for key, tensor in network.state_dict().items():
            assert torch.equal(tensor, expected[key] if key in expected else expected[key.removeprefix("text_model.")])


def test_a_variant_that_no_network_has_is_refused_as_diffusers_does(
    linear_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(linear_checkpoint), str(tmp_path / "out"), "--variant", "fp16"]) == 1
    assert f"{linear_checkpoint} has no weights of the variant 'fp16' in " in capsys.readouterr().err
    with pytest.raises(ValueError, match="no such modeling files are available"):
        diffusers.StableDiffusionPipeline.from_pretrained(linear_checkpoint, variant="fp16")


@pytest.mark.parametrize(
    ("class_name", "family"),
    [
        ("FluxPipeline", "FLUX"),
        ("FluxControlNetPipeline", "ControlNet"),
        ("StableDiffusion3Pipeline", "Stable Diffusion 3"),
        ("StableDiffusionControlNetPipeline", "ControlNet"),
        ("StableDiffusionXLControlNetPipeline", "ControlNet"),
        ("StableDiffusionXLAdapterPipeline", "T2I-Adapter"),
        ("PixArtAlphaPipeline", "PixArt"),
        ("PixArtSigmaPipeline", "PixArt"),
        ("StableCascadeCombinedPipeline", "Stable Cascade"),
        ("StableDiffusionUpscalePipeline", "the Stable Diffusion upscaler"),
        ("StableDiffusionLatentUpscalePipeline", "the Stable Diffusion upscaler"),
        ("StableDiffusionXLInstructPix2PixPipeline", "InstructPix2Pix of SDXL"),
        ("StableVideoDiffusionPipeline", "Stable Video Diffusion"),
        ("StableUnCLIPPipeline", "Stable unCLIP"),
        ("AnimateDiffPipeline", "AnimateDiff"),
        ("KandinskyV22Pipeline", "Kandinsky"),
        ("HunyuanDiTPipeline", "Hunyuan-DiT"),
        ("HunyuanVideoPipeline", "HunyuanVideo"),
        ("IFPipeline", "DeepFloyd IF"),
        ("IFImg2ImgSuperResolutionPipeline", "DeepFloyd IF"),
        ("QwenImagePipeline", "Qwen-Image"),
        ("WanImageToVideoPipeline", "Wan"),
    ],
)
def test_other_families_are_refused_by_name_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], class_name: str, family: str
) -> None:
    index = {"_class_name": class_name, "transformer": ["diffusers", "X"], "vae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))  # and no other file
    assert cli.main(["export", str(tmp_path), str(tmp_path / "out")]) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith(
        f"safelight: {tmp_path} holds {family} ({class_name}), which cannot be exported; known: "
    )
    assert "latent consistency models" in sentence


def test_no_pipeline_that_can_be_exported_is_refused() -> None:
    from safelight.export.families import pipeline_family
    from safelight.runtime.pipelines import DiffusionPipeline

    assert len(DiffusionPipeline.registry) > 10
    assert [name for name in DiffusionPipeline.registry if pipeline_family(name)] == []
    known = [name for name in dir(diffusers) if name.endswith("Pipeline") and pipeline_family(name)]
    assert len(known) > 100


def test_unknown_components_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    index = {"_class_name": "MyPipeline", "unet": ["diffusers", "UNet2DConditionModel"], "prior": ["mine", "PriorNet"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="component prior is a PriorNet, which cannot be exported yet; known: "):
        open_checkpoint(tmp_path)
