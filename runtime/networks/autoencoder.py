"""Autoencoders: images to latents and back."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ..backends import Array, Network
from ..config import FrozenConfig
from ..model_folder import ModelFolder, open_model_folder
from ..random import Generator, randn
from ..source import local_model
from ..tiling import decode_tiled, encode_tiled, sliced
from .engine import Engine, engine_options, float32, read_config

_TILE_OVERLAP = 0.25  # of a tile's side, as in diffusers


@dataclass(frozen=True)
class DiagonalGaussian:
    """The distribution of latents that an image is encoded to."""

    parameters: Array  # (batch, 2 * latent_channels, height, width): means, then log variances

    @property
    def mean(self) -> Array:
        """(batch, latent_channels, height, width)."""
        mean, _ = np.split(self.parameters, 2, axis=1)
        return np.asarray(mean)

    @property
    def std(self) -> Array:
        """(batch, latent_channels, height, width)."""
        log_variance = np.clip(np.split(self.parameters, 2, axis=1)[1], -30.0, 20.0)
        return np.asarray(np.exp(0.5 * log_variance), dtype=np.float32)

    def mode(self) -> Array:
        """The most likely latents: the mean."""
        return self.mean

    def sample(self, generator: Generator | Sequence[Generator]) -> Array:
        """Latents drawn from the distribution; one generator for the batch, or one per image."""
        mean = self.mean
        return np.asarray(mean + self.std * randn(mean.shape, generator))


@dataclass(frozen=True)
class CertainLatents:
    """The latents that an image is encoded to, where that is no distribution."""

    parameters: Array  # (batch, latent_channels, height, width)

    def mode(self) -> Array:
        """The latents."""
        return self.parameters

    def sample(self, generator: Generator | Sequence[Generator]) -> Array:  # noqa: ARG002
        """The latents; nothing is drawn."""
        return self.parameters


class Autoencoder(ABC):
    """Images to latents and back. The encoder is opened when it is first used."""

    #: whether encoding an image gives a distribution, from which latents are drawn
    samples: ClassVar[bool]

    def __init__(self, decoder: Network, config: FrozenConfig, open_encoder: Callable[[], Network]) -> None:
        self.decoder = decoder
        self.config = config
        self._open_encoder = open_encoder
        self._tile_latent_size: int | None = None
        self._slices = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        **options: Any,
    ) -> Self:
        """Opens the autoencoder of a model folder, a checkpoint or a hub id.

        Args:
            pretrained_model_name_or_path: see `DiffusionPipeline.from_pretrained`; or an autoencoder alone.
            **options: as of `DiffusionPipeline.from_pretrained`: the engine's (`backend`, `device`, `precision` and
                their kin), and the source's (`variant`, `revision`, `token`, `cache_dir`, `local_files_only`).

        Raises:
            FileNotFoundError: there is no such folder or hub id.
            ValueError: the folder's autoencoder is of another class.
        """
        engine, source = engine_options(options)
        folder = open_model_folder(local_model(pretrained_model_name_or_path, **source))
        found = folder.class_of("vae")
        if found != cls.__name__:
            raise ValueError(f"{folder.path} has no {cls.__name__}: its vae is a {found}")
        return cls.open(folder, Engine.of(folder, **engine))

    @classmethod
    def open(cls, folder: ModelFolder, engine: Engine, component: str = "vae") -> Self:
        """Opens a model folder's autoencoder; its encoder only when it is used."""
        encoder, decoder = f"{component}_encoder", f"{component}_decoder"
        config = read_config(folder, decoder, cls.__name__)
        return cls(engine.open(folder, decoder), config, lambda: engine.open(folder, encoder))

    @cached_property
    def encoder(self) -> Network:
        """The encoder's network."""
        return self._open_encoder()

    @property
    @abstractmethod
    def factor(self) -> int:
        """How many pixels of the image one pixel of the latents is, along each side."""

    @property
    @abstractmethod
    def sample_size(self) -> int:
        """A side of the pictures that it was trained on, in pixels: what tiles have."""

    @abstractmethod
    def encode(self, sample: Array) -> DiagonalGaussian | CertainLatents:
        """The latents of images, or their distribution: (batch, 3, height, width) in [-1, 1]; unscaled."""

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return int(self.config["latent_channels"])

    def decode(self, latents: Array) -> Array:
        """The images of unscaled latents: (batch, 3, height * factor, width * factor) in about [-1, 1], float32."""
        return self._run(self._decoded, decode_tiled, latents)

    def enable_tiling(self, tile_latent_size: int | None = None) -> None:
        """Large pictures are encoded and decoded tile by tile, which overlap: less memory, a slightly other picture.

        Args:
            tile_latent_size: side of a tile in pixels of the latents; that of the training's pictures when None.
        """
        size = self.sample_size // self.factor if tile_latent_size is None else tile_latent_size
        if size < 2:
            raise ValueError(f"tile_latent_size must be at least 2, got {size}")
        self._tile_latent_size = size

    def disable_tiling(self) -> None:
        """Pictures are encoded and decoded whole again."""
        self._tile_latent_size = None

    def enable_slicing(self) -> None:
        """The images of a batch are encoded and decoded one by one: less memory, the same pictures."""
        self._slices = True

    def disable_slicing(self) -> None:
        """A batch is encoded and decoded at once again."""
        self._slices = False

    def _encoded(self, sample: Array) -> Array:
        """What the encoder's only output is, for (batch, 3, height, width) in [-1, 1]."""
        (output,) = self.encoder({"sample": sample}).values()
        return float32(output)

    def _decoded(self, latents: Array) -> Array:
        return float32(self.decoder({"latent_sample": latents})["sample"])

    def _run(self, network: Callable[[Array], Array], tiled: Any, batch: Array) -> Array:
        """What a network makes of a batch, in tiles and slices if they are enabled."""
        run = network
        if self._tile_latent_size is not None:
            tiles = {"tile_latent_size": self._tile_latent_size, "overlap": _TILE_OVERLAP, "factor": self.factor}
            run = functools.partial(tiled, network, **tiles)
        return sliced(run, batch) if self._slices and len(batch) > 1 else run(batch)

    def scale(self, latents: Array) -> Array:
        """What the UNet works on: unit variance, from the encoder's latents."""
        shift = self.config["shift_factor"] or 0.0
        return (latents - np.float32(shift)) * np.float32(self.config["scaling_factor"])

    def unscale(self, latents: Array) -> Array:
        """The inverse of `scale`: what the decoder takes."""
        shift = self.config["shift_factor"] or 0.0
        return latents / np.float32(self.config["scaling_factor"]) + np.float32(shift)

    def close(self) -> None:
        """Gives the engine's memory back."""
        self.decoder.close()
        if "encoder" in self.__dict__:
            self.encoder.close()


class AutoencoderKL(Autoencoder):
    """The autoencoder that a UNet was trained with."""

    samples = True

    @property
    def factor(self) -> int:
        """How many pixels of the image one pixel of the latents is, along each side."""
        return int(2 ** (len(self.config["block_out_channels"]) - 1))

    @property
    def sample_size(self) -> int:
        """A side of the pictures that it was trained on, in pixels."""
        size = self.config["sample_size"]
        return int(min(size) if isinstance(size, list | tuple) else size)

    def encode(self, sample: Array) -> DiagonalGaussian:
        """The latents' distribution of images: (batch, 3, height, width) in [-1, 1]; unscaled."""
        return DiagonalGaussian(self._run(self._encoded, encode_tiled, sample))


class AutoencoderTiny(Autoencoder):
    """An autoencoder distilled from a large one (TAESD): pictures of about its quality in a fraction of the time."""

    samples = False

    @property
    def sample_size(self) -> int:
        """A side of diffusers' tiles, in pixels; the configuration names none."""
        return 512

    @property
    def factor(self) -> int:
        """How many pixels of the image one pixel of the latents is, along each side."""
        return int(2 ** (len(self.config["num_encoder_blocks"]) - 1))

    def encode(self, sample: Array) -> CertainLatents:
        """The latents of images: (batch, 3, height, width) in [-1, 1]; unscaled."""
        return CertainLatents(self._run(self._encoded, encode_tiled, sample))


def open_autoencoder(pretrained_model_name_or_path: str | Path, **engine: Any) -> Autoencoder:
    """The autoencoder of a model folder, a checkpoint or a hub id, of whichever class it is.

    Args:
        pretrained_model_name_or_path: see `DiffusionPipeline.from_pretrained`.
        **engine: for `Engine.of`.

    Raises:
        FileNotFoundError: there is no such folder or hub id.
        ValueError: it has no autoencoder of a known class.
    """
    folder = open_model_folder(local_model(pretrained_model_name_or_path))
    found = folder.class_of("vae")
    for kind in (AutoencoderKL, AutoencoderTiny):
        if found == kind.__name__:
            return kind.open(folder, Engine.of(folder, **engine))
    raise ValueError(f"{folder.path} has no AutoencoderKL and no AutoencoderTiny: its vae is a {found}")
