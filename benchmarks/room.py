"""Whether this machine has the memory and the disk for a case, estimated before anything starts."""

import shutil
from collections.abc import Mapping

from safelight.export.available_memory import available_memory

from .cases import Case
from .contender import Contender
from .workspace import Workspace

#: bytes of a number, by the precision of the arithmetic
ITEM_BYTES: Mapping[str, float] = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
#: of a process that has loaded a tool and no model
_TOOL_BYTES = 500_000_000
#: arrays of the autoencoder's widest layer that are there at once: what goes in, what comes out, what a norm keeps
_WIDE_ARRAYS = 3
#: of the weights' bytes: graphs, tokenizers and whatever else a folder has
_DISK_SLACK = 1.05


def memory_needed(case: Case, contender: Contender) -> int:
    """Resident bytes of a contender's process, about: weights and activations, in its precision."""
    item = ITEM_BYTES[contender.precision]
    sizes = case.model.parameters.values()
    weights = max(sizes) if contender.low_memory else sum(sizes)
    activations = _WIDE_ARRAYS * case.batch * case.height * case.width * case.model.decoder_channels
    return int(item * (weights + activations)) + _TOOL_BYTES


def too_little_memory(case: Case, contender: Contender) -> str | None:
    """Why a contender cannot be run here, where it cannot."""
    available, needed = available_memory(), memory_needed(case, contender)
    if available is None or needed <= available:
        return None
    return f"too large for this machine: needs about {_gb(needed)} of memory, {_gb(available)} are free"


def too_little_disk(case: Case, workspace: Workspace) -> str | None:
    """Why what a case needs cannot be made here, where it cannot."""
    model = case.model
    if model.shape is None:
        return None
    parameters = sum(model.parameters.values())
    needed = 0.0
    if not workspace.has(f"{model.name}-checkpoint"):
        needed += _DISK_SLACK * ITEM_BYTES["fp16"] * parameters
    if not workspace.has(f"{model.name}-export"):
        needed += _DISK_SLACK * ITEM_BYTES["fp32"] * parameters
    existing = next(
        path for path in (workspace.folder.absolute(), *workspace.folder.absolute().parents) if path.exists()
    )
    free = shutil.disk_usage(existing).free
    if needed <= free:
        return None
    return f"{model.name} needs {_gb(needed)} of disk for its checkpoint and export, {existing} has {_gb(free)} free"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
