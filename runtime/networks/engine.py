"""What opens a network, and the configuration beside its graph."""

import inspect
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..backends import AUTO, COMPILED, Array, Network, Tuning, backend_module, open_network
from ..backends.choice import chosen_backend
from ..backends.probe import check_engine
from ..backends.recently_used import RecentlyUsed
from ..config import FrozenConfig
from ..manifest import SHALLOW
from ..model_folder import ModelFolder
from .on_demand import OnDemandNetwork, recorded_specs

logger = logging.getLogger(__name__)

#: weights by name that take the place of a folder's
Initializers = Mapping[str, Array]


@dataclass(frozen=True)
class Engine:
    """Which backend opens a network, on which device, and how it computes there."""

    backend: str = "onnxruntime"
    device: str = "cpu"
    engines: Path | None = None  # where a backend that runs compiled engines finds them; the user's cache when None
    tuning: Tuning = field(default_factory=Tuning)
    precisions: Mapping[str, str] = field(default_factory=dict)  # network -> its own, in place of the tuning's
    low_memory: bool = False  # whether a network is opened for what it has to do, and closed after that
    #: where those are while they are open, one at a time
    room: RecentlyUsed[Network] = field(default_factory=lambda: RecentlyUsed(1), compare=False, repr=False)

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
            integers = folder.computes_in_integers
            backend = chosen_backend(folder.weight_bytes, device, precisions, integers=integers).backend
        if engines is not None and backend not in COMPILED:
            raise ValueError(f"engines are of the backends {' and '.join(COMPILED)}; {backend} runs graphs")
        return cls(backend, device, None if engines is None else Path(engines), tuning, own, low_memory)

    def tuned(self, network: str) -> Tuning:
        """How it computes one of the networks."""
        precision = self.precisions.get(network)
        return self.tuning if precision is None else replace(self.tuning, precision=precision)

    def precision(self, network: str) -> str | None:
        """What one of the networks is to be computed in, "auto" decided; None where that is what its graph says.

        Raises:
            ValueError: the device is not there.
        """
        asked = self.tuned(network).precision
        if asked != AUTO:
            return asked
        decided: str | None = backend_module(self.backend).fastest_precision(self.device)
        return decided

    @property
    def has_choices(self) -> bool:
        """Whether a network may be computed in another precision than its graph's."""
        return self.backend == "openvino" or self.tuning.precision is not None or bool(self.precisions)

    def describe(self, networks: Collection[str]) -> str:
        """What runs these networks, where, and in which precision: "openvino on cpu: unet bf16, vae_decoder fp32"."""
        found = {network: self.precision(network) or "as exported" for network in networks}
        same = set(found.values())
        each = ", ".join(same if len(same) == 1 else (f"{network} {found[network]}" for network in found))
        return f"{self.backend} on {self.device}: {each}"

    @property
    def compiled(self) -> bool:
        """Whether the backend runs what `safelight build` compiled, and no graphs."""
        return self.backend in COMPILED

    def open(self, folder: ModelFolder, network: str, *, variant: str | None = None) -> Network:
        """Opens a network: its compiled engine, or else the graph that suits this backend best, or the canonical one
        where it cannot open that. With `low_memory` it is opened when it is called, and no other one stays open then.

        Args:
            folder: the model.
            network: by its name there.
            variant: of it, see `ModelFolder.graph`; the network itself when None.

        Raises:
            FileNotFoundError: the folder, or the cache of engines, lacks the network.
            ValueError: a file is not the one that was exported; or the backend lacks the device, the precision or an
                option, or cannot open the graph, which with `low_memory` turns out at the first call; or a variant of a
                compiled engine, of which there are none.
        """
        return self.open_with(folder, network, None, variant=variant)

    def open_with(
        self,
        folder: ModelFolder,
        network: str,
        initializers: Callable[[], Initializers] | None,
        *,
        variant: str | None = None,
    ) -> Network:
        """Opens a network, some of whose weights are others than the folder's; see `open`.

        Args:
            folder: the model.
            network: "unet", "text_encoder", ...
            initializers: gives these weights by name, each time that the network is opened; none when None.
            variant: of the network.
        """
        if self.compiled and variant is not None:
            raise ValueError(f"the {self.backend} backend runs what was compiled, and no {variant} graph is")
        if self.compiled and self.tuned(network) != Tuning():
            raise ValueError(f"the {self.backend} backend runs what was compiled: build it with another --dtype")
        if not self.low_memory or variant == SHALLOW:  # which is small, and called in turns with a large one
            return self._opened(folder, network, initializers, variant)
        record = folder.manifest.components.get(network) if folder.manifest is not None else None
        specs = None
        if record is not None and not self.compiled and variant is None:  # else it has to be opened to be known
            check_engine(self.backend, self.device, self.tuned(network))
            self._graph(folder, network)
            specs = recorded_specs(record)
        return OnDemandNetwork(network, lambda: self._opened(folder, network, initializers, variant), self.room, specs)

    def release(self) -> None:
        """Closes what is open of the networks that are opened on demand."""
        self.room.close()

    def _opened(
        self, folder: ModelFolder, network: str, initializers: Callable[[], Initializers] | None, variant: str | None
    ) -> Network:
        if self.compiled:
            opened_engine: Network = backend_module(self.backend).open_engine(
                folder, network, device=self.device, engines=self.engines
            )
            return opened_engine
        own = self._graph(folder, network, variant)
        how: dict[str, Any] = {"backend": self.backend, "device": self.device, "tuning": self.tuned(network)}
        if initializers is not None:
            how["initializers"] = initializers()
        try:
            return open_network(own, **how)
        except ValueError as error:
            canonical = folder.graph(network, variant=variant)
            if own == canonical:
                raise
            opened = open_network(canonical, **how)
            logger.warning("%s: %s is used in place of %s: %s", network, canonical.name, own.name, error)
            return opened

    def _graph(self, folder: ModelFolder, network: str, variant: str | None = None) -> Path:
        return folder.graph(network, backend_module(self.backend).target(self.device), variant=variant)


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
