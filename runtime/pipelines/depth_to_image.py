"""Depth to image with Stable Diffusion 2: the UNet sees how far away everything is, beside the latents."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..backends import Array
from ..depth import depth_map_to_latents
from ..image_input import ImageInput
from ..image_processor import DPTImageProcessor
from ..networks import DPTForDepthEstimation
from ..random import Generator
from .arguments import documented
from .call import Call, OutputType, StepCallback
from .image_to_image import repeated, start_from_image
from .prompts import Prompt, Prompts
from .text_guided import TextGuidedPipeline


class StableDiffusionDepth2ImgPipeline(TextGuidedPipeline):
    """Depth to image: `pipeline("two tigers", image, strength=0.7, seed=0).images[0]`."""

    component_names = (*TextGuidedPipeline.component_names, "depth_estimator", "feature_extractor")

    depth_estimator: DPTForDepthEstimation
    feature_extractor: DPTImageProcessor

    @documented
    def __call__(
        self,
        prompt: Prompt | None = None,
        image: ImageInput | None = None,
        depth_map: Array | None = None,
        strength: float = 0.8,
        num_inference_steps: int = 50,
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
        """Makes pictures from prompts, pictures and their depth; the images are no latents here."""
        arguments = locals()
        call = Call.of(arguments)
        self._check_callback(call.callback_on_step_end_tensor_inputs)
        self.check_channels("depth to image", self.vae.latent_channels + 1)
        predict = self._guidance(Prompts.of(arguments), guidance_scale)
        call.stopwatch.stage("text")
        start = start_from_image(self, call, predict.batch, image, strength)
        call.stopwatch.stage("image")
        if depth_map is None:
            inputs = self.feature_extractor(_eight_bits(image))
            depth_map = self.depth_estimator(inputs["pixel_values"]).predicted_depth
        depth = depth_map_to_latents(np.asarray(depth_map, dtype=np.float32), *start.latents.shape[2:])
        start = replace(start, channels=repeated(depth, predict.batch, "depth map"))
        call.stopwatch.stage("depth")
        return self._made(predict, start, call)


def _eight_bits(image: Any) -> Any:
    """Arrays in [0, 1] in the range that the estimator's processor takes; PIL images as they are."""
    if isinstance(image, np.ndarray):
        return np.rint(image * 255)
    return [_eight_bits(one) for one in image] if isinstance(image, list | tuple) else image
