"""Cached pipelines against diffusers' on the same checkpoint, whose UNet follows the same rule; and a planted fault."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from deep_cached import deep_cached
from pairs import LATENTS_TOLERANCE, PROMPT, Pair, call_both, open_pair, photograph, relative, use_scheduler

from safelight.runtime import StableDiffusionPipeline, bundled_model
from safelight.runtime.fidelity import FidelityError, Proof, check
from safelight.runtime.manifest import file_record, read_manifest
from safelight.runtime.model_folder import open_model_folder

# diffusers' own, in set_timesteps of Euler with NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CALL: dict[str, Any] = {"prompt": PROMPT, "negative_prompt": "red apple", "output_type": "latent"}


@pytest.fixture(scope="module")
def emoji(emoji_checkpoint: Path) -> Pair:
    return open_pair("StableDiffusionPipeline", bundled_model(), emoji_checkpoint)


def cached_calls(pair: Pair, interval: int, *, branch: int = 0, **call: Any) -> tuple[np.ndarray, np.ndarray]:
    """The same call of both, cached in the same way."""
    pair[0].enable_deep_cache(interval, branch)
    with deep_cached(pair[1].unet, cache_interval=interval, branch=branch):
        return call_both(pair, **call)


@pytest.mark.parametrize("interval", [1, 2, 3, 5])
def test_text_to_image(emoji: Pair, interval: int) -> None:
    found, expected = cached_calls(emoji, interval, **CALL, num_inference_steps=7)
    assert relative(found, expected) < LATENTS_TOLERANCE
    emoji[0].disable_deep_cache()
    plain = np.asarray(emoji[0](**CALL, num_inference_steps=7, seed=0).images)
    assert (relative(found, plain) < LATENTS_TOLERANCE) == (interval == 1)


@pytest.mark.parametrize("scheduler", ["HeunDiscreteScheduler", "PNDMScheduler"])
def test_schedulers_that_call_the_unet_more_than_once_a_step(emoji: Pair, scheduler: str) -> None:
    before = [pipeline.scheduler for pipeline in emoji]
    use_scheduler(emoji, scheduler)
    found, expected = cached_calls(emoji, 2, **CALL, num_inference_steps=4)
    for pipeline, own in zip(emoji, before, strict=True):
        pipeline.scheduler = own
    assert relative(found, expected) < LATENTS_TOLERANCE


def test_image_to_image(emoji_checkpoint: Path) -> None:
    pair = open_pair("StableDiffusionImg2ImgPipeline", bundled_model(), emoji_checkpoint)
    images = [photograph("astronaut", (64, 64)), photograph("coffee", (64, 64))]
    call = {**CALL, "prompt": [PROMPT, "pizza"], "negative_prompt": ["", "red apple"], "image": images}
    found, expected = cached_calls(pair, 3, **call, num_inference_steps=9, strength=0.6)
    assert relative(found, expected) < LATENTS_TOLERANCE


def test_sdxl(tiny: Callable[[str], tuple[Path, Path]]) -> None:
    pair = open_pair("StableDiffusionXLPipeline", *tiny("SDXL"))
    found, expected = cached_calls(pair, 2, branch=1, **CALL, num_inference_steps=5, height=88, width=104)
    assert relative(found, expected) < LATENTS_TOLERANCE


def test_inpainting_of_nine_channels(tiny: Callable[[str], tuple[Path, Path]]) -> None:
    pair = open_pair("StableDiffusionInpaintPipeline", *tiny("SD2_INPAINTING"))
    mask = np.zeros((80, 80), np.uint8)
    mask[20:60, 30:] = 255
    image, masked = photograph("chelsea", (80, 80)), photograph("coffee", (80, 80)).convert("L")
    masked.putdata(mask.ravel().tolist())
    call = {**CALL, "image": image, "mask_image": masked, "height": 80, "width": 80}
    found, expected = cached_calls(pair, 3, **call, num_inference_steps=5)
    assert relative(found, expected) < LATENTS_TOLERANCE


def test_instruct_pix2pix_whose_branches_are_three(tiny: Callable[[str], tuple[Path, Path]]) -> None:
    pair = open_pair("StableDiffusionInstructPix2PixPipeline", *tiny("PIX2PIX"))
    found, expected = cached_calls(pair, 2, **CALL, image=photograph("coffee", (80, 80)), num_inference_steps=5)
    assert relative(found, expected) < LATENTS_TOLERANCE


def test_openvino_caches_as_onnxruntime_does(emoji: Pair) -> None:
    emoji[0].enable_deep_cache(2)
    with StableDiffusionPipeline.from_pretrained(bundled_model(), backend="openvino", precision="fp32") as pipeline:
        pipeline.set_progress_bar_config(disable=True)
        pipeline.enable_deep_cache(2)
        found, expected = (each(**CALL, num_inference_steps=5, seed=0).images for each in (pipeline, emoji[0]))
    assert relative(found, expected) < LATENTS_TOLERANCE


@pytest.mark.parametrize(("branch", "interval"), [(0, 2), (0, 3)])
def test_the_package_deepcache_does_the_same(emoji: Pair, branch: int, interval: int) -> None:
    helper = pytest.importorskip("DeepCache", reason="needs: pip install --no-deps DeepCache==0.1.1").DeepCacheSDHelper(
        pipe=emoji[1]
    )
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    emoji[0].enable_deep_cache(interval, branch)
    try:
        found, expected = call_both(emoji, **CALL, num_inference_steps=7)
    finally:
        helper.disable()
    assert relative(found, expected) < LATENTS_TOLERANCE


# the proof


def test_a_feature_of_another_place_is_found_by_its_numbers(tmp_path: Path) -> None:
    """The skip beside the feature has the same shape."""
    folder = Path(shutil.copytree(bundled_model(), tmp_path / "model"))
    path = folder / "unet" / "model.deep.onnx"
    model = onnx.load(path, load_external_data=False)
    (concat,) = [node for node in model.graph.node if "cached_feature" in node.input]
    skip = concat.input[1]
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [{"cached_feature": skip, skip: "cached_feature"}.get(name, name) for name in names]
    onnx.save(model, path)
    manifest = read_manifest(folder)
    assert manifest is not None
    files = {**manifest.files, "unet/model.deep.onnx": file_record(path)}
    replace(manifest, files=files, components={"unet": manifest.components["unet"]}).write(folder)
    opened = open_model_folder(folder)
    report = check(opened, Proof.read(opened), target="onnx")
    graphs = report.components["unet"].graphs
    assert graphs["deep"].relative_error < report.components["unet"].limit < graphs["shallow"].relative_error
    with pytest.raises(
        FidelityError, match=r"^unet: model\.shallow\.onnx differs from the reference: output out_sample"
    ):
        report.raise_for_failure()


def test_graphs_that_are_none_of_deepcache_are_refused_by_name(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundled_model(), tmp_path / "model"))
    manifest = read_manifest(folder)
    assert manifest is not None
    unet = manifest.components["unet"]
    for variant, sentence in (("deep", "unknown output cached_feature"), ("shallow", "unknown input cached_feature")):
        record = replace(unet, variants={**unet.variants, variant: unet.graphs})
        replace(manifest, components={"unet": record}).write(folder)
        opened = open_model_folder(folder)
        with pytest.raises(FidelityError, match=f"^unet: .*{sentence}"):
            check(opened, Proof.read(opened), target="onnx")


def test_a_proof_of_another_target_leaves_the_variants_out() -> None:
    folder = open_model_folder(bundled_model())
    report = check(folder, Proof.read(folder), target="onnxruntime-cpu")
    graphs = report.components["unet"].graphs
    assert {name for name, graph in graphs.items() if graph.not_run is None} == {
        "onnxruntime-cpu",
        "deep.onnxruntime-cpu",
        "shallow.onnxruntime-cpu",
    }
