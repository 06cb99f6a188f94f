"""The backend "tensorrt-rtx": engines that were built ahead of time, whose kernels are compiled when they first run.

What is here is not in TensorRT, nor in the types that its wheels publish: hence Any.
"""

from __future__ import annotations

import hashlib
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from ...engines.flavours import Flavour, flavour
from .network import TensorRTNetwork
from .network import open_engine as _open_engine
from .plan import Plan

if TYPE_CHECKING:
    from pathlib import Path

    from ...engines import EngineRecord
    from ...engines.store import EngineStore
    from ...model_folder import ModelFolder

logger = logging.getLogger(__name__)

_installed = partial(flavour, "tensorrt-rtx")
_DIGEST = hashlib.sha256().digest_size


def open_engine(folder: ModelFolder, network: str, *, device: str, engines: Path | None = None) -> TensorRTNetwork:
    """Opens the engine of a network; see `network.open_engine`."""
    return _open_engine(_installed, RtxPlan, folder, network, device=device, engines=engines)


def describe() -> str:
    """TensorRT's version, for `safelight doctor`."""
    return f"TensorRT-RTX {_installed().version}"


class RtxPlan(Plan):
    """An engine of TensorRT for RTX, and the kernels that were compiled for it, which the store keeps beside it."""

    def __init__(self, installed: Flavour, record: EngineRecord, plan: bytes, store: EngineStore) -> None:
        """Deserializes a plan, and loads the kernels of earlier runs; see `Plan`."""
        super().__init__(installed.module, record, plan)
        self._store = store
        runtime_config: Any = self.engine.create_runtime_config()
        self._kernels: Any = runtime_config.create_runtime_cache()
        self._kept = self._load_kernels()

    def create_context(self) -> Any:
        """A context without memory for activations; see `Plan.create_context`."""
        config: Any = self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self.library.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.cuda_graph_strategy = self.library.CudaGraphStrategy.DISABLED  # graphs are captured here
        # a graph keeps the kernels that it was captured with: they must be the shapes' own by then, not a stopgap
        config.dynamic_shapes_kernel_specialization_strategy = (
            self.library.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        config.set_runtime_cache(self._kernels)
        return self._made(self.engine.create_execution_context(config))

    def can_be_captured(self, context: Any, stream: int) -> bool:
        """Whether a call in this context can be recorded as a graph."""
        return bool(context.is_stream_capturable(stream))

    def after_first_call(self) -> None:
        """Keeps the kernels that were compiled, so that the next process need not."""
        content = bytes(self._kernels.serialize())
        digest = hashlib.sha256(content).digest()
        if digest == self._kept:
            return
        self._kept = digest
        try:
            self._store.keep_cache(self.record, digest + content)
        except OSError as error:  # a store that this user cannot write: only the next start is slower
            logger.info("the compiled kernels of %s are not kept: %s", self.name, error)

    def close(self) -> None:
        """Lets go of the engine, its weights and its kernels."""
        self._kernels = None
        super().close()

    def _check(self, runtime: Any, plan: bytes) -> None:
        validity, problems = runtime.get_engine_validity(plan)
        if validity == self.library.EngineValidity.INVALID:
            known = self.library.EngineInvalidityDiagnostics.__members__
            found = [name for name, flag in known.items() if int(problems) & int(flag)]
            raise ValueError(
                f"{self.name} is not valid on this machine: {', '.join(found) or self._first_message()}; "
                "safelight build makes it anew"
            )

    def _load_kernels(self) -> bytes:
        """Loads what the store has; returns its digest. What is damaged or of another machine is left alone."""
        kept = self._store.read_cache(self.record) or b""
        digest, content = kept[:_DIGEST], kept[_DIGEST:]
        if not content:
            return b""
        if hashlib.sha256(content).digest() != digest:
            logger.warning("the compiled kernels of %s are damaged: they are compiled again", self.name)
            return b""
        return digest if self._kernels.deserialize(content) else b""
