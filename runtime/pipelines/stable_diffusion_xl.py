"""Stable Diffusion XL and its refiner (Podell et al. 2023, arXiv:2307.01952)."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from ..backends import Array
from ..image_input import ImageInput, ResizeMode
from ..random import Generator
from .arguments import documented
from .call import Call, OutputType, StepCallback
from .guided_unet import GuidedUNet
from .image_to_image import start_from_image
from .inpainting import Inpainting, check_inpainting, start_from_mask
from .outputs import StableDiffusionXLPipelineOutput
from .prompts import Prompt, Prompts
from .sizes import Size, Sizes
from .stable_diffusion import mask_processor
from .text_guided import Start, TextGuidedPipeline
from .text_to_image import start_from_noise


class TextGuidedXLPipeline(TextGuidedPipeline, abstract=True):
    """Two text encoders, of which a refiner has the second alone, and a UNet that is told sizes."""

    component_names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")
    optional_components = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    text_components = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
    embedding_parts = MappingProxyType({"text_encoder": "clip_l", "text_encoder_2": "clip_g"})
    penultimate = True
    zeros_for_no_prompt = True
    callback_tensors = ("latents", "prompt_embeds", "add_text_embeds", "add_time_ids")

    def _made_with_sizes(self, predict: GuidedUNet, start: Start, sizes: Sizes, call: Call, **finish: Any) -> Any:
        """What `_made` makes, of a UNet that is told the sizes of the picture that the latents become."""
        picture = (start.latents.shape[2] * self.vae.factor, start.latents.shape[3] * self.vae.factor)
        if self.unet.config["addition_embed_type"] is not None:
            told = sizes.time_ids(picture, self.time_ids, predict.batch, predict.branches)
            predict.conditions["time_ids"] = told
        return self._made(predict, start, call, **finish)

    def _output(self, images: Any, nsfw: list[bool] | None, call: Call) -> Any:  # noqa: ARG002  # there is no checker
        output = StableDiffusionXLPipelineOutput(images=images, timings=call.stopwatch.stages)
        return output if call.return_dict else (output.images,)


class StableDiffusionXLPipeline(TextGuidedXLPipeline):
    """Text to image: `pipeline("a cat", num_inference_steps=25, seed=0).images[0]`."""

    @documented
    def __call__(
        self,
        prompt: Prompt | None = None,
        prompt_2: Prompt | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        denoising_end: float | None = None,
        guidance_scale: float = 5.0,
        negative_prompt: Prompt | None = None,
        negative_prompt_2: Prompt | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generator | Sequence[Generator] | None = None,
        latents: Array | None = None,
        prompt_embeds: Array | None = None,
        negative_prompt_embeds: Array | None = None,
        pooled_prompt_embeds: Array | None = None,
        negative_pooled_prompt_embeds: Array | None = None,
        *,
        seed: int | Sequence[int] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        guidance_rescale: float = 0.0,
        original_size: Size | None = None,
        crops_coords_top_left: Size = (0, 0),
        target_size: Size | None = None,
        negative_original_size: Size | None = None,
        negative_crops_coords_top_left: Size = (0, 0),
        negative_target_size: Size | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Makes pictures from prompts."""
        arguments = locals()
        call = Call.of(arguments)
        self._check_callback(call.callback_on_step_end_tensor_inputs)
        if self.folder.index.get("requires_aesthetics_score"):
            raise ValueError(
                "this is a refiner, which goes on with what another model has begun: use "
                "StableDiffusionXLImg2ImgPipeline, with the picture or the other's latents as its image"
            )
        height, width = self._size(height, width, latents)
        predict = self._guidance(Prompts.of(arguments), guidance_scale, guidance_rescale)
        call.stopwatch.stage("text")
        start = start_from_noise(self, call, predict.batch, height, width, latents)
        return self._made_with_sizes(predict, start, Sizes.of(arguments), call)


class StableDiffusionXLImg2ImgPipeline(TextGuidedXLPipeline):
    """Image to image, and what a refiner does: `pipeline("a cat", image=image, strength=0.3, seed=0).images[0]`."""

    @documented
    def __call__(
        self,
        prompt: Prompt | None = None,
        prompt_2: Prompt | None = None,
        image: ImageInput | None = None,
        strength: float = 0.3,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        guidance_scale: float = 5.0,
        negative_prompt: Prompt | None = None,
        negative_prompt_2: Prompt | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generator | Sequence[Generator] | None = None,
        latents: Array | None = None,
        prompt_embeds: Array | None = None,
        negative_prompt_embeds: Array | None = None,
        pooled_prompt_embeds: Array | None = None,
        negative_pooled_prompt_embeds: Array | None = None,
        *,
        seed: int | Sequence[int] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        guidance_rescale: float = 0.0,
        original_size: Size | None = None,
        crops_coords_top_left: Size = (0, 0),
        target_size: Size | None = None,
        negative_original_size: Size | None = None,
        negative_crops_coords_top_left: Size = (0, 0),
        negative_target_size: Size | None = None,
        aesthetic_score: float = 6.0,
        negative_aesthetic_score: float = 2.5,
        clip_skip: int | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Makes pictures from prompts and pictures."""
        arguments = locals()
        call = Call.of(arguments)
        self._check_callback(call.callback_on_step_end_tensor_inputs)
        predict = self._guidance(Prompts.of(arguments), guidance_scale, guidance_rescale)
        call.stopwatch.stage("text")
        start = start_from_image(self, call, predict.batch, image, strength, latents)
        call.stopwatch.stage("image")
        return self._made_with_sizes(predict, start, Sizes.of(arguments), call)


class StableDiffusionXLInpaintPipeline(TextGuidedXLPipeline):
    """Inpainting: `pipeline("a cat", image=image, mask_image=mask, seed=0).images[0]`; what is white is made anew."""

    mask_processor = mask_processor

    @documented
    def __call__(
        self,
        prompt: Prompt | None = None,
        prompt_2: Prompt | None = None,
        image: ImageInput | None = None,
        mask_image: ImageInput | None = None,
        masked_image_latents: Array | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 0.9999,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: Prompt | None = None,
        negative_prompt_2: Prompt | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generator | Sequence[Generator] | None = None,
        latents: Array | None = None,
        prompt_embeds: Array | None = None,
        negative_prompt_embeds: Array | None = None,
        pooled_prompt_embeds: Array | None = None,
        negative_pooled_prompt_embeds: Array | None = None,
        *,
        resize_mode: ResizeMode = "default",
        seed: int | Sequence[int] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        guidance_rescale: float = 0.0,
        original_size: Size | None = None,
        crops_coords_top_left: Size = (0, 0),
        target_size: Size | None = None,
        negative_original_size: Size | None = None,
        negative_crops_coords_top_left: Size = (0, 0),
        negative_target_size: Size | None = None,
        aesthetic_score: float = 6.0,
        negative_aesthetic_score: float = 2.5,
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
        predict = self._guidance(Prompts.of(arguments), guidance_scale, guidance_rescale)
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
        return self._made_with_sizes(predict, start, Sizes.of(arguments), call, finish=inpainting.overlaid)
