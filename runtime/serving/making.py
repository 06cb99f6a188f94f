"""One picture of a request: from the pipeline's arguments to the bytes of a file."""

import functools
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..image import encode_png, to_pil, to_unit_interval
from ..image_input import apply_overlay, resize_image
from ..pipelines import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image
from ..pipelines.text_guided import TextGuidedPipeline
from ..schedulers import Scheduler, scheduler_class
from .image_request import ImageRequest

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..backends import Array

#: what a picture that was changed is, in IPTC's terms
_COMPOSITE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
_QUALITY = 90  # of JPEG and WebP where a request does not say


class Steps:
    """Stands in for a pipeline's progress bar: knows how many steps there are, and how many are done."""

    def __init__(self, on_step: Callable[[int, int], None]) -> None:
        """Counts.

        Args:
            on_step: called after each step with the number of those that are done, and of all.
        """
        self.total, self.done = 0, 0
        self._on_step = on_step

    @contextmanager
    def bar(self, total: int) -> Iterator["Steps"]:
        """What a pipeline calls as its progress bar."""
        self.total, self.done = total, 0
        yield self

    def update(self) -> None:
        """One step more is done."""
        self.done += 1
        self._on_step(self.done, self.total)


class CleanLatents:
    """What a scheduler takes the latents for without their noise, as of its last step: what previews show."""

    def __init__(self, scheduler: Scheduler) -> None:
        """Watches a scheduler, which is one picture's own."""
        self.latents: Array | None = None  # None where the scheduler does not say
        step = scheduler.step

        @functools.wraps(step)
        def watched(*arguments: Any, **options: Any) -> Any:
            output = step(*arguments, **options)
            self.latents = getattr(output, "pred_original_sample", None)
            return output

        scheduler.step = watched  # type: ignore[method-assign]


def pipeline_for(request: ImageRequest, base: TextGuidedPipeline) -> Any:
    """A pipeline for one picture, with the networks of another and a scheduler of its own."""
    auto: Any = AutoPipelineForText2Image
    if request.image is not None:
        auto = AutoPipelineForImage2Image if request.mask is None else AutoPipelineForInpainting
    own = base.scheduler
    kind = type(own) if request.scheduler is None else scheduler_class(request.scheduler)
    return auto.from_pipe(base, scheduler=kind.from_config(own.config))


def arguments_of(request: ImageRequest, index: int) -> dict[str, Any]:
    """The pipeline's arguments for one of a request's pictures."""
    found: dict[str, Any] = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "seed": request.seed + index,
    }
    size = {"height": request.height, "width": request.width}
    if request.image is None:
        return found | size
    found |= {"image": resize_image(_picture(request.image), **size), "strength": request.strength}
    if request.mask is not None:
        found |= {"mask_image": resize_image(_picture(request.mask), **size), **size}
    return found


def finished(picture: "Image", request: ImageRequest) -> "Image":
    """The picture as it is given back: where a mask keeps the original, that is the original to the pixel.

    The autoencoder changes what goes through it; see `VaeImageProcessor.apply_overlay` of diffusers.
    """
    if request.image is None or request.mask is None:
        return picture
    size = {"height": request.height, "width": request.width}
    original, mask = (resize_image(_picture(array), **size) for array in (request.image, request.mask))
    return apply_overlay(mask, original, picture)


def preview_steps(total: int, count: int) -> list[int]:
    """After which steps, from 1 on, a picture is shown before it is done: evenly spaced, none twice, not the last."""
    return sorted({round(total * (number + 1) / (count + 1)) for number in range(count)} - {0, total})


def previewed(pipeline: Any, latents: "Array") -> "Image":
    """The picture of latents that are not done."""
    return to_pil(to_unit_interval(pipeline.vae.decode(pipeline.vae.unscale(latents))))[0]


def parameters_of(request: ImageRequest, index: int, *, model: str, scheduler: str) -> dict[str, Any]:
    """What one of a request's pictures is made with, as its PNG says it."""
    found: dict[str, Any] = {
        "model": model,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "height": request.height,
        "width": request.width,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "seed": request.seed + index,
        "scheduler": scheduler,
        "strength": request.strength,
    }
    return {name: value for name, value in found.items() if value is not None}


def encoded(picture: "Image", request: ImageRequest, parameters: dict[str, Any] | None = None) -> bytes:
    """A file of the request's format; a PNG carries the parameters, if there are any."""
    file = io.BytesIO()
    if request.output_format != "png":
        quality = _QUALITY if request.output_compression is None else request.output_compression
        picture.save(file, format=request.output_format, quality=quality)
    elif parameters is None:
        picture.save(file, format="png")
    elif request.image is None:
        return encode_png(picture, parameters)
    else:
        return encode_png(picture, parameters, digital_source_type=_COMPOSITE)
    return file.getvalue()


def cut_off(request: ImageRequest, pipeline: TextGuidedPipeline) -> list[str]:
    """Warnings of prompts that are longer than the text encoders take; none of their words."""
    found = []
    tokenizers = [encoder.tokenizer for encoder in pipeline.prompt_encoders]
    for name, prompt in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        if prompt and not pipeline.long_prompts:
            most = min(tokenizer.model_max_length for tokenizer in tokenizers) - 2
            count = max(len(tokenizer.token_ids(prompt)) for tokenizer in tokenizers)
            if count > most:
                found.append(f"{name} has {count} tokens, of which the model takes {most}: the rest was cut off")
    return found


def prompt_tokens(request: ImageRequest, pipeline: TextGuidedPipeline) -> int:
    """The tokens of a prompt that count."""
    tokenizer = pipeline.prompt_encoders[0].tokenizer
    return min(len(tokenizer.token_ids(request.prompt)), tokenizer.model_max_length - 2)


def _picture(array: "Array") -> "Image":
    from PIL import Image

    return Image.fromarray(array)
