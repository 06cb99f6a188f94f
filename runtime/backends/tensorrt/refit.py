"""The weights of an engine that was built without them: one small plan serves all fine-tunes of a model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tensorrt as trt

    from ...model_folder import ModelFolder
    from ..protocol import Array
    from .network import TensorRTNetwork
    from .plan import Plan

logger = logging.getLogger(__name__)


def refit(plan: Plan, folder: ModelFolder) -> None:
    """Gives an engine the weights of a model folder, as the graph has them: of the names and the layout of its file.

    All of them are in memory at once, those that need no cast as the file's own pages.

    Raises:
        FileNotFoundError: the folder lacks the file.
        ValueError: a weight is missing or of another size, or TensorRT wants others than were recorded.
    """
    library, network = plan.library, plan.record.identity.network
    refitter: trt.Refitter = library.Refitter(plan.engine, plan.logger)
    stored = folder.weights(network)
    held = []  # TensorRT reads them when the engine is refitted, and not before
    for name in plan.record.refittable:
        prototype = refitter.get_weights_prototype(name)
        dtype = prototype.dtype.name
        if name not in stored:
            raise ValueError(f"{plan.name}: {folder.path} has no weight {name} of {network}: it is another model's")
        weight = _cast(stored[name], dtype)
        if weight is None:
            raise ValueError(f"{plan.name}: {name} of {network} is in {dtype}, which weights are not cast to")
        if weight.size != prototype.size:
            raise ValueError(
                f"{plan.name}: {name} of {network} has {weight.size} numbers in {folder.path}, the engine takes "
                f"{prototype.size}: it is another model's"
            )
        held.append(weight)
        if not refitter.set_named_weights(name, library.Weights(prototype.dtype, weight.ctypes.data, weight.size)):
            raise plan.refusal(f"{name} of {network} is refused")
    if missing := refitter.get_missing_weights():
        raise ValueError(
            f"{plan.name}: the engine of {network} also needs {', '.join(missing[:3])}, which its record does not name"
        )
    if not refitter.refit_cuda_engine():
        raise plan.refusal(f"the weights of {network} cannot be put into the engine")


def check_refitted(network: TensorRTNetwork, folder: ModelFolder) -> None:
    """Replays a call that the folder carries the reference's answer to: a weight in the wrong place shows.

    Raises:
        ValueError: the engine's answer is not within the limits of the folder's proof.
    """
    from ...fidelity import Proof, engine_arithmetic, limit  # which use the backends

    identity = network.record.identity
    try:
        proof = Proof.read(folder)
    except FileNotFoundError as missing:
        logger.info("%s has the weights of %s unchecked: %s", identity.name, folder.path, missing)
        return
    for call in proof.of(identity.network):
        arrays = call.arrays()
        if not network.takes(arrays):
            continue
        answers = network(arrays)
        error, output = max((view.errors(answers[name])[0], name) for name, view in call.outputs.items())
        allowed = limit(engine_arithmetic(identity), proof.spreads[identity.network])
        if not error <= allowed:
            raise ValueError(
                f"{identity.name} with the weights of {folder.path} is not the reference's {identity.network}: "
                f"{output} has a relative error of {error:.1e}, the limit is {allowed:.1e}; build an engine that holds "
                "its weights"
            )
        return
    logger.info("%s has the weights of %s unchecked: no recorded call is of its shapes", identity.name, folder.path)


def _cast(weight: Array, dtype: str) -> Array | None:
    """A weight in a dtype of TensorRT's, contiguous; bfloat16 as its bits. None for a dtype that no weight has."""
    kinds: dict[str, Any] = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "INT32": np.int32}
    if dtype in kinds:
        return np.ascontiguousarray(weight, dtype=kinds[dtype])
    if dtype != "BF16":
        return None
    bits = np.ascontiguousarray(weight, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # to the nearest, ties to even
