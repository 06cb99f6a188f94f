"""InstructPix2Pix (Brooks et al. 2023, arXiv:2211.09800): a picture is changed as a prompt says."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..backends import Array
from ..image_input import ImageInput, preprocess_image
from ..random import Generator
from .arguments import documented
from .call import Call, OutputType, StepCallback
from .guided_unet import GuidedUNet
from .image_to_image import repeated
from .prompts import Prompt, Prompts
from .safety_checked import SafetyCheckedPipeline
from .text_to_image import start_from_noise


@dataclass
class ImageGuidedUNet(GuidedUNet):
    """The UNet with a prompt and an image, and two scales: equation 3 of the paper.

    Its branches are with prompt and image, with the image alone, and with neither.
    """

    image_guidance_scale: float = 1.5

    @property
    def branches(self) -> int:
        """Three with guidance, one without."""
        return 3 if self.guidance_scale > 1 and self.image_guidance_scale >= 1 else 1

    @property
    def conditional(self) -> int:
        """With prompt and image."""
        return 0

    def combined(self, predictions: list[Array]) -> Array:
        """One prediction from those of the branches."""
        if len(predictions) == 1:
            return predictions[0]
        both, image, neither = predictions
        towards_prompt = np.float32(self.guidance_scale) * (both - image)
        return neither + towards_prompt + np.float32(self.image_guidance_scale) * (image - neither)


class StableDiffusionInstructPix2PixPipeline(SafetyCheckedPipeline):
    """A picture changed: `pipeline("make it snow", image, image_guidance_scale=1.5, seed=0).images[0]`."""

    @documented
    def __call__(
        self,
        prompt: Prompt | None = None,
        image: ImageInput | None = None,
        num_inference_steps: int = 100,
        guidance_scale: float = 7.5,
        image_guidance_scale: float = 1.5,
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
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Makes pictures from pictures and what is to change in them."""
        arguments = locals()
        call = Call.of(arguments)
        self._check_callback(call.callback_on_step_end_tensor_inputs)
        if image is None:
            raise ValueError("give an image")
        predict = self._image_guidance(Prompts.of(arguments), guidance_scale, image_guidance_scale)
        call.stopwatch.stage("text")
        pixels = preprocess_image(image, factor=self.vae.factor, latent_channels=self.vae.latent_channels)
        seen = pixels if pixels.shape[1] == self.vae.latent_channels else self.vae.encode(pixels).mode()
        seen = repeated(seen, predict.batch, "image")
        call.stopwatch.stage("image")

        height, width = (side * self.vae.factor for side in seen.shape[2:])
        start = start_from_noise(self, call, predict.batch, height, width, latents, image_channels=seen.shape[1])
        if predict.branches > 1:
            seen = np.concatenate([seen, seen, np.zeros_like(seen)])
        return self._made(predict, replace(start, channels=seen), call)

    def _image_guidance(self, prompts: Prompts, guidance_scale: float, image_guidance_scale: float) -> ImageGuidedUNet:
        """The UNet steered by prompts and, in the loop, by the image."""
        guided = guidance_scale > 1 and image_guidance_scale >= 1
        predict = self._guidance(prompts, guidance_scale if guided else 1.0)
        conditions = predict.conditions
        if guided:
            for name, value in conditions.items():
                negative, positive = np.split(value, 2)
                conditions[name] = np.concatenate([positive, negative, negative])
        unet, scale = predict.unet, predict.guidance_scale
        return ImageGuidedUNet(unet, conditions, scale, image_guidance_scale=image_guidance_scale)
