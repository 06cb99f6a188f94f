"""How far an exported network is from the reference: run both on the same inputs and compare."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from safelight.runtime.backends import Network, open_network

from .networks import NetworkDescription


class FidelityError(ValueError):
    """An exported network is further from the reference than its tolerance allows."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """The largest difference of any output, over all the sizes that a network was run at."""

    absolute_error: float  # max |exported - reference|
    relative_error: float  # that, over max |reference| of the same output
    output: str  # the output with the largest relative error
    sizes: list[dict[str, int]]
    tolerance: float
    absolute_tolerance: float | None  # when given, it alone decides

    @property
    def passed(self) -> bool:
        """Whether the errors are within the tolerance; NaN never is."""
        if self.absolute_tolerance is not None:
            return self.absolute_error <= self.absolute_tolerance
        return self.relative_error <= self.tolerance

    def record(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)

    def __str__(self) -> str:
        return f"relative error {self.relative_error:.1e}, absolute {self.absolute_error:.1e}"


#: largest relative error by the dtype of the arithmetic, and by that of the storage when it is narrower than the source
TOLERANCES: Mapping[torch.dtype, float] = {torch.float32: 1e-4, torch.float16: 2e-2}


def compare(
    description: NetworkDescription,
    graph: Path,
    reference: nn.Module,
    *,
    dtype: torch.dtype,
    tolerance: float,
    absolute_tolerance: float | None = None,
    backend: str = "onnxruntime",
    device: str = "cpu",
) -> Fidelity:
    """Runs a written graph and the reference on random inputs at each of the description's sizes.

    Args:
        description: the network.
        graph: what was written for it.
        reference: the component's module with its weights, in float32 on the CPU.
        dtype: of the graph's floating-point inputs; the reference gets the same values in float32.
        tolerance: the largest relative error that passes.
        absolute_tolerance: the largest absolute error that passes; replaces `tolerance` when given.
        backend: the engine that runs the graph.
        device: where it runs.
    """
    part = description.module(reference)
    worst = {"absolute_error": 0.0, "relative_error": 0.0}
    worst_output = description.outputs[0].name
    network = open_network(graph, backend=backend, device=device)
    try:
        for seed, sizes in enumerate(description.check_sizes):
            inputs = [
                tensor.example(sizes, device="cpu", dtype=dtype, seed=seed + position)
                for position, tensor in enumerate(description.inputs)
            ]
            with torch.no_grad():
                expected = part(*(value.float() if value.is_floating_point() else value for value in inputs))
            expected = (expected,) if isinstance(expected, Tensor) else expected
            found = _run(network, description, inputs)
            for tensor, value in zip(description.outputs, expected, strict=True):
                absolute, relative = errors(found[tensor.name], value.numpy())
                worst["absolute_error"] = _larger(worst["absolute_error"], absolute)
                if _larger(worst["relative_error"], relative) != worst["relative_error"]:
                    worst["relative_error"], worst_output = relative, tensor.name
    finally:
        network.close()
    return Fidelity(
        output=worst_output,
        sizes=[dict(sizes) for sizes in description.check_sizes],
        tolerance=tolerance,
        absolute_tolerance=absolute_tolerance,
        **worst,
    )


def errors(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> tuple[float, float]:
    """The largest absolute difference, and that over the largest magnitude expected.

    A decision (a bool) that differs is an error of 1, relative as well; a wrong shape is (inf, inf).
    """
    if found.shape != expected.shape:
        return float("inf"), float("inf")
    absolute = float(np.max(np.abs(found.astype(np.float64) - expected)))
    if expected.dtype == np.bool_:
        return absolute, absolute
    return absolute, absolute / max(float(np.max(np.abs(expected))), float(np.finfo(np.float32).tiny))


def _run(network: Network, description: NetworkDescription, inputs: list[Tensor]) -> dict[str, Any]:
    named = {tensor.name: value.numpy() for tensor, value in zip(description.inputs, inputs, strict=True)}
    return network(named)


def _larger(one: float, other: float) -> float:
    """The maximum, where NaN is larger than everything."""
    return other if np.isnan(other) or other > one else one
