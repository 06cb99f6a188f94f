"""Depth to image with Stable Diffusion 2: the UNet sees how far away everything is, beside the latents."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backends import Array
from ..depth import depth_map_to_latents
from ..image_input import ImageInput, preprocess_image
from ..image_processor import DPTImageProcessor
from ..networks import DPTForDepthEstimation
from ..random import Generator
from .image_start import encoded_latents, noised_start, repeated, start_late
from .text_guided import (
    Loop,
    OutputType,
    StepCallback,
    Stopwatch,
    TextGuidedPipeline,
    check_call,
    finished,
    noise_sources,
    set_timesteps,
)


class StableDiffusionDepth2ImgPipeline(TextGuidedPipeline):
    """Depth to image: `pipeline("two tigers", image, strength=0.7, seed=0).images[0]`."""

    component_names = (*TextGuidedPipeline.component_names, "depth_estimator", "feature_extractor")

    depth_estimator: DPTForDepthEstimation
    feature_extractor: DPTImageProcessor

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: ImageInput | None = None,
        depth_map: Array | None = None,
        strength: float = 0.8,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generator | Sequence[Generator] | None = None,
        prompt_embeds: Array | None = None,
        negative_prompt_embeds: Array | None = None,
        *,
        seed: int | Sequence[int] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        clip_skip: int | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Makes pictures from prompts, pictures and their depth. What is not said here is as in image to image.

        Args:
            prompt: one, or several for a batch; or `prompt_embeds` instead.
            image: a PIL image, an array (height, width, 3) in [0, 1], or several. Sides are rounded down to what the
                autoencoder can make.
            depth_map: (images, height, width) of any size and scale, larger is nearer; estimated when None.
            strength: how much of the way the noise goes, 0 to 1.
            num_inference_steps: of the whole way.
            guidance_scale: how far past the negative prompt's prediction to go; 1 and below is no guidance.
            negative_prompt: what to move away from; empty when None.
            num_images_per_prompt: each with its own noise.
            eta: of DDIM.
            generator: where noise comes from; one for the batch, or one per image.
            prompt_embeds: (batch, length, width), instead of `prompt`.
            negative_prompt_embeds: the same shape, instead of `negative_prompt`.
            seed: short for `generator=Generator(seed)`; a list gives one per image. None chooses one.
            output_type: "pil" images, "np" (batch, height, width, 3) float32 in [0, 1], or "latent".
            return_dict: a `StableDiffusionPipelineOutput` when true, else the tuple of its first two fields.
            clip_skip: how many of the text encoder's last layers to leave out for the prompt.
            callback_on_step_end: called after each step with (pipeline, step, timestep, tensors).
            callback_on_step_end_tensor_inputs: which tensors it is given: "latents", "prompt_embeds".

        Raises:
            TypeError: a prompt or an image of another kind.
            ValueError: a strength outside [0, 1] or that leaves no step, an image or a depth map that cannot be used,
                numbers that do not fit, arguments that exclude each other, a UNet with another number of channels.
        """
        check_call(output_type, callback_on_step_end_tensor_inputs)
        if image is None:
            raise ValueError("give an image")
        latent, found = self.vae.latent_channels, int(self.unet.config["in_channels"])
        if found != latent + 1:
            raise ValueError(f"depth to image needs a UNet of {latent + 1} channels, this one has {found}")
        stopwatch = Stopwatch()
        predict = self._guidance(
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            num_images_per_prompt=num_images_per_prompt,
            guidance_scale=guidance_scale,
            clip_skip=clip_skip,
        )
        stopwatch.stage("text")

        pixels = preprocess_image(image, factor=self.vae.factor)
        if depth_map is None:
            inputs = self.feature_extractor(_eight_bits(image))
            depth_map = self.depth_estimator(inputs["pixel_values"]).predicted_depth
        height, width = (side // self.vae.factor for side in pixels.shape[2:])
        depth = depth_map_to_latents(np.asarray(depth_map, dtype=np.float32), height, width)
        predict.channels = repeated(depth, predict.batch, "depth map")
        stopwatch.stage("depth")

        set_timesteps(self.scheduler, num_inference_steps, None, None)
        left = start_late(self.scheduler, strength, num_inference_steps)
        noise_source = noise_sources(generator, seed, predict.batch)
        clean = encoded_latents(self.vae, pixels, predict.batch, noise_source, before_sampling=True)
        latents, _ = noised_start(self.scheduler, clean, left[0], noise_source)
        stopwatch.stage("image")

        loop = Loop(
            timesteps=left,
            generator=noise_source,
            eta=eta,
            callback=callback_on_step_end,
            callback_tensors=callback_on_step_end_tensor_inputs,
        )
        denoised = self._denoised(predict, latents, loop)
        stopwatch.stage("denoise")

        images, nsfw = self._decoded(denoised, output_type)
        return finished(images, nsfw, stopwatch, return_dict)


def _eight_bits(image: Any) -> Any:
    """Arrays in [0, 1] in the range that the estimator's processor takes; PIL images as they are."""
    if isinstance(image, np.ndarray):
        return np.rint(image * 255)
    return [_eight_bits(one) for one in image] if isinstance(image, list | tuple) else image
