"""Which engines of a store are of no use any more, and their removal."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from ..folder_lock import is_locked
from .files import refuse
from .machine import Machine
from .record import built_at
from .store import EngineStore

logger = logging.getLogger(__name__)

_KILLED = "left by a build that was killed"


@dataclass(frozen=True)
class Pruned:
    """What was removed, or would be."""

    name: str  # of the engine
    size: int  # bytes
    reason: str


def prune(
    store: EngineStore,
    machine: Machine,
    *,
    older_than: timedelta | None = None,
    everything: bool = False,
    dry_run: bool = False,
) -> list[Pruned]:
    """Removes what cannot be loaded any more here; plans are read to find those that are damaged.

    That is: engines of another version of an installed TensorRT, damaged engines, and what builds left that were
    killed. Engines for other GPUs stay: a store may serve several machines. What is being built is left alone, and with
    a warning what others can write, since `chmod` may be all that it wants.

    Args:
        store: to look through.
        machine: that the engines are to be of use on.
        older_than: also those that were built longer ago than this.
        everything: also all others.
        dry_run: find out only.

    Raises:
        PermissionError: others can write the store.
    """
    before = None if older_than is None else datetime.now(UTC) - older_than
    why = partial(_why, store, machine, before=before, everything=everything)
    pruned = []
    for name in store.names():
        try:
            if (found := _prune(store, name, why, dry_run=dry_run)) is not None:
                pruned.append(found)
        except OSError as error:
            logger.warning("%s is left alone: %s", name, error)
    return pruned


def _prune(store: EngineStore, name: str, why: Callable[[str], str | None], *, dry_run: bool) -> Pruned | None:
    folder = store.partial(name)
    if is_locked(folder):
        return None
    reason, left = why(name), _size(folder)
    if reason is None and not folder.exists():
        return None
    if dry_run:
        return Pruned(name, left + (store.size(name) if reason else 0), reason or _KILLED)
    try:
        with store.alone(name, waits=refuse):  # which removes what was left
            reason = why(name)  # again: it may have been built since
            return Pruned(name, left + (store.discard(name) if reason else 0), reason or _KILLED)
    except BlockingIOError:
        return None


def _why(store: EngineStore, machine: Machine, name: str, *, before: datetime | None, everything: bool) -> str | None:
    """Why an engine is to go; None where it is to stay."""
    if not store.path(name, ".json").exists():
        return _KILLED
    if everything:
        return "all engines were to go"
    try:
        record = store.record(name)
        if (outdated := machine.outdated(record.identity)) is not None:
            return outdated
        if before is not None and built_at(record) < before:
            return f"built on {built_at(record):%Y-%m-%d}"
        store.check_plan(record)
    except FileNotFoundError as error:
        return f"damaged: {Path(error.filename).name} is missing"
    except ValueError as error:
        return str(error)
    return None


def _size(folder: Path) -> int:
    return sum(path.stat(follow_symlinks=False).st_size for path in folder.rglob("*") if not path.is_dir())
