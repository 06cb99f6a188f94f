"""What is measured: a model, the size, number and steps of its pictures, and all else that determines them."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from safelight.runtime.source import bundled_model

from .published import SHAPES

_SQUIRREL = "An image of a squirrel in Picasso style"
_CAT = "cat face on a blue background"


@dataclass(frozen=True, kw_only=True)
class Model:
    """What makes the pictures, and how it is usually asked for one."""

    name: str
    shape: str | None = None  # of `published.SHAPES`: weights that are random, made in the workspace
    folder: str | None = None  # what is exported already
    checkpoint: str | None = None  # that it was exported from; other tools need it
    parameters: Mapping[str, int]  # of each network that a picture takes
    side: int  # of its own pictures, in pixels
    factor: int  # pixels of the image that one of the latents is, along a side
    latent_channels: int
    decoder_channels: int  # of the autoencoder's widest layer at the picture's full size
    num_inference_steps: int
    guidance_scale: float
    prompt: str


@dataclass(frozen=True, kw_only=True)
class Case:
    """Pictures that every contender has to give, all of one batch."""

    model: Model
    height: int  # in pixels
    width: int
    batch: int
    num_inference_steps: int
    guidance_scale: float
    prompt: str
    seed: int = 0

    @property
    def name(self) -> str:
        """For a heading."""
        several = f", {self.batch} at once" if self.batch > 1 else ""
        return f"{self.model.name} {self.width}x{self.height}{several}, {self.num_inference_steps} steps"

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Of the starting noise: (batch, channels, height, width)."""
        factor = self.model.factor
        return self.batch, self.model.latent_channels, self.height // factor, self.width // factor

    @property
    def branches(self) -> int:
        """How many predictions of the UNet a step of one picture takes: guidance takes two."""
        return 2 if self.guidance_scale > 1 else 1

    def to_dict(self) -> dict[str, Any]:
        """For a report, which names no path of this machine."""
        model = asdict(self.model)
        model |= {"folder": self.model.folder is not None, "checkpoint": self.model.checkpoint is not None}
        return {"name": self.name, **asdict(self), "model": model}


def published_model(name: str, parameters: Mapping[str, int], *, steps: int = 20) -> Model:
    """A model of a published shape.

    Args:
        name: in `published.SHAPES`.
        parameters: of its networks, as the checkpoint has them.
        steps: of a picture, where nobody asks for others.
    """
    networks = SHAPES[name].networks
    (_, unet), (_, vae) = networks["unet"], networks["vae"]
    return Model(
        name=name,
        shape=name,
        parameters=parameters,
        side=unet["sample_size"] * _factor(vae),
        factor=_factor(vae),
        latent_channels=vae.get("latent_channels", 4),
        decoder_channels=_decoder_channels(vae),
        num_inference_steps=steps,
        guidance_scale=7.5,
        prompt=_SQUIRREL,
    )


def model_of(folder: Path, checkpoint: Path | None, *, name: str | None = None, prompt: str = _SQUIRREL) -> Model:
    """A model that is exported.

    Args:
        folder: the model folder.
        checkpoint: what it was exported from.
        name: the folder's own when None.
        prompt: of a picture, where nobody asks for another.

    Raises:
        ValueError: it makes no pictures from text: it has no UNet or no autoencoder.
    """
    unet, vae = _config(folder, "unet"), _config(folder, "vae_decoder")
    factor = _factor(vae)
    side = unet.get("sample_size") or 64
    networks = ("text_encoder", "text_encoder_2", "unet", "vae_decoder")
    return Model(
        name=name or folder.resolve().name,
        folder=str(folder),
        checkpoint=None if checkpoint is None else str(checkpoint),
        parameters={each: _parameters(folder / each) for each in networks if (folder / each).is_dir()},
        side=factor * (side if isinstance(side, int) else max(side)),
        factor=factor,
        latent_channels=vae.get("latent_channels", 4),
        decoder_channels=_decoder_channels(vae),
        num_inference_steps=25,
        guidance_scale=5.0,
        prompt=prompt,
    )


def bundled_checkpoint() -> Path | None:
    """The checkpoint of the bundled model, which a clone of the repository has and a wheel does not."""
    path = Path(__file__).resolve().parent.parent / "reference" / "emoji" / "checkpoint"
    return path if path.is_dir() else None


#: those that have a name; the others are their users' folders
MODEL_NAMES = ("emoji", "sd15", "sd21", "sdxl")


def named_model(name: str) -> Model:
    """One of `MODEL_NAMES`."""
    if name == "emoji":
        return model_of(bundled_model(), bundled_checkpoint(), name=name, prompt=_CAT)
    return published_model(name, _PARAMETERS[name])


_PARAMETERS: Mapping[str, Mapping[str, int]] = {
    "sd15": {"text_encoder": 123_060_480, "unet": 859_520_964, "vae": 83_653_863},
    "sd21": {"text_encoder": 340_387_840, "unet": 865_910_724, "vae": 83_653_863},
    "sdxl": {
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
        "unet": 2_567_463_684,
        "vae": 83_653_863,
    },
}


def cases(
    models: Iterable[Model],
    *,
    sizes: Sequence[tuple[int, int]] = (),
    batches: Sequence[int] = (1,),
    steps: int | None = None,
    guidance_scale: float | None = None,
    prompt: str | None = None,
    seed: int = 0,
) -> Iterator[Case]:
    """Every model with every size and batch.

    Args:
        models: in this order.
        sizes: width and height in pixels; each model's own when there are none.
        batches: how many pictures at once.
        steps: each model's own when None, as for what follows.
        guidance_scale: of classifier-free guidance; none at 1 and below.
        prompt: of all the pictures.
        seed: of the starting noise.

    Raises:
        ValueError: a side that a model's autoencoder cannot make, or a number below 1.
    """
    for model, size, batch in product(models, sizes or (None,), batches):
        width, height = size or (model.side, model.side)
        for side in (width, height):
            if side < model.factor or side % model.factor:
                raise ValueError(f"sizes of {model.name} are multiples of {model.factor}, got {width}x{height}")
        count = model.num_inference_steps if steps is None else steps
        if batch < 1 or count < 1:
            raise ValueError(f"batch and steps must be at least 1, got {batch} and {count}")
        yield Case(
            model=model,
            height=height,
            width=width,
            batch=batch,
            num_inference_steps=count,
            guidance_scale=model.guidance_scale if guidance_scale is None else guidance_scale,
            prompt=model.prompt if prompt is None else prompt,
            seed=seed,
        )


def _factor(vae: Mapping[str, Any]) -> int:
    return int(2 ** (len(vae["block_out_channels"]) - 1))


def _decoder_channels(vae: Mapping[str, Any]) -> int:
    """The last block takes what the one before it gave, scaled up."""
    return int(max(vae["block_out_channels"][:2]))


def _config(folder: Path, network: str) -> dict[str, Any]:
    file = folder / network / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} makes no pictures from text: it has no {network}")
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config


def _parameters(network: Path) -> int:
    """How many numbers its weights are; of a folder by others, what its files hold in float32."""
    weights = network / "model.onnx_data"
    if weights.is_file():
        try:
            with safe_open(weights, framework="numpy") as tensors:
                return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
        except SafetensorError:
            return weights.stat().st_size // 4
    return (network / "model.onnx").stat().st_size // 4
