"""What opens a network, and the configuration beside its graph."""

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..backends import COMPILED, Array, Network, Tuning, backend_module, open_network
from ..backends.choice import chosen_backend
from ..config import FrozenConfig
from ..model_folder import ModelFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """Which backend opens a network, on which device, and how it computes there."""

    backend: str = "onnxruntime"
    device: str = "cpu"
    engines: Path | None = None  # where a backend that runs compiled engines finds them; the user's cache when None
    tuning: Tuning = field(default_factory=Tuning)
    precisions: Mapping[str, str] = field(default_factory=dict)  # network -> its own, in place of the tuning's
    low_memory: bool = False  # whether a network is opened for what it has to do, and closed after that

    @classmethod
    def of(
        cls,
        folder: ModelFolder,
        *,
        backend: str = "auto",
        device: str = "cpu",
        engines: str | Path | None = None,
        precision: str | Mapping[str, str] | None = None,
        threads: int | None = None,
        engine_options: Mapping[str, Any] | None = None,
        low_memory: bool = False,
    ) -> "Engine":
        """The engine that a user names, for a model.

        Args:
            folder: the model; what "auto" chooses depends on its size.
            backend: a key of `BACKENDS`, or "auto".
            device: where it runs.
            engines: see `DiffusionPipeline.from_pretrained`, as for what follows.
            precision: one for all networks, or by network; those that are not named keep the graph's.
            threads: of the CPU.
            engine_options: the engine's own, by its own names.
            low_memory: whether networks are open only as long as they work.

        Raises:
            ValueError: a folder of engines for a backend that runs none; an unknown precision or network.
        """
        own = dict(precision) if isinstance(precision, Mapping) else {}
        tuning = Tuning(
            precision=None if isinstance(precision, Mapping) else precision,
            threads=threads,
            options=dict(engine_options or {}),
        )
        for network, each in own.items():
            replace(tuning, precision=each)  # which refuses an unknown one
            if not folder.has_graph(network):
                raise ValueError(f"{folder.path} has no network {network!r}, which precision names")
        if backend == "auto":
            precisions = {each for each in (tuning.precision, *own.values()) if each is not None}
            backend = chosen_backend(folder.weight_bytes, device, precisions).backend
        if engines is not None and backend not in COMPILED:
            raise ValueError(f"engines are of the backends {' and '.join(COMPILED)}; {backend} runs graphs")
        return cls(backend, device, None if engines is None else Path(engines), tuning, own, low_memory)

    def tuned(self, network: str) -> Tuning:
        """How it computes one of the networks."""
        precision = self.precisions.get(network)
        return self.tuning if precision is None else replace(self.tuning, precision=precision)

    @property
    def compiled(self) -> bool:
        """Whether the backend runs what `safelight build` compiled, and no graphs."""
        return self.backend in COMPILED

    def open(self, folder: ModelFolder, network: str) -> Network:
        """Opens a network: its compiled engine, or else the graph that suits this backend best, or the canonical one
        where it cannot open that.
        """
        if self.compiled:
            if self.tuned(network) != Tuning():
                raise ValueError(f"the {self.backend} backend runs what was compiled: build it with another --dtype")
            opened_engine: Network = backend_module(self.backend).open_engine(
                folder, network, device=self.device, engines=self.engines
            )
            return opened_engine
        own = folder.graph(network, backend_module(self.backend).target(self.device))
        how: dict[str, Any] = {"backend": self.backend, "device": self.device, "tuning": self.tuned(network)}
        try:
            return open_network(own, **how)
        except ValueError as error:
            canonical = folder.graph(network)
            if own == canonical:
                raise
            opened = open_network(canonical, **how)
            logger.warning("%s: %s is used in place of %s: %s", network, canonical.name, own.name, error)
            return opened


def engine_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of a `from_pretrained`'s options that are for `Engine.of`, and the others."""
    own = inspect.signature(Engine.of).parameters.keys()
    engine = {name: value for name, value in options.items() if name in own}
    return engine, {name: value for name, value in options.items() if name not in own}


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
