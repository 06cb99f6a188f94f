"""UNets: what noise there is in a sample."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..backends import Array, Network
from ..config import FrozenConfig
from ..model_folder import ModelFolder, open_model_folder
from ..source import local_model
from .deep_cache import DeepCacheNetwork
from .engine import Engine, engine_options, float32, read_config


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
        return UNetOutput(float32(self.network({"sample": sample, "timestep": timesteps, **others})["out_sample"]))

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
        use_safetensors: bool | None = True,
        **options: Any,
    ) -> Self:
        """Opens the UNet of a model folder, a checkpoint or a hub id.

        Args:
            pretrained_model_name_or_path: see `DiffusionPipeline.from_pretrained`.
            use_safetensors: must not be False: pickled weights are never loaded.
            **options: as of `DiffusionPipeline.from_pretrained`: the engine's (`backend`, `device`, `precision` and
                their kin), and the source's (`variant`, `revision`, `token`, `cache_dir`, `local_files_only`).

        Raises:
            FileNotFoundError: there is no such folder or hub id, or it has no UNet.
            ValueError: the folder's UNet is of another class.
        """
        if use_safetensors is False:
            raise ValueError("use_safetensors=False asks for pickled weights, which are never loaded")
        engine, source = engine_options(options)
        folder = open_model_folder(local_model(pretrained_model_name_or_path, **source))
        found = folder.class_of("unet")
        if found != cls.__name__:
            raise ValueError(f"{folder.path} has no {cls.__name__}: its unet is a {found}")
        return open_unconditional_unet(folder, Engine.of(folder, **engine))  # type: ignore[return-value]

    def to(self, device: str) -> Self:
        """Reopens the network on a device; the model itself is returned.

        Raises:
            ValueError: the backend cannot use the device; the model stays as it was.
        """
        engine = replace(self._engine, device=str(device))
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

    def for_picture(self) -> "UNet2DConditionModel":
        """The model for the calls of one picture, in their order: this one, unless it caches between them."""
        network = self.network
        return (
            UNet2DConditionModel(network.for_picture(), self.config) if isinstance(network, DeepCacheNetwork) else self
        )

    def __call__(
        self,
        sample: Array,
        timestep: float | Array,
        encoder_hidden_states: Array,
        timestep_cond: Array | None = None,
        added_cond_kwargs: Mapping[str, Array] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Runs the network once.

        Args:
            sample: (batch, in_channels, height, width); any height and width of at least one pixel.
            timestep: one number for the batch, or (batch,).
            encoder_hidden_states: (batch, length, cross_attention_dim).
            timestep_cond: (batch, time_cond_proj_dim), of a latent consistency model: the embedded guidance scale.
            added_cond_kwargs: of SDXL: `text_embeds`, (batch, projection_dim), and `time_ids`, (batch, 5 or 6).
            return_dict: a `UNetOutput` when true, else a tuple.

        Raises:
            ValueError: the network lacks an input, or does not know one.
        """
        added = dict(added_cond_kwargs or {})
        if timestep_cond is not None:
            added["timestep_cond"] = timestep_cond
        output = self._predict(sample, timestep, encoder_hidden_states=encoder_hidden_states, **added)
        return output if return_dict else (output.sample,)


def open_unconditional_unet(folder: ModelFolder, engine: Engine, component: str = "unet") -> UNet2DModel:
    """Opens a model folder's unconditional UNet."""
    config = read_config(folder, component, "UNet2DModel")
    return UNet2DModel(engine.open(folder, component), config, folder, engine)


def open_unet(folder: ModelFolder, engine: Engine, component: str = "unet") -> UNet2DConditionModel:
    """Opens a model folder's UNet."""
    return UNet2DConditionModel(engine.open(folder, component), read_config(folder, component, "UNet2DConditionModel"))
