"""The run that a proof is about: a call of the folder's own pipeline that can be made again, by any engine."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends import Array
from ..image import to_unit_interval
from ..image_input import preprocess_image
from ..model_folder import ModelFolder
from ..networks import Autoencoder, AutoencoderKL, AutoencoderTiny, Engine
from ..pipelines import AutoPipelineForInpainting, DiffusionPipeline, TextGuidedPipeline, UnconditionalPipeline
from ..pipelines.base import class_known, open_components
from .drawing import draw_mask, draw_picture

PROMPT = "cat face on a blue background"
NEGATIVE_PROMPT = "blurry, dark"
STEPS, FEWER_STEPS = 6, 3  # the second of what makes pictures larger than `LARGEST_SIDE`
LARGEST_SIDE = 192  # of the run's picture, unless asked: what a UNet does on large latents it does on small ones too

#: what a folder without a UNet can have a run of: a picture is encoded and decoded
_AUTOENCODERS: dict[str, type[Autoencoder]] = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
#: components that a run leaves out: they look at the picture, and would make it black
_LOOKERS = ("safety_checker", "feature_extractor")
#: of a call; the keys that a run may have
_ARGUMENTS = frozenset(
    {"prompt", "negative_prompt", "height", "width", "num_inference_steps", "guidance_scale", "strength", "seed"}
)
_GUIDANCE_SCALE, _STRENGTH = 5.0, 0.7


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a user may choose of a run; the model's own where None."""

    prompt: str = PROMPT
    num_inference_steps: int | None = None
    height: int | None = None
    width: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks what can be checked without a model.

        Raises:
            ValueError: a number below 1.
        """
        for name in ("num_inference_steps", "height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class Run:
    """A call of a pipeline, or an autoencoder's way there and back. Pictures and masks that go in are drawn.

    Raises:
        ValueError: a class or an argument that no run has.
    """

    class_name: str
    arguments: Mapping[str, Any]  # as JSON

    def __post_init__(self) -> None:
        if self.class_name not in {**DiffusionPipeline.registry, **_AUTOENCODERS}:
            raise ValueError(f"no run is of a {self.class_name}")
        if unknown := set(self.arguments) - _ARGUMENTS:
            raise ValueError(f"no run has the arguments {', '.join(sorted(unknown))}")

    def picture(self, folder: ModelFolder, engine: Engine) -> Array:
        """What comes out: (height, width, channels), uint8.

        Args:
            folder: its index, tokenizers, scheduler and configurations are read.
            engine: opens the networks.

        Raises:
            ValueError: the arguments are none for this pipeline, or a network overflowed.
        """
        from PIL import Image  # only where a picture is made

        if self.class_name in _AUTOENCODERS:
            vae = _AUTOENCODERS[self.class_name].open(folder, engine, "vae")
            drawn = Image.fromarray(draw_picture(**self.arguments))
            images = to_unit_interval(vae.decode(vae.encode(preprocess_image(drawn, factor=vae.factor)).mode()))
        else:
            kind = DiffusionPipeline.registry[self.class_name]
            takes = inspect.signature(kind.__call__).parameters
            size = {name: self.arguments[name] for name in ("height", "width") if name in self.arguments}
            given = {name: value for name, value in self.arguments.items() if name in takes}
            if "image" in takes:
                given["image"] = Image.fromarray(draw_picture(**size))
            if "mask_image" in takes:
                given["mask_image"] = Image.fromarray(draw_mask(**size))
            images = _open_pipeline(kind, folder, engine)(**given, output_type="np").images
        return np.asarray((np.asarray(images[0]) * 255).round(), dtype=np.uint8)


def choose_run(folder: ModelFolder, engine: Engine, options: RunOptions) -> Run | None:
    """The run of a folder's own pipeline, for the task that its UNet is made for.

    Of a folder that holds some of a pipeline's components it is the autoencoder's, or None where that is missing too,
    and where no pipeline can call the UNet.

    Args:
        folder: see `Run.picture`.
        engine: opens the networks, of which none is called.
        options: what the user chose.
    """
    try:
        pipeline = _open_pipeline(class_known(folder), folder, engine)
    except (FileNotFoundError, ValueError):  # a component is missing, or all but one
        return _autoencoder_run(folder, engine, options)
    if isinstance(pipeline, UnconditionalPipeline):
        if "class_labels" in {spec.name for spec in pipeline.unet.network.inputs}:
            return None  # no pipeline gives such a UNet what it takes
        steps = options.num_inference_steps or STEPS
        return Run(type(pipeline).__name__, {"num_inference_steps": steps, "seed": options.seed})
    assert isinstance(pipeline, TextGuidedPipeline)
    kind: type[DiffusionPipeline] = type(pipeline)
    if int(pipeline.unet.config["in_channels"]) == 2 * pipeline.vae.latent_channels + 1:
        kind = type(AutoPipelineForInpainting.from_pipe(pipeline))
    takes = inspect.signature(kind.__call__).parameters
    own = pipeline.unet.config["sample_size"] or pipeline.vae.sample_size // pipeline.vae.factor
    height, width = (side * pipeline.vae.factor for side in (own if isinstance(own, list | tuple) else (own, own)))
    fewest = STEPS if max(height, width) <= LARGEST_SIDE else FEWER_STEPS
    chosen: dict[str, Any] = {
        "prompt": options.prompt,
        "num_inference_steps": options.num_inference_steps or fewest,
        "guidance_scale": _GUIDANCE_SCALE,
        "seed": options.seed,
    }
    if "negative_prompt" in takes:
        chosen["negative_prompt"] = NEGATIVE_PROMPT
    if "strength" in takes and "mask_image" not in takes:
        chosen["strength"] = _STRENGTH
    return Run(kind.__name__, {**chosen, **_size(height, width, pipeline.vae.factor, options)})


def _autoencoder_run(folder: ModelFolder, engine: Engine, options: RunOptions) -> Run | None:
    class_name = (folder.index.get("vae") or [None, None])[1]
    if class_name not in _AUTOENCODERS:
        return None
    try:
        vae = _AUTOENCODERS[class_name].open(folder, engine, "vae")
        _ = vae.encoder
    except FileNotFoundError:
        return None
    return Run(class_name, _size(vae.sample_size, vae.sample_size, vae.factor, options))


def _open_pipeline(kind: type[DiffusionPipeline], folder: ModelFolder, engine: Engine) -> DiffusionPipeline:
    """A folder's pipeline, without what looks at the pictures."""
    left_out: dict[str, Any] = {
        name: None for name in kind.optional_components if name in _LOOKERS or not folder.has_component(name)
    }
    opened = open_components(folder, engine, [name for name in kind.component_names if name not in left_out])
    pipeline = kind(folder, engine, {**left_out, **opened})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _size(height: int, width: int, factor: int, options: RunOptions) -> dict[str, int]:
    """The size asked for, or the model's own, made smaller where it is large."""
    shrink = min(1.0, LARGEST_SIDE / max(height, width))
    own = {"height": height, "width": width}
    return {
        name: getattr(options, name) or max(factor, int(side * shrink) // factor * factor) for name, side in own.items()
    }
