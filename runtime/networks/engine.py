"""What opens a network, and the configuration beside its graph."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..backends import COMPILED, Array, Network, backend_module, open_network
from ..config import FrozenConfig
from ..model_folder import ModelFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """Which backend opens a network, and on which device."""

    backend: str = "onnxruntime"
    device: str = "cpu"
    engines: Path | None = None  # where a backend that runs compiled engines finds them; the user's cache when None

    @classmethod
    def of(cls, backend: str, device: str, engines: str | Path | None) -> "Engine":
        """The engine that a user names.

        Raises:
            ValueError: a folder of engines for a backend that runs none.
        """
        if engines is not None and backend not in COMPILED:
            raise ValueError(f"engines are of the backends {' and '.join(COMPILED)}; {backend} runs graphs")
        return Engine(backend, device, None if engines is None else Path(engines))

    @property
    def compiled(self) -> bool:
        """Whether the backend runs what `safelight build` compiled, and no graphs."""
        return self.backend in COMPILED

    def open(self, folder: ModelFolder, network: str) -> Network:
        """Opens a network: its compiled engine, or else the graph that suits this backend best, or the canonical one
        where it cannot open that.
        """
        if self.compiled:
            opened_engine: Network = backend_module(self.backend).open_engine(
                folder, network, device=self.device, engines=self.engines
            )
            return opened_engine
        own = folder.graph(network, backend_module(self.backend).target(self.device))
        try:
            return open_network(own, backend=self.backend, device=self.device)
        except ValueError as error:
            canonical = folder.graph(network)
            if own == canonical:
                raise
            opened = open_network(canonical, backend=self.backend, device=self.device)
            logger.warning("%s: %s is used in place of %s: %s", network, canonical.name, own.name, error)
            return opened


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
        "AutoencoderTiny": {
            "latent_channels": 4,
            "num_encoder_blocks": [1, 3, 3, 3],
            "scaling_factor": 1.0,
            "shift_factor": 0.0,
        },
        "CLIPTextModel": {
            "num_hidden_layers": 12,
            "hidden_size": 512,
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": 77,
        },
        "CLIPTextModelWithProjection": {
            "num_hidden_layers": 12,
            "hidden_size": 512,
            "projection_dim": 512,
            "max_position_embeddings": 77,
        },
        "DPTForDepthEstimation": {},
        "StableDiffusionSafetyChecker": {},
        "UNet2DModel": {"sample_size": None, "in_channels": 3, "block_out_channels": [224, 448, 672, 896]},
        "UNet2DConditionModel": {
            "sample_size": None,
            "in_channels": 4,
            "cross_attention_dim": 1280,
            "addition_embed_type": None,
            "addition_time_embed_dim": None,
            "projection_class_embeddings_input_dim": None,
            "time_cond_proj_dim": None,
        },
    }
)


def read_config(folder: ModelFolder, network: str, class_name: str) -> FrozenConfig:
    """The configuration beside a network's graph, with the defaults of its class where it is silent."""
    return FrozenConfig({**DEFAULTS[class_name], **folder.config(network)})


def float32(array: Array) -> Array:
    """The array in the dtype that everything outside the networks is computed in."""
    return np.asarray(array, dtype=np.float32)
