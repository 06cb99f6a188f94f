"""Whether this machine can do an export, seen before any work: room on the disk, and memory."""

import errno
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from .available_memory import available_memory

#: of the weights' bytes: the graphs, tokenizers and whatever else a model folder has
_DISK_SLACK = 1.02
#: a process that traces and writes holds torch, a graph, and one tensor
TRACING_BYTES = 1_500_000_000
#: beside the weights of the network that is compared with its export
_COMPARING_BYTES = 1_000_000_000

#: a checkpoint has no more components that take long
_MOST_PROCESSES = 4

Shapes = Mapping[str, Sequence[int]]


def check_disk(networks: Iterable[Shapes], dtype: torch.dtype, destination: Path) -> None:
    """Refuses an export that the disk has no room for.

    Args:
        networks: the weights that are still to be written, each by its name.
        dtype: of the storage.
        destination: whose file system counts.

    Raises:
        OSError: says what is needed and what is free.
    """
    needed = int(_DISK_SLACK * sum(count(shapes) for shapes in networks) * dtype.itemsize)
    existing = next(path for path in (destination.absolute(), *destination.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"the export takes {_gigabytes(needed)} and {existing} has {_gigabytes(free)} free")


def check_memory(components: Mapping[str, Shapes], *, validate: bool) -> None:
    """Refuses an export that would be killed for want of memory.

    Args:
        components: the weights of each.
        validate: whether each is loaded, in float32, to be compared with what was written.

    Raises:
        MemoryError: says what is needed and what is there.
    """
    available = available_memory()
    if available is None or not components:
        return
    name, largest = max(((name, 4 * count(shapes)) for name, shapes in components.items()), key=lambda item: item[1])
    needed = largest + _COMPARING_BYTES if validate else TRACING_BYTES
    if needed > available:
        way_out = f"; --no-validate takes {_gigabytes(TRACING_BYTES)}" if validate and available > TRACING_BYTES else ""
        doing = f"comparing the {name} with its reference" if validate else "an export"
        raise MemoryError(f"{doing} takes {_gigabytes(needed)} of memory and {_gigabytes(available)} are free{way_out}")


def processes_at_once() -> int:
    """How many components can be exported at a time: a processor and the memory for each."""
    available = available_memory()
    fit = _MOST_PROCESSES if available is None else available // TRACING_BYTES
    return max(1, min(_MOST_PROCESSES, os.cpu_count() or 1, fit))


def count(shapes: Shapes) -> int:
    """How many numbers a network's weights are."""
    return sum(math.prod(shape) for shape in shapes.values())


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
