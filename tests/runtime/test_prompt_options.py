"""Weights, long prompts and textual inversion, as a pipeline's user turns them on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pairs import PROMPT, photograph
from safetensors.numpy import save_file

from safelight.runtime import AutoPipelineForImage2Image, DiffusionPipeline, StableDiffusionPipeline, bundled_model
from safelight.runtime.conditioning import PromptEncoder, encode_prompts

LONG = ", ".join(f"cat face number {index}" for index in range(20))


@pytest.fixture
def pipeline() -> StableDiffusionPipeline:
    opened = StableDiffusionPipeline.from_pretrained(bundled_model())
    opened.set_progress_bar_config(disable=True)
    return opened


def latents(pipeline: Any, prompt: Any = PROMPT, **options: Any) -> np.ndarray:
    options = {"num_inference_steps": 2, "seed": 0, "output_type": "latent", **options}
    found: np.ndarray = pipeline(prompt, **options).images
    return found


def test_they_are_off_unless_asked_for(pipeline: StableDiffusionPipeline, caplog: pytest.LogCaptureFixture) -> None:
    assert (pipeline.prompt_weights, pipeline.long_prompts) == (False, False)
    plain = latents(pipeline, "a (cat:1.5) face")
    latents(pipeline, LONG)
    assert "was cut off" in caplog.text
    pipeline.enable_prompt_weights()
    assert not np.array_equal(latents(pipeline, "a (cat:1.5) face"), plain)
    pipeline.enable_prompt_weights(False)
    np.testing.assert_array_equal(latents(pipeline, "a (cat:1.5) face"), plain)


def test_weights_of_one_change_nothing(pipeline: StableDiffusionPipeline) -> None:
    plain = latents(pipeline, "a cat face", negative_prompt="dog")
    pipeline.enable_prompt_weights()
    np.testing.assert_allclose(latents(pipeline, "a (cat:1) face", negative_prompt="(dog:1.0)"), plain, atol=1e-5)


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_long_prompts_are_seen_to_their_end(
    pipeline: StableDiffusionPipeline, caplog: pytest.LogCaptureFixture, guidance_scale: float
) -> None:
    pipeline.enable_long_prompts()
    first = latents(pipeline, LONG + ", red", guidance_scale=guidance_scale)
    second = latents(pipeline, LONG + ", blue", guidance_scale=guidance_scale)
    assert caplog.text == ""
    assert np.abs(first - second).max() > 1e-3
    short = latents(pipeline, "cat", guidance_scale=guidance_scale)
    pipeline.enable_long_prompts(False)
    np.testing.assert_allclose(latents(pipeline, "cat", guidance_scale=guidance_scale), short, atol=1e-5)


def test_negative_prompts_are_as_long(pipeline: StableDiffusionPipeline) -> None:
    pipeline.enable_long_prompts()
    one = latents(pipeline, ["cat", LONG], negative_prompt="dog")
    each = latents(pipeline, ["cat", LONG], negative_prompt=["dog", "dog"])
    np.testing.assert_allclose(one, each, atol=1e-5)
    assert latents(pipeline, "cat", negative_prompt=LONG).shape == (1, 4, 16, 16)
    with pytest.raises(ValueError, match=r"^there are 2 prompts and 3 negative prompts$"):
        latents(pipeline, ["a", "b"], negative_prompt=["a", "b", "c"])
    embeds = np.concatenate(
        [encode_prompts(PromptEncoder(pipeline.tokenizer, pipeline.text_encoder), ["cat"]).hidden] * 2, axis=1
    )
    assert latents(pipeline, None, prompt_embeds=embeds, negative_prompt="dog").shape == (1, 4, 16, 16)


def test_pipelines_of_other_tasks_have_them_too(pipeline: StableDiffusionPipeline) -> None:
    pipeline.enable_prompt_weights()
    other = AutoPipelineForImage2Image.from_pipe(pipeline)
    image = photograph("coffee", (64, 64))
    found = [latents(other, prompt, image=image) for prompt in ("a cat", "a (cat:1.6)")]
    assert not np.array_equal(*found)


def test_a_bracket_too_many_is_an_error(pipeline: StableDiffusionPipeline) -> None:
    pipeline.enable_prompt_weights()
    for prompt in ("a (cat", "a cat)", "[cat"):
        with pytest.raises(ValueError, match=r"bracket|balanced"):
            latents(pipeline, prompt)


def test_a_word_is_learned(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    width = int(pipeline.unet.config["cross_attention_dim"])
    vector = np.random.default_rng(0).standard_normal((2, width)).astype(np.float32)
    save_file({"<thing>": vector}, tmp_path / "thing.safetensors")
    before = latents(pipeline, "a <thing> on blue")
    plain = latents(pipeline, "a cat on blue")
    pipeline.load_textual_inversion(tmp_path / "thing.safetensors")
    assert np.abs(latents(pipeline, "a <thing> on blue") - before).max() > 1e-3
    np.testing.assert_array_equal(latents(pipeline, "a cat on blue"), plain)
    with pytest.raises(ValueError, match="<thing>"):
        pipeline.load_textual_inversion(tmp_path / "thing.safetensors")
    other = DiffusionPipeline.from_pretrained(bundled_model())
    other.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(latents(other, "a <thing> on blue"), before)
