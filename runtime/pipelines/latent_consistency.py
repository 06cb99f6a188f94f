"""Latent consistency models (Luo et al. 2023, arXiv:2310.04378): pictures in one to eight steps.

The UNet is told the guidance scale, so that there is one prediction a step and no negative prompt.
"""

from collections.abc import Sequence
from typing import Any

from ..backends import Array
from ..image_input import ImageInput
from ..random import Generator
from .arguments import documented
from .call import Call, OutputType, StepCallback
from .guided_unet import GuidedUNet
from .image_to_image import start_from_image
from .prompts import Prompt, Prompts
from .safety_checked import SafetyCheckedPipeline
from .text_to_image import start_from_noise


class LatentConsistencyPipeline(SafetyCheckedPipeline, abstract=True):
    """A UNet that is told the guidance scale."""

    def _told(self, prompts: Prompts, guidance_scale: float) -> GuidedUNet:
        """The UNet with prompts and scale.

        Raises:
            ValueError: it does not take the scale.
        """
        if self.unet.config["time_cond_proj_dim"] is None:
            raise ValueError(
                f"{type(self).__name__} needs a UNet that is told the guidance scale (time_cond_proj_dim); "
                "with this one use StableDiffusionPipeline and an LCMScheduler"
            )
        return self._guidance(prompts, guidance_scale)


class LatentConsistencyModelPipeline(LatentConsistencyPipeline):
    """Text to image: `pipeline("a cat", num_inference_steps=4, seed=0).images[0]`."""

    @documented
    def __call__(
        self,
        prompt: Prompt | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 4,
        original_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        guidance_scale: float = 8.5,
        num_images_per_prompt: int = 1,
        generator: Generator | Sequence[Generator] | None = None,
        latents: Array | None = None,
        prompt_embeds: Array | None = None,
        *,
        seed: int | Sequence[int] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        clip_skip: int | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Makes pictures from prompts."""
        arguments = locals()
        call = Call.of(arguments, timestep_options={"original_inference_steps": original_inference_steps})
        self._check_callback(call.callback_on_step_end_tensor_inputs)
        height, width = self._size(height, width, latents)
        predict = self._told(Prompts.of(arguments), guidance_scale)
        call.stopwatch.stage("text")
        return self._made(predict, start_from_noise(self, call, predict.batch, height, width, latents), call)


class LatentConsistencyModelImg2ImgPipeline(LatentConsistencyPipeline):
    """Image to image: `pipeline("a cat", image, strength=0.6, seed=0).images[0]`."""

    @documented
    def __call__(
        self,
        prompt: Prompt | None = None,
        image: ImageInput | None = None,
        num_inference_steps: int = 4,
        strength: float = 0.8,
        original_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        guidance_scale: float = 8.5,
        num_images_per_prompt: int = 1,
        generator: Generator | Sequence[Generator] | None = None,
        latents: Array | None = None,
        prompt_embeds: Array | None = None,
        *,
        seed: int | Sequence[int] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        clip_skip: int | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Makes pictures from prompts and pictures; strength shortens the way and leaves all the steps."""
        if not 0 < strength <= 1:
            raise ValueError(f"strength must lie between 0 and 1, got {strength}")
        arguments = locals()
        call = Call.of(
            arguments, timestep_options={"original_inference_steps": original_inference_steps, "strength": strength}
        )
        self._check_callback(call.callback_on_step_end_tensor_inputs)
        predict = self._told(Prompts.of(arguments), guidance_scale)
        call.stopwatch.stage("text")
        start = start_from_image(self, call, predict.batch, image, 1.0, latents)
        call.stopwatch.stage("image")
        return self._made(predict, start, call)
