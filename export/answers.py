"""The reference's networks as callables from arrays to arrays: what an export is compared with."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from safelight.reference.checkpoint import read_config
from safelight.reference.half_precision import sums_in_float32
from safelight.runtime.backends import Array
from safelight.runtime.fidelity import Example

from .checkpoint import Component
from .lora import Lora, fused
from .networks import COMPONENT_KINDS, NetworkDescription, TensorDescription

Inputs = Mapping[str, Array]


def load_reference(component: Component, loras: Sequence[Lora]) -> nn.Module:
    """A component's reference, in float32 on the CPU, with LoRAs fused into its weights."""
    kind = COMPONENT_KINDS[component.class_name].model
    weights = fused(kind.open_weights(component.path, variant=component.variant), component.name, loras)
    reference: nn.Module = kind.from_weights(read_config(component.path), weights)
    return reference


class Answers:
    """One network of a module: arrays in, all its outputs out, in the module's dtype within and float32 outside."""

    def __init__(self, description: NetworkDescription, model: nn.Module) -> None:
        self._description = description
        self._part = description.module(model)
        self._dtype = next(model.parameters()).dtype

    def __call__(self, inputs: Inputs) -> dict[str, Array]:
        """The outputs by name; an input in the network's own dtype may be given in float32."""
        tensors = [_tensor(tensor, inputs[tensor.name], self._dtype) for tensor in self._description.inputs]
        with torch.inference_mode(), sums_in_float32():
            results = self._part(*tensors)
        results = results if isinstance(results, tuple) else (results,)
        return {
            tensor.name: (result.float() if result.is_floating_point() else result).numpy()
            for tensor, result in zip(self._description.outputs, results, strict=True)
        }


def examples_of(description: NetworkDescription, sizes: Mapping[str, int], seed: int) -> dict[str, Example]:
    """Random inputs of these sizes."""
    examples = {}
    for position, tensor in enumerate(description.inputs):
        shape = tuple(sizes[side] if isinstance(side, str) else side for side in tensor.shape)
        dtype = "int64" if tensor.dtype == torch.int64 else "float32"
        examples[tensor.name] = Example(shape, 100 * seed + position, dtype, tensor.below, tensor.spread)
    return examples


def overflows(description: NetworkDescription, model: nn.Module, calls: Sequence[Inputs]) -> bool:
    """Whether a network's float16 is infinite or NaN for some inputs.

    Args:
        description: of the network.
        model: the component's module, in float32; its weights are float16 afterwards.
        calls: the inputs of each call.
    """
    half = Answers(description, model.to(torch.float16))
    return not all(np.isfinite(output).all() for inputs in calls for output in half(inputs).values())


def overflows_on_examples(description: NetworkDescription, model: nn.Module) -> bool:
    """Whether a network's float16 is infinite or NaN for random inputs of the sizes that it is checked at."""
    examples = (examples_of(description, sizes, seed) for seed, sizes in enumerate(description.check_sizes))
    calls = [{name: example.array() for name, example in inputs.items()} for inputs in examples]
    return overflows(description, model, calls)


def forget(model: nn.Module) -> None:
    """Drops a module's weights, whoever still holds the module."""
    for parameter in model.parameters():
        parameter.data = torch.empty(0)


def _tensor(tensor: TensorDescription, array: Array, dtype: torch.dtype) -> Tensor:
    value = torch.from_numpy(np.array(array))  # a copy, which torch may write to
    return value.to(tensor.dtype or dtype)
