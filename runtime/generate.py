"""`safelight generate PROMPT`: pictures from the command line, each carrying what it was made with."""

import argparse
import inspect
import itertools
import logging
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from .engine_arguments import add_engine_arguments, engine_of, named_value
from .image import image_grid, read_parameters, save_png
from .image_input import resize_image
from .input_files import (
    ARRAYS,
    CONTENTS,
    EMBEDDINGS,
    PICTURES,
    check_contents,
    contents,
    option,
    read_array,
    read_picture,
)
from .latents import check_size
from .networks import open_autoencoder
from .pipelines import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    DiffusionPipeline,
    TextGuidedPipeline,
    UnconditionalPipeline,
)
from .schedulers import scheduler_class
from .source import bundled_model
from .speed_arguments import SPEED, add_speed_arguments, precision_of, recorded_speed, speed_of_record

logger = logging.getLogger(__name__)

SUMMARY = "make pictures from prompts"

#: what parameters call the bundled model
BUNDLED = "emoji"
#: options that are arguments of the pipeline's call, recorded in the picture
CALL = (
    "negative_prompt", "prompt_2", "negative_prompt_2", "height", "width", "num_inference_steps", "guidance_scale",
    "image_guidance_scale", "guidance_rescale", "eta", "clip_skip", "latents", "prompt_embeds",
    "negative_prompt_embeds", "strength", "denoising_start", "denoising_end", "padding_mask_crop", "image",
    "mask_image", "depth_map",
)  # fmt: skip
#: what a user who names a file may mean, and that is not always what is written
_OTHER_KINDS = {".png", ".npy", ".jpg", ".jpeg", ".webp"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments; flags are spelled as the pipeline's parameters, whose defaults they have."""
    calls = [inspect.signature(pipeline.__call__).parameters for pipeline in DiffusionPipeline.registry.values()]

    def option(flag: str, kind: type, text: str) -> None:
        name = flag.removeprefix("--").replace("-", "_")
        defaults = {call[name].default for call in calls if name in call}
        shown = " or ".join(map(str, sorted(defaults - {None}))) + ", as the pipeline has it" * (len(defaults) > 1)
        note = "" if defaults == {None} else f" (default: {shown})"
        parser.add_argument(flag, type=kind, help=text + note)

    parser.add_argument("prompt", nargs="*", help="one or several; together they are one batch")
    parser.add_argument("--model", help="a folder or hub id (default: the bundled model, 64x64 emoji)")
    parser.add_argument(
        "--from-image", type=Path, metavar="PNG", help="make this picture again; options given here take precedence"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output"), help="a .png file, or a folder (default: %(default)s)"
    )
    parser.add_argument("--output-type", choices=("pil", "np", "latent"), default="pil", help="np, latent: .npy files")
    parser.add_argument("--grid", action="store_true", default=None, help="one picture of all, instead of one each")
    parser.add_argument("--scheduler", help="a class name, such as DDIMScheduler (default: the model's own)")
    parser.add_argument(
        "--scheduler-option", action="append", metavar="NAME=VALUE", help="such as use_karras_sigmas=true; repeatable"
    )
    parser.add_argument("--seed", type=int, help="of the first picture, the next has the next (default: chosen)")
    option("--negative-prompt", str, "what to move away from")
    option("--prompt-2", str, "of SDXL's second text encoder, instead of the prompt")
    option("--negative-prompt-2", str, "of SDXL's second text encoder, instead of the negative prompt")
    option("--height", int, "in pixels; the model's own if not given")
    option("--width", int, "in pixels; the model's own if not given")
    parser.add_argument("--prompt-weights", action="store_true", default=None, help="(word:1.3) and [word] weigh")
    parser.add_argument("--long-prompts", action="store_true", default=None, help="encode all of them, in chunks")
    parser.add_argument(
        "--textual-inversion", type=Path, action="append", metavar="FILE", help="a word more; repeatable"
    )
    option("--num-inference-steps", int, "how many times the noise is lowered")
    option("--guidance-scale", float, "how far past the negative prompt's prediction to go; 1 is no guidance")
    option("--image-guidance-scale", float, "how far to go towards the picture, with InstructPix2Pix")
    option("--guidance-rescale", float, "0 to 1: how much of the prediction's contrast is kept")
    option("--num-images-per-prompt", int, "each with a seed of its own")
    option("--eta", float, "noise of DDIM, 0 to 1")
    option("--clip-skip", int, "how many of the text encoder's last layers to leave out")
    option("--latents", Path, "a .npy file: the starting noise, instead of a seed's")
    option("--prompt-embeds", Path, "a .npy file: text embeddings, instead of a prompt")
    option("--negative-prompt-embeds", Path, "a .npy file: text embeddings, instead of a negative prompt")
    parser.add_argument("--image", type=Path, help="a picture to start from, or latents in a .npy file: image to image")
    parser.add_argument("--mask", type=Path, dest="mask_image", help="of the picture: what is white is made anew")
    option("--strength", float, "0 to 1: how far to go from the picture")
    option("--denoising-start", float, "0 to 1: how much of the way the image's latents have gone, with SDXL")
    option("--denoising-end", float, "0 to 1: where on the way to stop, for a refiner to go on, with SDXL")
    option("--padding-mask-crop", int, "work on the mask's surroundings alone, so many pixels wide")
    parser.add_argument("--depth-map", type=Path, help="a .npy file: (1, height, width), for a depth-to-image model")
    parser.add_argument(
        "--vae", help="a folder or hub id: another autoencoder, such as a tiny one, instead of the model's"
    )
    parser.add_argument("--no-safety-checker", action="store_true", help="give pictures back without looking at them")
    add_engine_arguments(parser)
    add_speed_arguments(parser)
    parser.add_argument(
        "--low-memory", action="store_true", help="open each network when it is needed, and close it after its part"
    )
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")


def run(arguments: argparse.Namespace) -> int:
    """Makes the pictures; prints the seed, the seconds of each stage and where the pictures lie."""
    kind = _kind(arguments)
    if arguments.output.suffix.lower() in _OTHER_KINDS - {kind}:
        raise ValueError(f"--output must be a {kind} file or a folder, got {arguments.output}")
    request = _request(arguments)
    started = perf_counter()
    engine = engine_of(arguments)
    engine["precision"] = precision_of(request.parameters, engine["precision"])
    pipeline = open_pipeline(
        request.parameters,
        low_memory=arguments.low_memory,
        **engine,
        safety_checker=not arguments.no_safety_checker,
    )
    timings = {"open": perf_counter() - started}
    if arguments.no_progress:
        pipeline.set_progress_bar_config(disable=True)
    _warn_of_another_model(request.parameters, pipeline)
    output = request.call(pipeline, arguments.output_type)
    timings |= output.timings
    started = perf_counter()
    parameters = request.parameters | {"model_sha256": _fingerprint(pipeline)}
    paths = _save(output.images, request, parameters, arguments)
    timings["save"] = perf_counter() - started
    print(f"seed {request.seeds[0]}: " + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in timings.items()))
    if pipeline.engine.has_choices:  # of precision, which nobody sees in a picture
        print(pipeline.engine.describe(pipeline.folder.networks))
    if SPEED in request.parameters:
        print(f"speed: {pipeline.speed}")
    for path in paths:
        print(path)
    for seed in itertools.compress(request.seeds, getattr(output, "nsfw_content_detected", None) or ()):
        print(f"seed {seed}: black, because the safety checker takes it for not safe for work")
    return 0


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be made."""

    prompts: list[str] | None  # None: `prompt_embeds` instead
    count: int  # pictures per prompt
    seeds: list[int]  # one per picture
    grid: bool
    parameters: dict[str, Any]  # of all pictures together, as JSON: what `--from-image` reads again

    def call(self, pipeline: Any, output_type: str) -> Any:
        """Runs the pipeline."""
        options = {name: self.parameters[name] for name in CALL if self.parameters.get(name) is not None}
        options |= {name: read_array(options[name]) for name in ARRAYS if name in options}
        options |= {name: read_picture(options[name]) for name in PICTURES if name in options}
        known = inspect.signature(pipeline.__call__).parameters
        if "height" not in known and not isinstance(options.get("image"), np.ndarray | None):  # the picture says it
            sides = {name: options.pop(name) for name in ("height", "width") if name in options}
            for name, side in sides.items():
                check_size(name, side, pipeline.vae.factor)
            options["image"] = resize_image(options["image"], **sides)
        if unknown := [name for name in options if name not in known]:
            raise ValueError(f"{type(pipeline).__name__} takes no {', '.join(map(option, unknown))}")
        if isinstance(pipeline, UnconditionalPipeline):
            if self.prompts is not None:
                raise ValueError(f"{type(pipeline).__name__} takes no prompt")
            return pipeline(batch_size=self.count, seed=self.seeds, output_type=output_type, **options)
        if self.prompts is None and "prompt_embeds" not in options:
            raise ValueError('give a prompt, such as: safelight generate "cat face on a blue background"')
        return pipeline(
            self.prompts,
            num_images_per_prompt=self.count,
            seed=self.seeds,
            output_type=output_type,
            **options,
        )

    def of_picture(self, index: int) -> dict[str, Any]:
        """The parameters that make one of the pictures on its own."""
        alone = self.parameters | {"seed": self.seeds[index], "num_images_per_prompt": 1, "grid": False}
        if self.prompts is not None:
            alone["prompt"] = self.prompts[index // self.count]
        return alone

    def name(self, index: int) -> str:
        """What one of the pictures is called, as part of a file's name."""
        if self.prompts:
            return _slug(self.prompts[index // self.count])
        return _slug("") if self.parameters.get("prompt_embeds") is None else "embeddings"


def open_pipeline(parameters: Mapping[str, Any], *, safety_checker: bool = True, **engine: Any) -> DiffusionPipeline:
    """The pipeline that a picture's parameters name, with their scheduler.

    Args:
        parameters: of the picture.
        safety_checker: whether the model's own looks at the pictures.
        **engine: `backend`, `device`, `precision` and their kin, of `DiffusionPipeline.from_pretrained`.
    """
    model = parameters["model"]
    path = bundled_model() if model == BUNDLED else model
    parts: dict[str, Any] = {} if safety_checker else {"safety_checker": None}
    if "vae" in parameters:
        parts["vae"] = open_autoencoder(parameters["vae"], **engine)
    pipeline = DiffusionPipeline.from_pretrained(path, **engine, **parts)
    takes = inspect.signature(pipeline.__call__).parameters
    if parameters.get("mask_image") is not None:
        pipeline = AutoPipelineForInpainting.from_pipe(pipeline)
    elif parameters.get("image") is not None and ("image" not in takes or "mask_image" in takes):
        pipeline = AutoPipelineForImage2Image.from_pipe(pipeline)
    if isinstance(pipeline, TextGuidedPipeline):
        pipeline.enable_prompt_weights(bool(parameters.get("prompt_weights")))
        pipeline.enable_long_prompts(bool(parameters.get("long_prompts")))
        for file in parameters.get(EMBEDDINGS, ()):
            pipeline.load_textual_inversion(file)
    if SPEED in parameters:
        pipeline.enable_speed(speed_of_record(parameters[SPEED]))
    name, options = parameters.get("scheduler"), parameters.get("scheduler_options", {})
    if name or options:
        own = pipeline.scheduler  # type: ignore[attr-defined]
        kind = scheduler_class(name) if name else type(own)
        known = list(inspect.signature(kind).parameters)
        if unknown := [option for option in options if option not in known]:
            raise ValueError(f"{kind.__name__} has no option {', '.join(unknown)}; it has: {', '.join(known)}")
        pipeline.scheduler = kind.from_config(own.config, **options)  # type: ignore[attr-defined]
    return pipeline


def _request(arguments: argparse.Namespace) -> Request:
    """The picture's parameters, and those given on the command line over them."""
    recorded = {} if arguments.from_image is None else read_parameters(arguments.from_image)
    parameters: dict[str, Any] = {"model": BUNDLED, **recorded}
    names = (
        "model",
        "vae",
        "scheduler",
        "seed",
        "grid",
        "num_images_per_prompt",
        "prompt_weights",
        "long_prompts",
        *CALL,
    )
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if given.get("model") == BUNDLED and Path(BUNDLED).is_dir():
        given["model"] = f"./{BUNDLED}"  # the folder that is named so, and not the bundled model
    parameters.pop(SPEED, None)
    parameters |= recorded_speed(arguments, recorded)
    if "scheduler" in given:
        parameters.pop("scheduler_options", None)  # the other scheduler's
    parameters |= {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    if arguments.textual_inversion:
        parameters[EMBEDDINGS] = [str(path) for path in arguments.textual_inversion]
    if arguments.scheduler_option:
        parameters["scheduler_options"] = dict(
            named_value("--scheduler-option", text) for text in arguments.scheduler_option
        )
    if arguments.prompt:
        parameters["prompt"] = arguments.prompt[0] if len(arguments.prompt) == 1 else arguments.prompt
    parameters.pop(CONTENTS, None)
    if found := contents(parameters):
        parameters[CONTENTS] = found
    if arguments.from_image is not None:
        check_contents(arguments.from_image, recorded, parameters)
    prompts = parameters.get("prompt")
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if prompts is not None and parameters.get("prompt_embeds") is not None:
        raise ValueError("give a prompt or --prompt-embeds, not both")
    count = parameters.setdefault("num_images_per_prompt", 1)
    seed = parameters.setdefault("seed", secrets.randbits(32))
    embeds = parameters.get("prompt_embeds")
    batch = len(prompts or [None]) if embeds is None else len(np.atleast_1d(read_array(embeds)))
    return Request(
        prompts=prompts,
        count=count,
        seeds=[seed + index for index in range(batch * max(count, 1))],
        grid=bool(parameters.get("grid")),
        parameters=parameters,
    )


def _save(images: Any, request: Request, parameters: dict[str, Any], arguments: argparse.Namespace) -> list[Path]:
    """Writes the pictures, or the arrays, and returns where they lie."""
    kind = _kind(arguments)
    name = request.name(0)
    if kind == ".npy":
        path = _place(arguments.output, kind, f"{request.seeds[0]}-{name}")
        np.save(path, images)
        return [path]
    if request.grid:
        path = _place(arguments.output, kind, f"{request.seeds[0]}-{name}-grid")
        columns = request.count if 1 < request.count < len(images) else None  # a row a prompt
        save_png(image_grid(images, columns), path, parameters)
        return [path]
    paths = []
    for index, image in enumerate(images):
        output: Path = arguments.output
        if output.suffix.lower() == kind and len(images) > 1:
            output = output.with_stem(f"{output.stem}-{index}")
        paths.append(_place(output, kind, f"{request.seeds[index]}-{request.name(index)}"))
        save_png(image, paths[-1], parameters | request.of_picture(index))
    return paths


def _kind(arguments: argparse.Namespace) -> str:
    """The suffix of the files to be written."""
    return ".png" if arguments.output_type == "pil" else ".npy"


def _place(output: Path, kind: str, name: str) -> Path:
    """The file that was named, or a new one in the folder that was named."""
    if output.suffix.lower() == kind:
        output.parent.mkdir(parents=True, exist_ok=True)
        return output
    output.mkdir(parents=True, exist_ok=True)
    numbers = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    return next(path for number in numbers if not (path := output / f"{name}{number}{kind}").exists())


def _slug(prompt: str) -> str:
    """A prompt as part of a file's name."""
    return re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:48] or "picture"


def _fingerprint(pipeline: DiffusionPipeline) -> str | None:
    """The sha256 of the UNet's weights, where the model folder records it."""
    manifest = pipeline.folder.manifest
    record = manifest.components.get("unet") if manifest else None
    return manifest.files[record.weights].sha256 if manifest and record else None


def _warn_of_another_model(parameters: Mapping[str, Any], pipeline: DiffusionPipeline) -> None:
    """Says so when a picture is made again with other weights than it was made with."""
    recorded = parameters.get("model_sha256")
    if recorded is not None and recorded != _fingerprint(pipeline):
        logger.warning("the model is not the one that the picture was made with: expect another picture")
