"""What the arguments of pipelines mean, said once: `documented` puts it into the docstring of each call."""

import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

_Call = TypeVar("_Call", bound=Callable[..., Any])

ARGUMENTS: Mapping[str, str] = {
    "prompt": "one, or several for a batch; or `prompt_embeds` instead.",
    "prompt_2": "for the second text encoder; `prompt` when None.",
    "image": (
        "a PIL image, an array (height, width, 3) in [0, 1], or several; or latents. There may be as many as pictures "
        "are made, or fewer, if they go into that number. Sides are rounded down to what the autoencoder can make."
    ),
    "mask_image": "likewise, of the image's size: white is made anew, black stays.",
    "masked_image_latents": (
        "(images, latent_channels, height / factor, width / factor), scaled: the image without what is masked, if it "
        "was encoded already."
    ),
    "depth_map": "(images, height, width) of any size and scale, larger is nearer; estimated when None.",
    "height": "of the picture in pixels, a multiple of the autoencoder's factor; the model's own when None.",
    "width": "likewise.",
    "padding_mask_crop": (
        "work on the mask's surroundings alone, with so many pixels around them, and put the result back into the "
        "image. Image and mask must be PIL images, and so are the results."
    ),
    "resize_mode": (
        'how image and mask get to height and width: "default" stretches them, "fill" fits them in and repeats their '
        'borders around, "crop" cuts off what is left over. `padding_mask_crop` has "fill".'
    ),
    "strength": (
        "how much of the way the noise goes, 0 to 1: of 50 steps, 0.8 takes the last 40. Below 1 the loop starts from "
        "the image with noise."
    ),
    "num_inference_steps": "of the whole way: how many times the noise is lowered; PNDM calls the model once more.",
    "original_inference_steps": "of the schedule that the model was distilled from; the scheduler's own when None.",
    "timesteps": "of the whole way, for schedulers that take their own, instead of `num_inference_steps`.",
    "sigmas": "likewise.",
    "denoising_start": (
        "how much of the way another model has gone, between 0 and 1: the image is its latents, no noise is added, and "
        "`strength` does not count."
    ),
    "denoising_end": "where to stop for another model to go on, between 0 and 1; take the latents from here then.",
    "guidance_scale": "how far past the negative prompt's prediction to go; 1 and below is no guidance.",
    "image_guidance_scale": "how far to go towards the image; at least 1.",
    "guidance_rescale": "phi of arXiv:2305.08891, section 3.4.",
    "negative_prompt": "what to move away from; empty when None.",
    "negative_prompt_2": "for the second text encoder; `negative_prompt` when None.",
    "num_images_per_prompt": "each with its own noise.",
    "eta": "of DDIM (arXiv:2010.02502, equation 16): 0 is deterministic, 1 is DDPM.",
    "generator": "where noise comes from; one for the batch, or one per image.",
    "latents": "the starting noise, (batch, channels, height / factor, width / factor), of unit variance.",
    "prompt_embeds": "(batch, length, width), instead of `prompt`.",
    "negative_prompt_embeds": "the same shape, instead of `negative_prompt`.",
    "pooled_prompt_embeds": "(batch, projection_dim), beside `prompt_embeds`.",
    "negative_pooled_prompt_embeds": "the same shape, beside `negative_prompt_embeds`.",
    "original_size": "height and width that the UNet takes the picture's source to have had; the picture's when None.",
    "crops_coords_top_left": "where the UNet takes the picture to be cut out of its source: top and left.",
    "target_size": "height and width that the UNet is told; the picture's when None.",
    "negative_original_size": "likewise, of what to move away from; `original_size` when None.",
    "negative_crops_coords_top_left": "likewise.",
    "negative_target_size": "likewise; `target_size` when None.",
    "aesthetic_score": "1 to 10, which a refiner is told instead of the target's size.",
    "negative_aesthetic_score": "likewise, of what to move away from.",
    "seed": "short for `generator=Generator(seed)`; a list gives one per image. None chooses one.",
    "output_type": '"pil" images, "np" (batch, height, width, 3) float32 in [0, 1], or "latent".',
    "return_dict": "an output with named fields when true, else a tuple.",
    "clip_skip": (
        "how many of the text encoder's last layers to leave out for the prompt; the negative prompt keeps them all, "
        "as in diffusers."
    ),
    "callback_on_step_end": (
        "called after each step with (pipeline, step, timestep, tensors); the tensors of the mapping that it returns "
        "replace those of the loop."
    ),
    "callback_on_step_end_tensor_inputs": "which tensors it is given, of the pipeline's `callback_tensors`.",
}

_RAISES: Mapping[str, str] = {
    "TypeError": "a prompt, an image or a size of another kind.",
    "ValueError": (
        "a value that is out of range, an image, a mask or an array that cannot be used, numbers of prompts and images "
        "that do not fit, arguments that exclude each other or do not fit the model."
    ),
}


def documented(call: _Call) -> _Call:
    """The same call, whose docstring says what each of its arguments means, and what is raised.

    Args:
        call: has a docstring, and no argument that `ARGUMENTS` does not have.
    """
    names = [name for name in inspect.signature(call).parameters if name != "self"]
    sections = {"Args": {name: ARGUMENTS[name] for name in names}, "Raises": _RAISES}
    text = inspect.cleandoc(call.__doc__ or "")
    for title, entries in sections.items():
        lines = [textwrap.fill(f"{name}: {entry}", 100, subsequent_indent="    ") for name, entry in entries.items()]
        text += f"\n\n{title}:\n" + textwrap.indent("\n".join(lines), "    ")
    call.__doc__ = text
    return call
