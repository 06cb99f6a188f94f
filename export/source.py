"""From what a user names to a checkpoint in diffusers' layout, whether it is a folder, a hub id, or a single file."""

import logging
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from safelight.runtime.manifest import file_record

from .checkpoint import Checkpoint, check_index, open_checkpoint
from .single_file import identify, open_file, unpack

logger = logging.getLogger(__name__)


@contextmanager
def open_source(
    source: str | Path,
    *,
    workspace: Path,
    variant: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    allow_pickle: bool = False,
    prediction_type: str | None = None,
    safety_checker: bool = True,
    components: Collection[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Checkpoint]:
    """The checkpoint that a user means, for as long as the block lasts.

    What is not in diffusers' layout, or not in safetensors files, is written so into a temporary folder, one network
    at a time, which is gone after the block.

    Args:
        source: a folder, a hub id, or a single file in the layout of the original code.
        workspace: where the temporary folder is made; it takes as much room as the checkpoint does.
        variant: of a folder's weights, such as "fp16".
        revision: of a hub id.
        token: for the hub.
        allow_pickle: whether pickled weights are read, by torch's unpickler that makes nothing but tensors.
        prediction_type: of a single file, "epsilon" or "v_prediction"; inferred when None.
        safety_checker: whether to export a folder's, if there is one.
        components: which to export; see `open_checkpoint`.
        progress: told one line at each network of a single file, and before a download.

    Raises:
        FileNotFoundError: there is no such folder, file or hub id, or a part of it is missing.
        ValueError: it is no checkpoint, or one that cannot be exported; the message says why.
    """
    path = Path(source)
    if path.is_file():
        if variant is not None:
            raise ValueError(f"{path} is a single file, which has no variants; got {variant!r}")
        with _folder_in(workspace) as folder:
            yield _unpacked(path, folder, allow_pickle, prediction_type, components, progress)
        return
    if prediction_type is not None:
        raise ValueError(f"{source} is no single file: what it predicts is in its scheduler_config.json")
    options: dict[str, Any] = {
        "variant": variant,
        "revision": revision,
        "token": token,
        "safety_checker": safety_checker,
        "components": components,
        "progress": progress,
    }
    if not allow_pickle:
        yield open_checkpoint(source, **options)
        return
    with _folder_in(workspace) as folder:
        yield open_checkpoint(source, unpickled=folder, **options)


def _unpacked(
    path: Path,
    folder: Path,
    allow_pickle: bool,
    prediction_type: str | None,
    components: Collection[str] | None,
    progress: Callable[[str], None],
) -> Checkpoint:
    """The checkpoint of a single file, written into a folder."""
    file = open_file(path, allow_pickle=allow_pickle)
    found = identify(file, prediction_type=prediction_type)
    check_index(path, found.index)
    for remark in found.remarks:
        logger.warning("%s: %s", path.name, remark)
    progress(f"{path.name}: {found.family}")
    unpack(file, found, folder, progress=progress)
    record = file_record(path)
    origin = {"id": path.name, "revision": None, "variant": None, "files": {path.name: record.sha256}}
    return replace(open_checkpoint(folder, components=components), source=origin)


@contextmanager
def _folder_in(workspace: Path) -> Iterator[Path]:
    workspace.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".safelight.", suffix=".checkpoint", dir=workspace) as folder:
        yield Path(folder)
