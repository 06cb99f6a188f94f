"""Inpainting with Stable Diffusion: what the mask covers is made anew, the rest stays.

A UNet of 9 channels was trained for it: it sees the mask and the picture without what is masked (Rombach et al. 2022,
arXiv:2112.10752, section 4.5). With one of 4, what is not masked is put back after each step, as noisy as the latents
are (RePaint without its resampling, arXiv:2201.09865).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..backends import Array
from ..image_input import (
    ImageInput,
    ResizeMode,
    apply_overlay,
    blur,
    crop_region,
    preprocess_image,
    preprocess_mask,
)
from ..latents import initial_latents
from ..random import Generator, randn
from .image_start import encoded_latents, noised_start, repeated, start_late
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


class StableDiffusionInpaintPipeline(SafetyCheckedPipeline):
    """Inpainting: `pipeline("a cat", image, mask_image, seed=0).images[0]`; what is white in the mask is made anew."""

    class mask_processor:  # noqa: N801  # diffusers' name of an object of which this is what users call
        """What masks are prepared with: `pipeline.mask_processor.blur(mask, blur_factor=33)`."""

        blur = staticmethod(blur)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: ImageInput | None = None,
        mask_image: ImageInput | None = None,
        masked_image_latents: Array | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
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
        resize_mode: ResizeMode = "default",
        seed: int | Sequence[int] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        clip_skip: int | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Makes a part of pictures anew. What is not said here is as in `StableDiffusionPipeline`.

        Args:
            prompt: one, or several for a batch; or `prompt_embeds` instead.
            image: a PIL image, an array (height, width, 3) in [0, 1], or several; or latents.
            mask_image: likewise, of the image's size: white is made anew, black stays.
            masked_image_latents: (images, latent_channels, height / factor, width / factor), scaled: the image without
                what is masked, if it was encoded already.
            height: of the result in pixels; the model's own when None. Image and mask are resized to it.
            width: likewise.
            padding_mask_crop: work on the mask's surroundings alone, with so many pixels around them, and put the
                result back into the image. Image and mask must be PIL images, and so are the results.
            strength: how much of the way the noise goes, 0 to 1; below 1 the loop starts from the image with noise.
            num_inference_steps: of the whole way.
            timesteps: of the whole way, for schedulers that take their own.
            sigmas: likewise.
            guidance_scale: how far past the negative prompt's prediction to go; 1 and below is no guidance.
            negative_prompt: what to move away from; empty when None.
            num_images_per_prompt: each with its own noise.
            eta: of DDIM.
            generator: where noise comes from; one for the batch, or one per image.
            latents: the starting noise, of unit variance.
            prompt_embeds: (batch, length, width), instead of `prompt`.
            negative_prompt_embeds: the same shape, instead of `negative_prompt`.
            resize_mode: how image and mask get to height and width: "default" stretches them, "fill" fits them in and
                repeats their borders around, "crop" cuts off what is left over. `padding_mask_crop` has "fill".
            seed: short for `generator=Generator(seed)`; a list gives one per image. None chooses one.
            output_type: "pil" images, "np" (batch, height, width, 3) float32 in [0, 1], or "latent".
            return_dict: a `StableDiffusionPipelineOutput` when true, else the tuple of its first two fields.
            clip_skip: how many of the text encoder's last layers to leave out for the prompt.
            callback_on_step_end: called after each step with (pipeline, step, timestep, tensors).
            callback_on_step_end_tensor_inputs: which tensors it is given: "latents", "prompt_embeds".

        Raises:
            TypeError: a prompt, an image or a mask of another kind.
            ValueError: a strength outside [0, 1] or that leaves no step, an image or a mask that cannot be used or that
                are of different sizes, numbers of prompts and images that do not fit, arguments that exclude each
                other, a UNet with another number of channels.
        """
        check_call(output_type, callback_on_step_end_tensor_inputs)
        if image is None or mask_image is None:
            raise ValueError(f"give {'an image' if image is None else 'a mask_image'}")
        seen = self._channels_seen()
        height, width = self._size(height, width)
        crop = _crop(image, mask_image, width, height, padding_mask_crop, output_type)
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

        prepare: dict[str, Any] = {"resize_mode": resize_mode if crop is None else "fill", "crops_coords": crop}
        pixels = preprocess_image(
            image, height, width, factor=self.vae.factor, latent_channels=self.vae.latent_channels, **prepare
        )
        mask = preprocess_mask(mask_image, height, width, factor=self.vae.factor, **prepare)
        set_timesteps(self.scheduler, num_inference_steps, timesteps, sigmas)
        own = timesteps is not None or sigmas is not None
        left = start_late(self.scheduler, strength, None if own else num_inference_steps)
        source = noise_sources(generator, seed, predict.batch)
        shape = (predict.batch, self.vae.latent_channels, height // self.vae.factor, width // self.vae.factor)

        # noise is drawn in diffusers' order: the image's latents, the start, the masked image's latents
        clean = None
        if not seen or (latents is None and strength < 1):
            clean = encoded_latents(self.vae, pixels, predict.batch, source)
        if latents is None and strength < 1:
            assert clean is not None
            start, noise = noised_start(self.scheduler, clean, left[0], source)
        else:
            noise = initial_latents(shape, source, latents)
            start = noise * np.float32(self.scheduler.init_noise_sigma)
        small_mask = repeated(mask[:, :, :: self.vae.factor, :: self.vae.factor], predict.batch, "mask")
        if seen:
            masked = pixels * (mask < 0.5) if masked_image_latents is None else np.asarray(masked_image_latents)
            kept = encoded_latents(self.vae, masked.astype(np.float32), predict.batch, source)
            predict.channels = np.concatenate([small_mask, kept], axis=1)
        elif masked_image_latents is None and pixels.shape[1] != self.vae.latent_channels:
            count = max(len(pixels), len(mask))
            randn((count, *shape[1:]), source if isinstance(source, Generator) else source[:count])
        stopwatch.stage("image")

        loop = Loop(
            timesteps=left,
            generator=source,
            eta=eta,
            callback=callback_on_step_end,
            callback_tensors=callback_on_step_end_tensor_inputs,
            after_step=None if clean is None or seen else self._put_back(clean, noise, small_mask, left),
        )
        denoised = self._denoised(predict, start, loop)
        stopwatch.stage("denoise")

        images, nsfw = self._decoded(denoised, output_type)
        if crop is not None:
            whole: list[Any] = [mask_image, image]  # PIL, both: `_crop` has seen to that
            images = [apply_overlay(whole[0], whole[1], one, crop) for one in images]
        return finished(images, nsfw, stopwatch, return_dict)

    def _channels_seen(self) -> bool:
        """Whether the UNet sees mask and masked image.

        Raises:
            ValueError: it is neither a UNet for that, nor one that sees latents alone.
        """
        latent, found = self.vae.latent_channels, int(self.unet.config["in_channels"])
        if found not in (latent, 2 * latent + 1):
            raise ValueError(f"inpainting needs a UNet of {latent} or {2 * latent + 1} channels, this one has {found}")
        return found != latent

    def _put_back(
        self, clean: Array, noise: Array, mask: Array, timesteps: Sequence[float]
    ) -> Callable[[int, Array], Array]:
        """What is done after each step: the latents of what is not masked, as noisy as the next step has them."""

        def after_step(index: int, latents: Array) -> Array:
            kept = clean
            if index + 1 < len(timesteps):
                kept = self.scheduler.add_noise(clean, noise, np.array([timesteps[index + 1]]))
            return np.asarray((1 - mask) * kept + mask * latents)

        return after_step


def _crop(
    image: Any, mask: Any, width: int, height: int, padding: int | None, output_type: OutputType
) -> tuple[int, int, int, int] | None:
    """The part of the image to work on, (left, top, right, bottom) in its pixels; None for all of it."""
    from PIL.Image import Image

    sizes = [part.size for part in (image, mask) if isinstance(part, Image)]
    if len(set(sizes)) > 1:
        raise ValueError(f"image and mask must be of one size, got {sizes[0]} and {sizes[1]}")
    if padding is None:
        return None
    if len(sizes) < 2 or output_type != "pil":
        raise ValueError("padding_mask_crop needs image, mask_image and output_type to be PIL")
    return crop_region(mask, width, height, padding)
