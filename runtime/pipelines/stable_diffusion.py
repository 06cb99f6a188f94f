"""Text to image with Stable Diffusion (Rombach et al. 2022, arXiv:2112.10752)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backends import Array
from ..latents import initial_latents
from ..random import Generator
from .safety_checked import SafetyCheckedPipeline
from .text_guided import (
    Loop,
    OutputType,
    StepCallback,
    Stopwatch,
    check_call,
    finished,
    noise_sources,
    set_timesteps,
)


class StableDiffusionPipeline(SafetyCheckedPipeline):
    """Text to image: `pipeline("a cat", num_inference_steps=25, seed=0).images[0]`."""

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generator | Sequence[Generator] | None = None,
        latents: Array | None = None,
        prompt_embeds: Array | None = None,
        negative_prompt_embeds: Array | None = None,
        *,
        seed: int | Sequence[int] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Makes pictures from prompts.

        Args:
            prompt: one, or several for a batch; or `prompt_embeds` instead.
            height: of the image in pixels, a multiple of the autoencoder's factor; the model's own when None.
            width: likewise.
            num_inference_steps: how many times the noise is lowered; PNDM calls the model once more.
            timesteps: for schedulers that take their own, instead of `num_inference_steps`.
            sigmas: likewise.
            guidance_scale: how far past the negative prompt's prediction to go; 1 and below is no guidance.
            negative_prompt: what to move away from; empty when None.
            num_images_per_prompt: each with its own noise.
            eta: of DDIM (arXiv:2010.02502, equation 16): 0 is deterministic, 1 is DDPM.
            generator: where noise comes from; one for the batch, or one per image.
            latents: the starting noise, (batch, channels, height / factor, width / factor), unit variance.
            prompt_embeds: (batch, length, width), instead of `prompt`.
            negative_prompt_embeds: the same shape, instead of `negative_prompt`.
            seed: short for `generator=Generator(seed)`; a list gives one per image. None chooses one.
            output_type: "pil" images, "np" (batch, height, width, 3) float32 in [0, 1], or "latent".
            return_dict: a `StableDiffusionPipelineOutput` when true, else the tuple of its first two fields.
            guidance_rescale: phi of arXiv:2305.08891, section 3.4.
            clip_skip: how many of the text encoder's last layers to leave out for the prompt; the negative prompt keeps
                them all, as in diffusers.
            callback_on_step_end: called after each step with (pipeline, step, timestep, tensors); the tensors of the
                mapping that it returns replace those of the loop.
            callback_on_step_end_tensor_inputs: which tensors it is given: "latents", "prompt_embeds".

        Raises:
            TypeError: a prompt that is no string, a size that is no integer.
            ValueError: a size that the autoencoder cannot make, arrays of the wrong shape, arguments that exclude
                each other or do not fit together.
        """
        check_call(output_type, callback_on_step_end_tensor_inputs)
        height, width = self._size(height, width, latents)
        stopwatch = Stopwatch()
        predict = self._guidance(
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            num_images_per_prompt=num_images_per_prompt,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            clip_skip=clip_skip,
        )
        stopwatch.stage("text")

        set_timesteps(self.scheduler, num_inference_steps, timesteps, sigmas)
        noise_source = noise_sources(generator, seed, predict.batch)
        channels = int(self.unet.config["in_channels"])
        shape = (predict.batch, channels, height // self.vae.factor, width // self.vae.factor)
        noise = initial_latents(shape, noise_source, latents) * np.float32(self.scheduler.init_noise_sigma)
        loop = Loop(
            timesteps=self.scheduler.timesteps.tolist(),
            generator=noise_source,
            eta=eta,
            callback=callback_on_step_end,
            callback_tensors=callback_on_step_end_tensor_inputs,
        )
        denoised = self._denoised(predict, noise, loop)
        stopwatch.stage("denoise")

        images, nsfw = self._decoded(denoised, output_type)
        return finished(images, nsfw, stopwatch, return_dict)
