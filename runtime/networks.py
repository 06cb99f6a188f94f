"""The networks of a model folder, under diffusers' class names: configuration, tensor names and constants in one place.

What an engine calls `encoder_hidden_states`, `out_sample` or `latent_parameters` is translated here and nowhere else,
and the constants that belong to a network (an autoencoder's `scaling_factor`) are applied here, once.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from .backends import Array, Network, backend_module, open_network
from .config import FrozenConfig
from .model_folder import ModelFolder, open_model_folder
from .random import Generator, randn
from .source import local_model
from .tiling import decode_tiled, encode_tiled, sliced

_TILE_OVERLAP = 0.25  # of a tile's side, as in diffusers


@dataclass(frozen=True)
class Engine:
    """Which backend opens a network, and on which device."""

    backend: str = "onnxruntime"
    device: str = "cpu"

    def open(self, folder: ModelFolder, network: str) -> Network:
        """Opens the graph that suits this engine best."""
        target = backend_module(self.backend).target(self.device)
        return open_network(folder.graph(network, target), backend=self.backend, device=self.device)


#: class -> what it takes, in diffusers and transformers, for keys that a checkpoint's `config.json` leaves out
DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "AutoencoderKL": {
            "block_out_channels": [64],
            "latent_channels": 4,
            "sample_size": 32,
            "scaling_factor": 0.18215,
            "shift_factor": None,
        },
        "CLIPTextModel": {"num_hidden_layers": 12, "layer_norm_eps": 1e-5},
        "DPTForDepthEstimation": {},
        "StableDiffusionSafetyChecker": {},
        "UNet2DModel": {"sample_size": None, "in_channels": 3},
        "UNet2DConditionModel": {"sample_size": None, "in_channels": 4, "cross_attention_dim": 1280},
    }
)


def read_config(folder: ModelFolder, network: str, class_name: str) -> FrozenConfig:
    """The configuration beside a network's graph, with the defaults of its class where it is silent."""
    return FrozenConfig({**DEFAULTS[class_name], **folder.config(network)})


@dataclass(frozen=True)
class UNetOutput:
    """What a UNet predicts: (batch, out_channels, height, width), float32."""

    sample: Array


class _UNet:
    """A network that takes a timestep."""

    def __init__(self, network: Network, config: FrozenConfig) -> None:
        self.network = network
        self.config = config
        ranks = {spec.name: len(spec.shape) for spec in network.inputs}
        if "timestep" not in ranks:
            raise ValueError(f"this graph is no UNet: it takes {', '.join(ranks)}, and no timestep")
        self._timestep_rank = ranks["timestep"]  # one per image here; a scalar in optimum's exports

    def _predict(self, sample: Array, timestep: float | Array, **others: Array) -> UNetOutput:
        """Runs the network once; a timestep for all of the batch is repeated, if the graph takes one per image."""
        timesteps = np.asarray(timestep, dtype=np.float32)
        if self._timestep_rank:
            timesteps = np.broadcast_to(timesteps, (sample.shape[0],))
        elif timesteps.ndim:
            if np.unique(timesteps).size != 1:
                raise ValueError("this UNet's graph takes one timestep for the whole batch")
            timesteps = timesteps.ravel()[0]
        return UNetOutput(_float32(self.network({"sample": sample, "timestep": timesteps, **others})["out_sample"]))

    def close(self) -> None:
        """Gives the engine's memory back."""
        self.network.close()


class UNet2DModel(_UNet):
    """Predicts noise (or the clean sample) from a noisy image and a timestep: the quicktour's `model`."""

    def __init__(self, network: Network, config: FrozenConfig, folder: ModelFolder, engine: Engine) -> None:
        super().__init__(network, config)
        self._folder, self._engine = folder, engine

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        backend: str = "onnxruntime",
        device: str = "cpu",
        use_safetensors: bool | None = True,
        **source: Any,
    ) -> Self:
        """Opens the UNet of a model folder, a checkpoint or a hub id.

        Args:
            pretrained_model_name_or_path: see `DiffusionPipeline.from_pretrained`.
            backend: the engine that runs it.
            device: where it runs it.
            use_safetensors: must not be False: pickled weights are never loaded.
            **source: `variant`, `revision`, `token`, `cache_dir`, `local_files_only`.

        Raises:
            FileNotFoundError: there is no such folder or hub id, or it has no UNet.
            ValueError: the folder's UNet is of another class.
        """
        if use_safetensors is False:
            raise ValueError("use_safetensors=False asks for pickled weights, which are never loaded")
        folder = open_model_folder(local_model(pretrained_model_name_or_path, **source))
        found = folder.index.get("unet", [None, None])[1]
        if found != cls.__name__:
            raise ValueError(f"{folder.path} has no {cls.__name__}: its unet is a {found}")
        return open_unconditional_unet(folder, Engine(backend, device))  # type: ignore[return-value]

    def to(self, device: str) -> Self:
        """Reopens the network on a device; the model itself is returned.

        Raises:
            ValueError: the backend cannot use the device; the model stays as it was.
        """
        engine = Engine(self._engine.backend, str(device))
        if engine != self._engine:
            network = engine.open(self._folder, "unet")
            self.network.close()
            self.network, self._engine = network, engine
        return self

    def __call__(
        self, sample: Array, timestep: float | Array, class_labels: Array | None = None, return_dict: bool = True
    ) -> Any:
        """Runs the network once.

        Args:
            sample: (batch, in_channels, height, width).
            timestep: one number for the batch, or (batch,).
            class_labels: (batch,) of integers, for a model that has classes; or of times, where they are those.
            return_dict: a `UNetOutput` when true, else a tuple.

        Raises:
            ValueError: labels are missing, or the model has no classes.
        """
        takes = {spec.name: spec for spec in self.network.inputs}
        if (class_labels is None) == ("class_labels" in takes):
            raise ValueError("this model needs class_labels" if class_labels is None else "this model has no classes")
        others = {}
        if class_labels is not None:
            others["class_labels"] = np.asarray(class_labels, dtype=takes["class_labels"].dtype)
        output = self._predict(sample, timestep, **others)
        return output if return_dict else (output.sample,)


class UNet2DConditionModel(_UNet):
    """Predicts noise (or velocity, or the clean sample) from a noisy latent, a timestep and a prompt's embeddings."""

    def __call__(self, sample: Array, timestep: float | Array, encoder_hidden_states: Array) -> UNetOutput:
        """Runs the network once.

        Args:
            sample: (batch, in_channels, height, width); any height and width of at least one pixel.
            timestep: one number for the batch, or (batch,).
            encoder_hidden_states: (batch, length, cross_attention_dim).
        """
        return self._predict(sample, timestep, encoder_hidden_states=encoder_hidden_states)


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


class AutoencoderKL:
    """Images to latents and back. The encoder is opened when it is first used."""

    def __init__(self, decoder: Network, config: FrozenConfig, open_encoder: Callable[[], Network]) -> None:
        self.decoder = decoder
        self.config = config
        self._open_encoder = open_encoder
        self._tile_latent_size: int | None = None
        self._slices = False

    @cached_property
    def encoder(self) -> Network:
        """The encoder's network."""
        return self._open_encoder()

    @property
    def factor(self) -> int:
        """How many pixels of the image one pixel of the latents is, along each side."""
        return int(2 ** (len(self.config["block_out_channels"]) - 1))

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return int(self.config["latent_channels"])

    def encode(self, sample: Array) -> DiagonalGaussian:
        """The latents' distribution of images: (batch, 3, height, width) in [-1, 1]; unscaled."""
        return DiagonalGaussian(self._run(self._encoded, encode_tiled, sample))

    def decode(self, latents: Array) -> Array:
        """The images of unscaled latents: (batch, 3, height * factor, width * factor) in about [-1, 1], float32."""
        return self._run(self._decoded, decode_tiled, latents)

    def enable_tiling(self, tile_latent_size: int | None = None) -> None:
        """Large pictures are encoded and decoded tile by tile, which overlap: less memory, a slightly other picture.

        Args:
            tile_latent_size: side of a tile in pixels of the latents; that of the training's pictures when None.
        """
        if tile_latent_size is None:
            size = self.config["sample_size"]
            tile_latent_size = int(min(size) if isinstance(size, list | tuple) else size) // self.factor
        if tile_latent_size < 2:
            raise ValueError(f"tile_latent_size must be at least 2, got {tile_latent_size}")
        self._tile_latent_size = tile_latent_size

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
        return _float32(self.encoder({"sample": sample})["latent_parameters"])

    def _decoded(self, latents: Array) -> Array:
        return _float32(self.decoder({"latent_sample": latents})["sample"])

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


@dataclass(frozen=True)
class DepthEstimatorOutput:
    """How near everything is: (batch, height, width), float32, larger is nearer, of no known scale."""

    predicted_depth: Array


class DPTForDepthEstimation:
    """Depth from a picture. The network is opened when it is first used: who brings a depth map needs none."""

    def __init__(self, config: FrozenConfig, open_network: Callable[[], Network]) -> None:
        self.config = config
        self._open_network = open_network

    @cached_property
    def network(self) -> Network:
        """The estimator's network."""
        return self._open_network()

    def __call__(self, pixel_values: Array) -> DepthEstimatorOutput:
        """The depth of (batch, 3, height, width), as `DPTImageProcessor` makes it."""
        return DepthEstimatorOutput(_float32(self.network({"pixel_values": pixel_values})["predicted_depth"]))

    def close(self) -> None:
        """Gives the engine's memory back."""
        if "network" in self.__dict__:
            self.network.close()


class StableDiffusionSafetyChecker:
    """Finds pictures that are not safe for work. The network is opened when it is first used."""

    def __init__(self, config: FrozenConfig, open_network: Callable[[], Network]) -> None:
        self.config = config
        self._open_network = open_network

    @cached_property
    def network(self) -> Network:
        """The checker's network."""
        return self._open_network()

    def __call__(self, images: Array, clip_input: Array) -> tuple[Array, list[bool]]:
        """The images with those black that are not safe for work, and which they are.

        Args:
            images: (batch, height, width, 3); left as they are.
            clip_input: the same, (batch, 3, height, width), as `CLIPImageProcessor` makes it.
        """
        found = self.network({"clip_input": clip_input}, ["has_nsfw_concepts"])["has_nsfw_concepts"]
        return np.where(found[:, None, None, None], np.zeros_like(images), images), found.tolist()

    def close(self) -> None:
        """Gives the engine's memory back."""
        if "network" in self.__dict__:
            self.network.close()


@dataclass(frozen=True)
class TextEncoderOutput:
    """What a CLIP text model makes of a prompt: arrays of float32."""

    last_hidden_state: Array  # (batch, length, width), after the final layer norm
    pooler_output: Array  # (batch, width)


@dataclass(frozen=True)
class LayerNorm:
    """A layer norm over the last axis (Ba et al. 2016, arXiv:1607.06450)."""

    weight: Array  # (width,)
    bias: Array  # (width,)
    epsilon: float

    def __call__(self, hidden_state: Array) -> Array:
        """(..., width), float32."""
        centred = hidden_state - hidden_state.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        return np.asarray(centred / np.sqrt(variance + self.epsilon) * self.weight + self.bias, dtype=np.float32)


class CLIPTextModel:
    """Token ids to text embeddings."""

    def __init__(self, network: Network, config: FrozenConfig, read_final_layer_norm: Callable[[], LayerNorm]) -> None:
        self.network = network
        self.config = config
        self._read_final_layer_norm = read_final_layer_norm

    @cached_property
    def final_layer_norm(self) -> LayerNorm:
        """The norm after the last layer, which `clip_skip` applies to an earlier one's output."""
        return self._read_final_layer_norm()

    def __call__(self, input_ids: Array) -> TextEncoderOutput:
        """The embeddings of (batch, length) token ids."""
        outputs = self.network({"input_ids": input_ids}, ["last_hidden_state", "pooler_output"])
        return TextEncoderOutput(_float32(outputs["last_hidden_state"]), _float32(outputs["pooler_output"]))

    def hidden_state(self, input_ids: Array, layers_skipped: int) -> Array:
        """The output of an earlier layer, (batch, length, width), through the final layer norm.

        Args:
            input_ids: (batch, length).
            layers_skipped: how many of the last layers to leave out; 1 is the last but one's output.

        Raises:
            ValueError: there are not so many layers, or the graph does not give their outputs.
        """
        layers = int(self.config["num_hidden_layers"])
        if not 0 <= layers_skipped < layers:
            raise ValueError(f"clip_skip must lie between 0 and {layers - 1} for this model, got {layers_skipped}")
        name = f"hidden_states.{layers - layers_skipped}"
        if name not in {spec.name for spec in self.network.outputs}:
            raise ValueError(f"clip_skip needs a text encoder exported with its hidden states: it has no output {name}")
        return self.final_layer_norm(_float32(self.network({"input_ids": input_ids}, [name])[name]))

    def close(self) -> None:
        """Gives the engine's memory back."""
        self.network.close()


def open_unconditional_unet(folder: ModelFolder, engine: Engine, component: str = "unet") -> UNet2DModel:
    """Opens a model folder's unconditional UNet."""
    config = read_config(folder, component, "UNet2DModel")
    return UNet2DModel(engine.open(folder, component), config, folder, engine)


def open_unet(folder: ModelFolder, engine: Engine, component: str = "unet") -> UNet2DConditionModel:
    """Opens a model folder's UNet."""
    return UNet2DConditionModel(engine.open(folder, component), read_config(folder, component, "UNet2DConditionModel"))


def open_autoencoder(folder: ModelFolder, engine: Engine, component: str = "vae") -> AutoencoderKL:
    """Opens a model folder's autoencoder; its encoder only when it is used."""
    encoder, decoder = f"{component}_encoder", f"{component}_decoder"
    config = read_config(folder, decoder, "AutoencoderKL")
    return AutoencoderKL(engine.open(folder, decoder), config, lambda: engine.open(folder, encoder))


def open_text_encoder(folder: ModelFolder, engine: Engine, component: str = "text_encoder") -> CLIPTextModel:
    """Opens a model folder's text encoder."""
    config = read_config(folder, component, "CLIPTextModel")

    def read_final_layer_norm() -> LayerNorm:
        weight, bias = (folder.tensor(component, f"{FINAL_LAYER_NORM}.{part}") for part in ("weight", "bias"))
        return LayerNorm(_float32(weight), _float32(bias), float(config["layer_norm_eps"]))

    return CLIPTextModel(engine.open(folder, component), config, read_final_layer_norm)


def open_depth_estimator(
    folder: ModelFolder, engine: Engine, component: str = "depth_estimator"
) -> DPTForDepthEstimation:
    """A model folder's depth estimator; it is opened when it is used."""
    config = read_config(folder, component, "DPTForDepthEstimation")
    return DPTForDepthEstimation(config, lambda: engine.open(folder, component))


def open_safety_checker(
    folder: ModelFolder, engine: Engine, component: str = "safety_checker"
) -> StableDiffusionSafetyChecker:
    """A model folder's safety checker; it is opened when it is used."""
    config = read_config(folder, component, "StableDiffusionSafetyChecker")
    return StableDiffusionSafetyChecker(config, lambda: engine.open(folder, component))


#: the reference's name of the norm that follows the last layer of a text encoder
FINAL_LAYER_NORM = "text_model.final_layer_norm"

#: the class named in model_index.json -> how it is opened
NETWORK_OPENERS: dict[str, Callable[[ModelFolder, Engine, str], Any]] = {
    "AutoencoderKL": open_autoencoder,
    "CLIPTextModel": open_text_encoder,
    "DPTForDepthEstimation": open_depth_estimator,
    "StableDiffusionSafetyChecker": open_safety_checker,
    "UNet2DConditionModel": open_unet,
    "UNet2DModel": open_unconditional_unet,
}


def _float32(array: Array) -> Array:
    return np.asarray(array, dtype=np.float32)
