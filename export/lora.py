"""LoRA files (Hu et al. 2021, arXiv:2106.09685), fused into the weights that are exported.

For some layers of a network a file has two thin matrices, `down` (rank, in) and `up` (out, rank), and sometimes a
number alpha, which is the rank where it is missing. Fused at a scale, the weight W (out, in) of a layer becomes

    W + scale * alpha / rank * up @ down

in float32. Of a convolution (LoCon), `down` is one to `rank` channels and `up` one of 1x1 after it; with the kernel
counted to what goes in, the formula is the same. Checked against diffusers' `fuse_lora`, with this difference: of
alphas that are not all alike, diffusers gives the most common one to every attention layer, here each has its own.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from safelight.reference.checkpoint import PICKLE_SUFFIXES, Weights, abbreviated, read_config
from safelight.reference.safetensors_file import SafetensorsFile
from safelight.runtime.manifest import file_record

from .checkpoint import Component
from .lora_names import COMPONENTS, Role, layer_finder, other_method, parse_key, plain_spelling
from .networks import build

Shapes = Mapping[str, Sequence[int]]  # of a network's weights, by name

_METADATA = "lora_adapter_metadata"  # PEFT's configuration as diffusers saves it: JSON, `component.` before each key
#: what a training can start from without changing the weights that the LoRA is a difference to
_STARTS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class LoraFile:
    """A LoRA to fuse, and how strongly.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder or a pickle, or the scale is not finite.
    """

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"{self.path}: the scale of a LoRA must be a finite number, got {self.scale}")
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder; name the LoRA's safetensors file in it")
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no LoRA {self.path}")
        if self.path.suffix.lower() in PICKLE_SUFFIXES:
            raise ValueError(f"{self.path} is a pickle, and opening a pickle can run code: bring it as .safetensors")

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `FILE` or `FILE:SCALE` means; a colon that no number follows belongs to the file's name."""
        path, colon, number = text.rpartition(":")
        try:
            scale = float(number) if colon else None
        except ValueError:
            if Path(path).is_file() and not Path(text).exists():
                raise ValueError(f"{path}: the scale of a LoRA must be a number, got {number!r}") from None
            scale = None
        return cls(Path(text)) if scale is None else cls(Path(path), scale)


@dataclass(frozen=True)
class LoraLayer:
    """The change of one layer, as a file holds it.

    Attributes:
        weight: the network's name of the parameter that changes.
        down: the file's key of (rank, in) or (rank, in, height, width).
        up: the file's key of (out, rank) or (out, rank, 1, 1).
        scaling: alpha / rank.
    """

    weight: str
    down: str
    up: str
    scaling: float


@dataclass(frozen=True)
class Lora:
    """A LoRA file, each of whose tensors belongs to a layer of the networks that it was opened for."""

    file: LoraFile
    sha256: str
    layers: Mapping[str, Sequence[LoraLayer]]  # component -> those of its layers that change

    def record(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "file": self.file.path.name,
            "sha256": self.sha256,
            "scale": self.file.scale,
            "fused": {component: len(layers) for component, layers in self.layers.items()},
        }


def open_loras(files: Iterable[LoraFile], components: Iterable[Component]) -> list[Lora]:
    """The LoRAs, each checked against the networks of a checkpoint by names and shapes alone; see `open_lora`."""
    files = list(files)
    targets = [component for component in components if component.name in COMPONENTS] if files else []
    networks = {component.name: _shapes(component) for component in targets}
    return [open_lora(file, networks) for file in files]


def open_lora(file: LoraFile, networks: Mapping[str, Shapes]) -> Lora:
    """What a file holds for some networks.

    Args:
        file: a safetensors file of any trainer's spelling.
        networks: the shapes of each component's weights.

    Raises:
        ValueError: a tensor belongs to no layer, a layer has another shape or lacks one of its matrices, the file is
            of another method than LoRA, or broken. The message names what it is about.
    """
    tensors = SafetensorsFile(file.path)
    try:
        layers = _layers(tensors, networks)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error
    return Lora(file, file_record(file.path).sha256, layers)


class FusedWeights:
    """The weights of a network with LoRAs added, one after the other, to each when it is read; in float32 then."""

    def __init__(self, weights: Weights, component: str, loras: Iterable[Lora]) -> None:
        self.shapes = weights.shapes
        self._weights = weights
        self._changes: dict[str, list[tuple[LoraFile, SafetensorsFile, LoraLayer]]] = defaultdict(list)
        for lora in loras:
            tensors = SafetensorsFile(lora.file.path)
            for layer in lora.layers.get(component, ()):
                self._changes[layer.weight].append((lora.file, tensors, layer))

    def __getitem__(self, name: str) -> Tensor:
        """A weight, changed.

        Raises:
            KeyError: the network has none of this name.
            ValueError: a change is not finite.
        """
        tensor = self._weights[name]
        for change in self._changes.get(name, ()):
            tensor = tensor.float() + _change(*change).reshape(tensor.shape)
        return tensor


def fused(weights: Weights, component: str, loras: Iterable[Lora]) -> Weights:
    """The weights of a component with LoRAs in them; those that do not touch it are passed over."""
    touching = [lora for lora in loras if lora.layers.get(component)]
    return FusedWeights(weights, component, touching) if touching else weights


def _change(file: LoraFile, tensors: SafetensorsFile, layer: LoraLayer) -> Tensor:
    """What a LoRA adds to a weight: (out, in * height * width), float32."""
    up, down = (tensors.read(key).float().flatten(1) for key in (layer.up, layer.down))
    change: Tensor = file.scale * layer.scaling * (up @ down)
    if not torch.isfinite(change).all():
        raise ValueError(f"{file.path}: {layer.up} times {layer.down} has numbers that are not finite")
    return change


def _shapes(component: Component) -> Shapes:
    network = build(component.class_name, read_config(component.path), torch.float32)
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def _layers(tensors: SafetensorsFile, networks: Mapping[str, Shapes]) -> dict[str, list[LoraLayer]]:
    """By component, what an open file holds for each layer."""
    keys = list(tensors.tensors)
    if not keys:
        raise ValueError("it holds no tensors, so it would change nothing")
    if other := next(((key, method) for key in keys if (method := other_method(key))), None):
        raise ValueError(f"only LoRA and LoCon can be fused, and {other[0]} is of a {other[1]}")
    configurations = _configurations(tensors, networks)
    layers = defaultdict(list)
    for (component, layer), roles in _located(keys, networks).items():
        if missing := next((role for role in ("down", "up") if role not in roles), None):
            raise ValueError(f"{' and '.join(roles.values())} came without the layer's {missing}")
        weight, down, up = f"{layer}.weight", roles["down"], roles["up"]
        if quantized := [key for key in (down, up) if not tensors.tensors[key].dtype.is_floating_point]:
            raise ValueError(f"only floating-point numbers can be fused, not those of {' and '.join(quantized)}")
        rank = _checked_rank(tensors, component, weight, networks[component][weight], down=down, up=up)
        if "alpha" in roles:
            scaling = _alpha(tensors, roles["alpha"]) / rank
        else:
            scaling = _configured_scaling(configurations[component], layer, rank)
        layers[component].append(LoraLayer(weight, down, up, scaling))
    return dict(layers)


def _located(keys: Sequence[str], networks: Mapping[str, Shapes]) -> dict[tuple[str, str], dict[Role, str]]:
    """The keys of each (component, layer) by their role."""
    finders = {
        component: layer_finder(name.removesuffix(".weight") for name in shapes if name.endswith(".weight"))
        for component, shapes in networks.items()
    }
    located: dict[tuple[str, str], dict[Role, str]] = defaultdict(dict)
    unknown = []
    for key in keys:
        parsed = parse_key(key)
        layer = finders.get(parsed.component, {}).get(plain_spelling(parsed.layer)) if parsed else None
        if parsed is None or layer is None:
            unknown.append(key)
            continue
        first = located[parsed.component, layer].setdefault(parsed.role, key)
        if first != key:
            raise ValueError(f"{first} and {key} are the same tensor of the same layer")
    if unknown:
        fault = f"{len(unknown)} of its {len(keys)} tensors are for no layer of this checkpoint"
        if not located:
            fault = f"none of its {len(keys)} tensors is for a layer of this checkpoint's {', '.join(networks)}"
        raise ValueError(
            f"{fault}: {abbreviated(unknown)}; it was made for another model, or in a spelling that is not known"
        )
    return located


def _checked_rank(
    tensors: SafetensorsFile, component: str, weight: str, shape: Sequence[int], *, down: str, up: str
) -> int:
    """The rank of a change, whose matrices must multiply to the shape of the weight."""
    down_shape, up_shape = (list(tensors.tensors[key].shape) for key in (down, up))
    dimensions = {len(down_shape), len(up_shape)}
    if not dimensions <= {2, 4} or _as_linear(up_shape)[1:] != down_shape[:1] or not down_shape[0]:
        raise ValueError(f"{up} is {up_shape} and {down} is {down_shape}, which do not multiply")
    change = [up_shape[0], *down_shape[1:]]
    if _as_linear(change) != _as_linear(shape):
        raise ValueError(
            f"{weight} of the {component} is {list(shape)}, and the LoRA's change of it is {change}: it was made for "
            "another model"
        )
    return int(down_shape[0])


def _as_linear(shape: Sequence[int]) -> list[int]:
    """A shape without the kernel of a 1x1 convolution, which is the same thing as a linear layer."""
    return list(shape[:2] if tuple(shape[2:]) == (1, 1) else shape)


def _alpha(tensors: SafetensorsFile, key: str) -> float:
    alpha = tensors.read(key)
    if alpha.numel() != 1 or not torch.isfinite(alpha).all():
        raise ValueError(f"{key} must be one finite number, got {alpha.tolist()}")
    return float(alpha)


def _configurations(tensors: SafetensorsFile, networks: Iterable[str]) -> dict[str, dict[str, Any]]:
    """PEFT's configuration for each component, which may be empty."""
    text = tensors.metadata.get(_METADATA, "{}")
    try:
        values = dict(json.loads(text))
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"its {_METADATA} must be a JSON object, got {text}") from error
    configurations = {}
    for component in networks:
        prefix = f"{component}."
        own = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
        if (start := own.get("init_lora_weights", True)) not in _STARTS:
            raise ValueError(f"its training started from {start!r}, which changes the weights that it belongs to")
        configurations[component] = own
    return configurations


def _configured_scaling(configuration: Mapping[str, Any], layer: str, rank: int) -> float:
    """The factor that PEFT's configuration asks for; `alpha_pattern` has regular expressions for the ends of names."""
    alpha = configuration.get("lora_alpha", rank)
    names = (layer, layer.removeprefix("text_model."))
    try:
        for pattern, special in (configuration.get("alpha_pattern") or {}).items():
            if any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
                alpha = special
                break
        return float(alpha) / (math.sqrt(rank) if configuration.get("use_rslora") else rank)
    except (AttributeError, TypeError, ValueError, re.error) as error:
        raise ValueError(f"its {_METADATA} has no alpha for {layer} that can be read: {error}") from error
