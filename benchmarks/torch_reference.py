"""The PyTorch reference as a pipeline: the runtime's own loop, with the reference's modules for networks.

What differs between this pipeline's picture and an exported model's is therefore what the export and the engine did.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from safelight.export.networks import COMPONENT_KINDS, NetworkDescription, TensorDescription, build, describe
from safelight.runtime.backends import Array, TensorSpec
from safelight.runtime.model_folder import MODEL_INDEX, ModelFolder
from safelight.runtime.networks import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Engine,
    LayerNorm,
    UNet2DConditionModel,
    read_config,
)
from safelight.runtime.pipelines.base import class_known
from safelight.runtime.schedulers import load_scheduler
from safelight.runtime.text_files import read_json_object
from safelight.runtime.tokenizer import CLIPTokenizer


def _unchanged(_network: str, module: nn.Module) -> nn.Module:
    return module


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where and how PyTorch runs the reference's modules."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32  # but of networks that need float32 whatever the others have
    channels_last: bool = False
    prepare: Callable[[str, nn.Module], nn.Module] = _unchanged  # of a network's name and its module: what is run


class TorchNetwork:
    """A reference module behind the protocol of a backend."""

    def __init__(self, description: NetworkDescription, model: nn.Module, placement: Placement) -> None:
        self._description = description
        self._part = placement.prepare(description.name, description.module(model))
        self._device, self._dtype = placement.device, next(model.parameters()).dtype
        self.inputs = tuple(_spec(tensor) for tensor in description.inputs)
        self.outputs = tuple(_spec(tensor) for tensor in description.outputs)

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs the module; see `Network`."""
        results = self.placed(inputs)()
        named = {spec.name: result.float().cpu().numpy() for spec, result in zip(self.outputs, results, strict=True)}
        return named if outputs is None else {name: named[name] for name in outputs}

    def placed(self, inputs: Mapping[str, Array]) -> Callable[[], tuple[torch.Tensor, ...]]:
        """A call with inputs that are where the module is; what it gives stays there, and may not be ready yet."""
        tensors = [  # contiguous: torch.compile begins anew for other strides
            torch.tensor(np.asarray(inputs[spec.name], dtype=spec.dtype))
            .to(self._device, tensor.dtype or self._dtype)
            .contiguous()
            for spec, tensor in zip(self.inputs, self._description.inputs, strict=True)
        ]

        @torch.inference_mode()
        def call() -> tuple[torch.Tensor, ...]:
            results = self._part(*tensors)
            return results if isinstance(results, tuple) else (results,)

        return call

    def close(self) -> None:
        """Nothing to give back: the module goes with the pipeline."""


def reference_pipeline(checkpoint: Path, placement: Placement | None = None) -> Any:
    """A checkpoint's pipeline on PyTorch; in float32 on the CPU unless it is placed elsewhere.

    Raises:
        ValueError: the pipeline has a component that is not known here.
    """
    placement = placement or Placement()
    index = read_json_object(checkpoint / MODEL_INDEX)
    folder = ModelFolder(checkpoint, str(index["_class_name"]), index, manifest=None)
    kind: Any = class_known(folder)
    components = {name: _component(folder, name, placement) for name in kind.component_names if folder.class_of(name)}
    return kind(folder, Engine("torch", placement.device), components)


def _component(folder: ModelFolder, name: str, placement: Placement) -> Any:
    class_name = str(folder.class_of(name))
    if name == "scheduler":
        return load_scheduler(folder.path / name)
    if class_name == "CLIPTokenizer":
        return CLIPTokenizer.from_pretrained(folder.path / name)
    if class_name not in _WRAPPERS:
        raise ValueError(f"{folder.path}: component {name} is a {class_name}; known: {', '.join(_WRAPPERS)}")
    model, networks = _networks(folder, name, class_name, placement)
    return _WRAPPERS[class_name](model, networks, read_config(folder, name, class_name))


def _networks(
    folder: ModelFolder, component: str, class_name: str, placement: Placement
) -> tuple[nn.Module, list[TorchNetwork]]:
    """A component's module, and the parts of it that are networks."""
    path = folder.path / component
    described: Any = build(class_name, read_json_object(path / "config.json"), torch.float32)  # a reference module
    descriptions = describe(class_name, component, described.config.to_dict(), folder.index)
    dtype = torch.float32 if descriptions[0].full_precision else placement.dtype
    model = COMPONENT_KINDS[class_name].model.from_pretrained(path, dtype=dtype).to(placement.device)
    if placement.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model, [TorchNetwork(description, model, placement) for description in descriptions]


def _text_encoder(model: nn.Module, networks: list[TorchNetwork], config: Any) -> CLIPTextModel:
    return CLIPTextModel(networks[0], config, lambda: _final_layer_norm(model))


#: class -> the runtime's network of that name, of a module, its parts and its configuration
_WRAPPERS: Mapping[str, Callable[[nn.Module, list[TorchNetwork], Any], Any]] = {
    "AutoencoderKL": lambda _, parts, config: AutoencoderKL(parts[1], config, lambda: parts[0]),
    "CLIPTextModel": _text_encoder,
    "CLIPTextModelWithProjection": lambda _, parts, config: CLIPTextModelWithProjection(parts[0], config),
    "UNet2DConditionModel": lambda _, parts, config: UNet2DConditionModel(parts[0], config),
}


def _spec(tensor: TensorDescription) -> TensorSpec:
    dtype: np.dtype[Any] = np.dtype(np.int64 if tensor.dtype == torch.int64 else np.float32)
    return TensorSpec(tensor.name, dtype, tensor.shape)


def _final_layer_norm(model: nn.Module) -> LayerNorm:
    norm = cast("nn.LayerNorm", model.get_submodule("text_model.final_layer_norm"))
    return LayerNorm(norm.weight.detach().float().cpu().numpy(), norm.bias.detach().float().cpu().numpy(), norm.eps)
