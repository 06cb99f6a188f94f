"""The PyTorch reference as a pipeline: the runtime's own loop, with the reference's modules for networks.

What differs between this pipeline's picture and an exported model's is therefore what the export and the engine did.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from safelight.export.networks import COMPONENT_KINDS, NetworkDescription, TensorDescription, describe
from safelight.runtime import StableDiffusionPipeline
from safelight.runtime.backends import Array, TensorSpec
from safelight.runtime.model_folder import MODEL_INDEX, ModelFolder
from safelight.runtime.networks import (
    AutoencoderKL,
    CLIPTextModel,
    Engine,
    LayerNorm,
    UNet2DConditionModel,
    read_config,
)
from safelight.runtime.schedulers import load_scheduler
from safelight.runtime.text_files import read_json_object
from safelight.runtime.tokenizer import CLIPTokenizer


class TorchNetwork:
    """A reference module behind the protocol of a backend."""

    def __init__(self, description: NetworkDescription, model: nn.Module) -> None:
        self._description = description
        self._part = description.module(model)
        self.inputs = tuple(_spec(tensor) for tensor in description.inputs)
        self.outputs = tuple(_spec(tensor) for tensor in description.outputs)

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs the module; see `Network`."""
        tensors = [torch.tensor(np.asarray(inputs[spec.name], dtype=spec.dtype)) for spec in self.inputs]
        with torch.inference_mode():
            results = self._part(*tensors)
        results = results if isinstance(results, tuple) else (results,)
        named = {spec.name: result.numpy() for spec, result in zip(self.outputs, results, strict=True)}
        return named if outputs is None else {name: named[name] for name in outputs}

    def close(self) -> None:
        """Nothing to give back: the module goes with the pipeline."""


def reference_pipeline(checkpoint: Path) -> StableDiffusionPipeline:
    """A checkpoint's pipeline on PyTorch, in float32 on the CPU."""
    index = read_json_object(checkpoint / MODEL_INDEX)
    folder = ModelFolder(checkpoint, str(index["_class_name"]), index, manifest=None)
    networks: dict[str, tuple[dict[str, TorchNetwork], nn.Module]] = {}
    for component in ("text_encoder", "unet", "vae"):
        class_name = index[component][1]
        model = COMPONENT_KINDS[class_name].model.from_pretrained(checkpoint / component)
        descriptions = describe(class_name, component, model.config.to_dict(), index)
        networks[component] = {d.name: TorchNetwork(d, model) for d in descriptions}, model
    configs = {component: read_config(folder, component, index[component][1]) for component in networks}
    vae = networks["vae"][0]
    components: dict[str, Any] = {
        "unet": UNet2DConditionModel(networks["unet"][0]["unet"], configs["unet"]),
        "vae": AutoencoderKL(vae["vae_decoder"], configs["vae"], lambda: vae["vae_encoder"]),
        "text_encoder": CLIPTextModel(
            networks["text_encoder"][0]["text_encoder"],
            configs["text_encoder"],
            lambda: _final_layer_norm(networks["text_encoder"][1]),
        ),
        "tokenizer": CLIPTokenizer.from_pretrained(checkpoint / "tokenizer"),
        "scheduler": load_scheduler(checkpoint / "scheduler"),
    }
    return StableDiffusionPipeline(folder, Engine("torch"), components)


def _spec(tensor: TensorDescription) -> TensorSpec:
    dtype: np.dtype[Any] = np.dtype(np.int64 if tensor.dtype == torch.int64 else np.float32)
    return TensorSpec(tensor.name, dtype, tensor.shape)


def _final_layer_norm(model: nn.Module) -> LayerNorm:
    norm = cast("nn.LayerNorm", model.get_submodule("text_model.final_layer_norm"))
    return LayerNorm(norm.weight.detach().numpy(), norm.bias.detach().numpy(), norm.eps)
