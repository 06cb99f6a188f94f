"""Text encoders: token ids to what steers a UNet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..backends import Array, Network
from ..config import FrozenConfig
from ..model_folder import ModelFolder
from .engine import Engine, float32, read_config

#: the reference's name of the norm that follows the last layer
FINAL_LAYER_NORM = "text_model.final_layer_norm"


@dataclass(frozen=True)
class TextEncoderOutput:
    """What a CLIP text model makes of a prompt: arrays of float32."""

    last_hidden_state: Array  # (batch, length, width), after the final layer norm
    pooler_output: Array  # (batch, width)


@dataclass(frozen=True)
class ProjectedTextOutput:
    """What a CLIP text model with a projection makes of a prompt: arrays of float32."""

    text_embeds: Array  # (batch, projection_dim)
    last_hidden_state: Array  # (batch, length, width), after the final layer norm


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


class _CLIPText:
    """A network from token ids to embeddings, and its outputs by name."""

    def __init__(self, network: Network, config: FrozenConfig) -> None:
        self.network = network
        self.config = config

    def outputs(self, input_ids: Array, names: Sequence[str]) -> list[Array]:
        """Some of the network's outputs for (batch, length) token ids, float32."""
        found = self.network({"input_ids": input_ids}, names)
        return [float32(found[name]) for name in names]

    def layer_output(self, clip_skip: int, *, left_out: int = 0) -> str:
        """The name of the output of an earlier layer, before the final layer norm.

        Args:
            clip_skip: how many of the last layers a user leaves out; 1 is the last but one's output.
            left_out: how many are left out anyway.

        Raises:
            ValueError: there are not so many layers, or the graph does not give their outputs.
        """
        layers = int(self.config["num_hidden_layers"]) - left_out
        if not 0 <= clip_skip < layers:
            raise ValueError(f"clip_skip must lie between 0 and {layers - 1} for this model, got {clip_skip}")
        name = f"hidden_states.{layers - clip_skip}"
        if name not in {spec.name for spec in self.network.outputs}:
            raise ValueError(f"clip_skip needs a text encoder exported with its hidden states: it has no output {name}")
        return name

    def close(self) -> None:
        """Gives the engine's memory back."""
        self.network.close()


class CLIPTextModel(_CLIPText):
    """Token ids to text embeddings."""

    def __init__(self, network: Network, config: FrozenConfig, read_final_layer_norm: Callable[[], LayerNorm]) -> None:
        super().__init__(network, config)
        self._read_final_layer_norm = read_final_layer_norm

    @cached_property
    def final_layer_norm(self) -> LayerNorm:
        """The norm after the last layer, which `clip_skip` applies to an earlier one's output."""
        return self._read_final_layer_norm()

    def __call__(self, input_ids: Array) -> TextEncoderOutput:
        """The embeddings of (batch, length) token ids."""
        return TextEncoderOutput(*self.outputs(input_ids, ["last_hidden_state", "pooler_output"]))

    def hidden_state(self, input_ids: Array, clip_skip: int) -> Array:
        """The output of an earlier layer, (batch, length, width), through the final layer norm; see `layer_output`."""
        (hidden,) = self.outputs(input_ids, [self.layer_output(clip_skip)])
        return self.final_layer_norm(hidden)


class CLIPTextModelWithProjection(_CLIPText):
    """Token ids to text embeddings, and to one vector for the whole text: SDXL's second text encoder."""

    def __call__(self, input_ids: Array) -> ProjectedTextOutput:
        """The embeddings of (batch, length) token ids."""
        return ProjectedTextOutput(*self.outputs(input_ids, ["text_embeds", "last_hidden_state"]))


def open_text_encoder(folder: ModelFolder, engine: Engine, component: str = "text_encoder") -> CLIPTextModel:
    """Opens a model folder's text encoder."""
    config = read_config(folder, component, "CLIPTextModel")

    def read_final_layer_norm() -> LayerNorm:
        weight, bias = (folder.tensor(component, f"{FINAL_LAYER_NORM}.{part}") for part in ("weight", "bias"))
        return LayerNorm(float32(weight), float32(bias), float(config["layer_norm_eps"]))

    return CLIPTextModel(engine.open(folder, component), config, read_final_layer_norm)


def open_projecting_text_encoder(
    folder: ModelFolder, engine: Engine, component: str = "text_encoder_2"
) -> CLIPTextModelWithProjection:
    """Opens a model folder's text encoder that has a projection."""
    config = read_config(folder, component, "CLIPTextModelWithProjection")
    return CLIPTextModelWithProjection(engine.open(folder, component), config)
