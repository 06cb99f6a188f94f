"""Networks that ONNX Runtime has made ready for this CPU, kept in the cache.

Opening a large network takes its time from two things that ONNX Runtime does to the weights: it puts those of
convolutions into blocks of channels, and those of matrix products into the order in which its kernels read them. Both
can be written beside the optimized graph; the next session maps that file into memory and is open.
"""

import functools
import json
import logging
import os
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ...engines.private_files import make_private_folder, sync_folder, write_private
from ...graph_check import check_graph
from ...source import cache_folder
from .engine_cache import graph_digest
from .session import Place, open_session
from .settings import SessionSettings

logger = logging.getLogger(__name__)

#: bytes of weights from which on a network is kept: smaller ones are open in a fraction of a second
KEPT_FROM = 100_000_000
#: bytes of all that is kept; what was not used for longest makes room
LIMIT = 20_000_000_000

_GRAPH, _WEIGHTS, _SIZES = "model.onnx", "weights.bin", "sizes.json"
#: bytes from which on a weight lies in the file of weights. ONNX Runtime aligns there what is at least as large, and
#: nothing else, and its kernels read with instructions that want aligned memory
_OUTSIDE_FROM = 2**20
#: how much larger than a network's weights what is kept can be
_FACTOR = 2


def is_kept(graph: Path, place: Place, settings: SessionSettings) -> bool:
    """Whether a network of this graph's weights, opened there, is kept."""
    if not settings.cache or place != Place() or "graph_optimization_level" in settings.attributes:
        return False
    beside = sum(file.stat().st_size for file in graph.parent.iterdir() if file.is_file())
    return beside >= KEPT_FROM and _weight_bytes(graph) >= KEPT_FROM  # what the graph names takes longer to read


def open_kept(graph: Path, place: Place, settings: SessionSettings) -> Any:
    """A session of what is kept of a graph; or else of the graph itself, and it is kept from then on.

    Args:
        graph: an ONNX file; which it is says its content, and which its weights are, path, size and time of change.
        place: where it runs: a CPU.
        settings: how it is opened.

    Raises:
        ValueError: the file is no graph that ONNX Runtime can open.
    """
    root = cache_folder() / "onnxruntime"
    entries = sorted({**settings.attributes, **settings.entries}.items())
    kept = root / graph_digest(graph, {}, ort.__version__, _processor(), repr(entries))
    try:
        for folder in (cache_folder(), root):
            make_private_folder(folder)
        if _is_whole(kept):
            os.utime(kept)
            return open_session(kept / _GRAPH, place, settings=_as_it_is(settings))
        shutil.rmtree(kept, ignore_errors=True)
        _make_room(root, _FACTOR * _weight_bytes(graph))
        return _open_and_keep(graph, place, settings, kept)
    except (OSError, ValueError) as error:
        shutil.rmtree(kept, ignore_errors=True)
        session = open_session(graph, place, settings=settings)  # which raises, if it is the graph's fault
        logger.warning("%s is not kept in the cache, and takes as long to open the next time: %s", graph, error)
        return session


def _as_it_is(settings: SessionSettings) -> SessionSettings:
    return settings.and_also(attributes={"graph_optimization_level": "ORT_DISABLE_ALL"}, entries={})


def _open_and_keep(graph: Path, place: Place, settings: SessionSettings, kept: Path) -> Any:
    """A session of a graph, which ONNX Runtime writes down on the way; the folder is there when all of it is."""
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".", ignore_cleanup_errors=True) as name:
        made = Path(name) / kept.name
        made.mkdir(mode=0o700)
        writing = settings.and_also(
            attributes={"optimized_model_filepath": str(made / _GRAPH)},
            entries={
                "session.optimized_model_external_initializers_file_name": _WEIGHTS,
                "session.optimized_model_external_initializers_min_size_in_bytes": str(_OUTSIDE_FROM),
                "session.save_external_prepacked_constant_initializers": "1",
            },
        )
        session = open_session(graph, place, settings=writing)
        sizes = {}
        for file in made.iterdir():
            sizes[file.name] = file.stat().st_size
            with file.open("rb") as written:
                os.fsync(written.fileno())
        write_private(made / _SIZES, json.dumps(sizes).encode())
        sync_folder(made)
        if not kept.exists():  # another process may have been faster
            made.rename(kept)
    return session


def _is_whole(kept: Path) -> bool:
    """Whether all of it is there: what is mapped into memory and is too short would end the process."""
    try:
        sizes = json.loads((kept / _SIZES).read_bytes())
        return _GRAPH in sizes and all((kept / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _make_room(root: Path, needed: int) -> None:
    """Removes what was not used for longest, until so many bytes more are within the limit.

    Raises:
        OSError: they never are, or the disk is too full.
    """
    if needed > LIMIT:
        raise OSError(f"it may take {needed} bytes, and the cache has {LIMIT}")
    others = sorted((folder for folder in root.iterdir() if folder.is_dir()), key=lambda folder: folder.stat().st_mtime)
    sizes = {folder: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in others}
    total = sum(sizes.values())
    for folder in others:
        if total + needed <= LIMIT:
            break
        shutil.rmtree(folder, ignore_errors=True)
        total -= sizes[folder]
    if (free := shutil.disk_usage(root).free) < needed:
        raise OSError(f"it may take {needed} bytes, and the disk of {root} has {free} left")


def _weight_bytes(graph: Path) -> int:
    return sum(file.stat().st_size for file in check_graph(graph))


@functools.cache
def _processor() -> str:
    """What tells CPUs apart that want weights in different orders: model and instructions."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().split("\n\n")[0].splitlines() if information.is_file() else []
    told = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join([platform.machine(), *(told or [platform.processor()])])
