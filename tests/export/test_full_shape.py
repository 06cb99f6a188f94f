"""Networks at their published shapes, random weights: exported, and equal to the reference and to diffusers' own.

`make test-full`. With SAFELIGHT_RECORD=FILE the numbers are written there (benchmarks/results/full-shape.json).
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pairs import photograph, relative
from recorded import record

from safelight.export.checkpoint import open_checkpoint
from safelight.export.folder import export_model
from safelight.export.options import ExportOptions
from safelight.runtime import DDPMPipeline, UNet2DModel
from safelight.runtime.backends import open_network
from safelight.runtime.model_folder import open_model_folder

pytestmark = pytest.mark.full_shape

#: google/ddpm-cat-256
DDPM_256: dict[str, Any] = {
    "sample_size": 256,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
    "layers_per_block": 2,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "attention_head_dim": None,
    "norm_eps": 1e-6,
}
LIMIT = 1e-4  # relative, float32


def test_ddpm_256(tmp_path: Path) -> None:
    from diffusers import DDPMPipeline as Theirs
    from diffusers import DDPMScheduler
    from diffusers import UNet2DModel as TheirUNet

    torch.manual_seed(0)
    theirs = TheirUNet(**DDPM_256).eval()
    parameters = sum(parameter.numel() for parameter in theirs.parameters())
    Theirs(unet=theirs, scheduler=DDPMScheduler()).save_pretrained(tmp_path / "checkpoint")
    started = time.perf_counter()
    manifest = export_model(open_checkpoint(tmp_path / "checkpoint"), tmp_path / "model", ExportOptions())
    seconds = time.perf_counter() - started
    fidelity = manifest.components["unet"].fidelity
    assert fidelity is not None

    model = UNet2DModel.from_pretrained(tmp_path / "model")
    sample = np.random.default_rng(0).standard_normal((1, 3, 256, 256), dtype=np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(sample), 421).sample.numpy()
    error = relative(model(sample, 421).sample, expected)
    assert parameters == 113_673_219
    assert error < LIMIT
    picture = DDPMPipeline.from_pretrained(tmp_path / "model")(num_inference_steps=2, seed=0).images[0]
    assert picture.size == (256, 256)
    record("google/ddpm-cat-256", parameters=parameters, relative_error=error, export_seconds=round(seconds))


def test_dpt_large(tmp_path: Path) -> None:
    from transformers import DPTConfig, DPTForDepthEstimation

    config = DPTConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        image_size=384,
        patch_size=16,
        backbone_out_indices=[5, 11, 17, 23],
        neck_hidden_sizes=[256, 512, 1024, 1024],
        fusion_hidden_size=256,
    )
    torch.manual_seed(0)
    theirs = DPTForDepthEstimation(config).eval()
    parameters = sum(parameter.numel() for parameter in theirs.parameters())
    folder = tmp_path / "checkpoint"
    theirs.save_pretrained(folder / "depth_estimator")
    index = {
        "_class_name": "StableDiffusionDepth2ImgPipeline",
        "depth_estimator": ["transformers", "DPTForDepthEstimation"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    started = time.perf_counter()
    export_model(open_checkpoint(folder), tmp_path / "model", ExportOptions())
    seconds = time.perf_counter() - started
    network = open_network(open_model_folder(tmp_path / "model").graph("depth_estimator"))
    pixels = np.random.default_rng(0).standard_normal((1, 3, 384, 384), dtype=np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(pixels)).predicted_depth.numpy()
    error = relative(network({"pixel_values": pixels})["predicted_depth"], expected)
    assert error < LIMIT
    record("Intel/dpt-large", parameters=parameters, relative_error=error, export_seconds=round(seconds))


def test_safety_checker(tmp_path: Path) -> None:
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    vision = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "patch_size": 14,
    }
    torch.manual_seed(0)
    theirs = StableDiffusionSafetyChecker(CLIPConfig(projection_dim=768, vision_config=vision)).eval()
    parameters = sum(parameter.numel() for parameter in theirs.parameters())
    processor = CLIPImageProcessor()
    pixels = processor(
        [photograph(name) for name in ("astronaut", "coffee", "chelsea")], return_tensors="pt"
    ).pixel_values
    with torch.no_grad():
        for parameter in theirs.vision_model.parameters():
            if parameter.ndim > 1:  # which transformers leaves so small that all pictures look alike
                parameter.normal_(std=parameter[0].numel() ** -0.5)
        embeds = torch.nn.functional.normalize(theirs.visual_projection(theirs.vision_model(pixels).pooler_output))
        theirs.concept_embeds.normal_()[0] = (embeds - embeds.mean(dim=0))[1]  # what tells the second picture apart
        theirs.special_care_embeds.normal_()
        cosines = torch.nn.functional.cosine_similarity(embeds[:, None], theirs.concept_embeds[None], dim=-1)
        theirs.concept_embeds_weights[0] = cosines[:, 0].topk(2).values.mean()
    folder = tmp_path / "checkpoint"
    theirs.save_pretrained(folder / "safety_checker")
    processor.save_pretrained(folder / "feature_extractor")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    started = time.perf_counter()
    export_model(open_checkpoint(folder), tmp_path / "model", ExportOptions())
    seconds = time.perf_counter() - started
    with torch.no_grad():
        expected = (cosines - theirs.concept_embeds_weights).numpy()
        _, found = theirs(pixels, np.ones((3, 8, 8, 3)))
    network = open_network(open_model_folder(tmp_path / "model").graph("safety_checker", "onnxruntime-cpu"))
    result = network({"clip_input": pixels.numpy()})
    error = relative(result["concept_scores"], expected)
    assert found == [False, True, False]
    assert result["has_nsfw_concepts"].tolist() == found
    assert error < LIMIT
    record(
        "CompVis/stable-diffusion-safety-checker",
        parameters=parameters,
        relative_error=error,
        export_seconds=round(seconds),
    )
