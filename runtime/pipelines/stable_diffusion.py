"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022, arXiv:2112.10752): text to image, image to image, inpainting."""

from collections.abc import Sequence
from typing import Any

from ..backends import Array
from ..image_input import ImageInput, ResizeMode, blur
from ..random import Generator
from .arguments import documented
from .call import Call, OutputType, StepCallback
from .image_to_image import start_from_image
from .inpainting import Inpainting, check_inpainting, start_from_mask
from .prompts import Prompt, Prompts
from .safety_checked import SafetyCheckedPipeline
from .text_to_image import start_from_noise


class StableDiffusionPipeline(SafetyCheckedPipeline):
    """Text to image: `pipeline("a cat", num_inference_steps=25, seed=0).images[0]`."""

    @documented
    def __call__(
        self,
        prompt: Prompt | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: Prompt | None = None,
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
        """Makes pictures from prompts."""
        arguments = locals()
        call = Call.of(arguments)
        self._check_callback(call.callback_on_step_end_tensor_inputs)
        height, width = self._size(height, width, latents)
        predict = self._guidance(Prompts.of(arguments), guidance_scale, guidance_rescale)
        call.stopwatch.stage("text")
        return self._made(predict, start_from_noise(self, call, predict.batch, height, width, latents), call)


class StableDiffusionImg2ImgPipeline(SafetyCheckedPipeline):
    """Image to image: `pipeline("a cat", image, strength=0.6, seed=0).images[0]`."""

    @documented
    def __call__(
        self,
        prompt: Prompt | None = None,
        image: ImageInput | None = None,
        strength: float = 0.8,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: Prompt | None = None,
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
        """Makes pictures from prompts and pictures."""
        arguments = locals()
        call = Call.of(arguments)
        self._check_callback(call.callback_on_step_end_tensor_inputs)
        predict = self._guidance(Prompts.of(arguments), guidance_scale)
        call.stopwatch.stage("text")
        start = start_from_image(self, call, predict.batch, image, strength)
        call.stopwatch.stage("image")
        return self._made(predict, start, call)


class mask_processor:  # noqa: N801  # diffusers' name of an object of which this is what users call
    """What masks are prepared with: `pipeline.mask_processor.blur(mask, blur_factor=33)`."""

    blur = staticmethod(blur)


class StableDiffusionInpaintPipeline(SafetyCheckedPipeline):
    """Inpainting: `pipeline("a cat", image, mask_image, seed=0).images[0]`; what is white in the mask is made anew."""

    mask_processor = mask_processor

    @documented
    def __call__(
        self,
        prompt: Prompt | None = None,
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
        negative_prompt: Prompt | None = None,
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
        """Makes a part of pictures anew. Image and mask are resized to `height` and `width`."""
        arguments = locals()
        call = Call.of(arguments)
        self._check_callback(call.callback_on_step_end_tensor_inputs)
        height, width = self._size(height, width)
        crop = check_inpainting(image, mask_image, (height, width), padding_mask_crop, call)
        predict = self._guidance(Prompts.of(arguments), guidance_scale)
        call.stopwatch.stage("text")
        inpainting = Inpainting(
            image=image,
            mask_image=mask_image,
            masked_image_latents=masked_image_latents,
            height=height,
            width=width,
            crop=crop,
            resize_mode=resize_mode,
            strength=strength,
            latents=latents,
        )
        start = start_from_mask(self, call, predict.batch, inpainting)
        call.stopwatch.stage("image")
        return self._made(predict, start, call, inpainting.overlaid)
