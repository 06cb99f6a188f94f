"""Image to image with Stable Diffusion: the loop starts from a picture with noise (SDEdit, arXiv:2108.01073)."""

from collections.abc import Sequence
from typing import Any

from ..backends import Array
from ..image_input import ImageInput, preprocess_image
from ..random import Generator
from .image_start import encoded_latents, noised_start, start_late
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


class StableDiffusionImg2ImgPipeline(SafetyCheckedPipeline):
    """Image to image: `pipeline("a cat", image, strength=0.6, seed=0).images[0]`."""

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: ImageInput | None = None,
        strength: float = 0.8,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
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
        """Makes pictures from prompts and pictures. What is not said here is as in `StableDiffusionPipeline`.

        Args:
            prompt: one, or several for a batch; or `prompt_embeds` instead.
            image: a PIL image, an array (height, width, 3) in [0, 1], or several; or latents. There may be as many as
                pictures are made, or fewer, if they go into that number. Sides are rounded down to what the autoencoder
                can make.
            strength: how much of the way the noise goes, 0 to 1: of 50 steps, 0.8 takes the last 40.
            num_inference_steps: of the whole way.
            timesteps: of the whole way, for schedulers that take their own.
            sigmas: likewise.
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
            ValueError: a strength outside [0, 1] or that leaves no step, an image that cannot be used, numbers of
                prompts and images that do not fit, arguments that exclude each other.
        """
        check_call(output_type, callback_on_step_end_tensor_inputs)
        if image is None:
            raise ValueError("give an image")
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

        pixels = preprocess_image(image, factor=self.vae.factor, latent_channels=self.vae.latent_channels)
        set_timesteps(self.scheduler, num_inference_steps, timesteps, sigmas)
        own = timesteps is not None or sigmas is not None
        left = start_late(self.scheduler, strength, None if own else num_inference_steps)
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
