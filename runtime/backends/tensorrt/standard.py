"""The backend "tensorrt": engines that were built on the GPU that they run on."""

from functools import partial
from pathlib import Path

from ...engines import EngineRecord
from ...engines.flavours import Flavour, flavour
from ...engines.store import EngineStore
from ...model_folder import ModelFolder
from .network import TensorRTNetwork
from .network import open_engine as _open_engine
from .plan import Plan

_installed = partial(flavour, "tensorrt")


def open_engine(folder: ModelFolder, network: str, *, device: str, engines: Path | None = None) -> TensorRTNetwork:
    """Opens the engine of a network; see `network.open_engine`."""
    return _open_engine(_installed, _make_plan, folder, network, device=device, engines=engines)


def describe() -> str:
    """TensorRT's version, for `safelight doctor`."""
    return f"TensorRT {_installed().version}"


def _make_plan(installed: Flavour, record: EngineRecord, plan: bytes, store: EngineStore) -> Plan:  # noqa: ARG001
    return Plan(installed.module, record, plan)
