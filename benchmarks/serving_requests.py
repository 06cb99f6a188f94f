"""Requests for a server that is under load, and the pictures that answer them: each made alone, by the pipeline."""

import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from safelight.runtime import DiffusionPipeline
from safelight.runtime.backends import Array
from safelight.runtime.schedulers import scheduler_class

from .serving_client import Answer

GENERATIONS = "/v1/images/generations"
SUBJECTS = ("cat face", "red apple", "pizza", "bear", "red heart", "dog face", "fox", "frog", "owl", "banana")
COLORS = ("blue", "white", "green", "yellow", "pink", "purple", "black")
SCHEDULERS = (
    None,
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
GUIDANCE = (1.0, 3.0, 7.5)  # 1 is none: the network sees one row, not two
FORMATS = (("png", None),) * 6 + (("jpeg", 90), ("webp", 80))
_COMPLETED = "image_generation.completed"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the requests may ask of a model."""

    sizes: tuple[tuple[int, int], ...]  # (width, height), in pixels
    steps: tuple[int, int]  # least and most


def mixed(count: int, shape: Shape, *, seed: int) -> list[dict[str, Any]]:
    """Bodies of requests that have little in common: the same ones for the same seed.

    No two ask for the same seed, so no two have the same picture.
    """
    chance = random.Random(seed)
    bodies = []
    for number in range(count):
        width, height = chance.choice(shape.sizes)
        output_format, compression = chance.choice(FORMATS)
        body: dict[str, Any] = {
            "prompt": f"{chance.choice(SUBJECTS)} on a {chance.choice(COLORS)} background",
            "size": f"{width}x{height}",
            "num_inference_steps": chance.randint(*shape.steps),
            "guidance_scale": chance.choice(GUIDANCE),
            "seed": seed * 1_000_000 + number * 10,
            "n": 2 if chance.random() < 0.05 else 1,
            "output_format": output_format,
        }
        if compression is not None:
            body["output_compression"] = compression
        if (scheduler := chance.choice(SCHEDULERS)) is not None:
            body["scheduler"] = scheduler
        if chance.random() < 0.2:
            body["negative_prompt"] = "blurred"
        if chance.random() < 0.1:
            body |= {"stream": True, "partial_images": chance.randint(0, 2), "progress": chance.random() < 0.5}
        bodies.append(body)
    return bodies


def alike(count: int, shape: Shape, *, seed: int) -> list[dict[str, Any]]:
    """Bodies of requests that differ in prompt and seed alone."""
    chance = random.Random(seed)
    width, height = shape.sizes[0]
    return [
        {
            "prompt": f"{chance.choice(SUBJECTS)} on a {chance.choice(COLORS)} background",
            "size": f"{width}x{height}",
            "num_inference_steps": shape.steps[1],
            "guidance_scale": 7.5,
            "seed": seed * 1_000_000 + number * 10,
        }
        for number in range(count)
    ]


class Alone:
    """Makes the pictures of requests one at a time, in this process."""

    def __init__(self, model: str | Path, **engine: Any) -> None:
        """Opens the model.

        Args:
            model: a folder or hub id.
            engine: of `DiffusionPipeline.from_pretrained`.
        """
        pipeline: Any = DiffusionPipeline.from_pretrained(model, **engine)
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline, self._scheduler = pipeline, pipeline.scheduler

    def pictures(self, body: dict[str, Any]) -> list[Array]:
        """The pictures of one request, each (height, width, 3) of uint8, as its file would show them."""
        pipeline, own = self._pipeline, self._scheduler
        kind = scheduler_class(body["scheduler"]) if "scheduler" in body else type(own)
        pipeline.scheduler = kind.from_config(own.config)
        width, height = map(int, body["size"].split("x"))
        same = ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale")
        arguments = {name: body[name] for name in same if name in body}
        return [
            _as_file(pipeline(**arguments, width=width, height=height, seed=body["seed"] + index).images[0], body)
            for index in range(body.get("n", 1))
        ]


def pictures_of(answer: Answer, body: dict[str, Any]) -> list[Array]:
    """The pictures that an answer has, in the order of their seeds: each (height, width, 3) of uint8.

    Raises:
        ValueError: it is not what the request asked for: another number of pictures, other seeds, another format.
    """
    if body.get("stream"):
        events = answer.events()
        if failed := [content for name, content in events if name == "error"]:
            raise ValueError(f"the stream ended with {failed[0]['error']['code']}")
        found = [content for name, content in events if name == _COMPLETED]
    else:
        found = answer.json()["data"]
    by_seed = {content["seed"]: base64.b64decode(content["b64_json"]) for content in found}
    seeds = [body["seed"] + index for index in range(body.get("n", 1))]
    if len(found) != len(seeds) or sorted(by_seed) != seeds:
        raise ValueError(f"asked for the pictures of seeds {seeds}, got {[content['seed'] for content in found]}")
    return [decoded(by_seed[seed], body.get("output_format", "png")) for seed in seeds]


def decoded(content: bytes, output_format: str) -> Array:
    """A file's picture: (height, width, 3) of uint8.

    Raises:
        ValueError: it is of another format.
    """
    with Image.open(io.BytesIO(content)) as picture:
        if picture.format != output_format.upper():
            raise ValueError(f"asked for {output_format}, got {picture.format}")
        return np.asarray(picture.convert("RGB"))


def difference(found: Sequence[Array], expected: Sequence[Array]) -> int:
    """The largest difference of any value, 0 to 255; 255 where the pictures are not as many, or not as large."""
    if [picture.shape for picture in found] != [picture.shape for picture in expected]:
        return 255
    pairs = zip(found, expected, strict=True)
    return max(int(np.abs(one.astype(np.int16) - other.astype(np.int16)).max()) for one, other in pairs)


def closest(pictures: Sequence[Array]) -> float:
    """The root mean square by which the two most alike of many pictures of one size differ, 0 to 255."""
    least = np.inf
    for shape in {picture.shape for picture in pictures}:
        flat = np.stack([picture.ravel() for picture in pictures if picture.shape == shape]).astype(np.float64)
        squares = (flat**2).sum(axis=1)
        distances = squares[:, None] + squares[None, :] - 2 * flat @ flat.T
        np.fill_diagonal(distances, np.inf)
        least = min(least, float(distances.min()) / flat.shape[1])
    return float(np.sqrt(max(least, 0.0)))


def _as_file(picture: Image.Image, body: dict[str, Any]) -> Array:
    output_format = body.get("output_format", "png")
    if output_format == "png":
        return np.asarray(picture.convert("RGB"))
    file = io.BytesIO()
    picture.save(file, format=output_format, quality=body["output_compression"])
    return decoded(file.getvalue(), output_format)
