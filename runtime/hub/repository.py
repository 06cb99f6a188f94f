"""A hub repository's files on this machine: only those that are needed, from the hub or from its cache."""

import glob
import logging
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..manifest import MANIFEST_NAME, read_manifest
from ..model_folder import MODEL_INDEX, is_exported, lone_network
from ..text_files import read_json_object
from .errors import in_the_users_words
from .files import Selection, exported_files, needed_files
from .transfer import transfer

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

logger = logging.getLogger(__name__)

#: beside the client's `snapshots`, which are links to its `blobs`: exported models as files of their own, because an
#: engine looks for a graph's weights beside it, and may refuse links
_EXPORTED = "safelight"
_LONE_CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What is wanted of a repository."""

    repo_id: str
    selection: Selection
    exported: bool
    revision: str | None
    token: str | None
    cache_dir: str | Path | None
    check: Callable[[Mapping[str, Any], Path], None]
    progress: Callable[[str], None]


def download(
    repo_id: str,
    selection: Selection | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    exported: bool = True,
    check: Callable[[Mapping[str, Any], Path], None] = lambda *_: None,
    progress: Callable[[str], None] = logger.info,
) -> Path:
    """The local copy of what is needed of a hub repository: a checkpoint, a network alone, or an exported model.

    Args:
        repo_id: owner/name.
        selection: of a checkpoint; all of its plain weights when None.
        revision: a branch, a tag or a commit; the main branch when None.
        token: for the hub; the one that `hf auth login` saved, or `HF_TOKEN`, when None.
        cache_dir: in place of the hub's cache.
        local_files_only: never ask the hub.
        exported: whether an exported model will do.
        check: given the `model_index.json` of a checkpoint (empty for a network alone) and the folder that it is going
            to be in, may refuse it before anything large is fetched.
        progress: told how much is fetched, in one line.

    Returns:
        A folder whose name is the commit; see `origin`.

    Raises:
        FileNotFoundError: there is no such repository or revision, a part of it is missing, or the cache lacks it and
            the hub is not asked.
        PermissionError: the repository is gated, or the token is refused.
        ConnectionError: the hub cannot be reached, and the cache lacks it.
        OSError: there is not enough room.
        ValueError: it is no model, or has pickled weights only.
    """
    from huggingface_hub import constants  # only for those who name a hub id

    request = _Request(
        repo_id=repo_id,
        selection=selection or Selection(),
        exported=exported,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        check=check,
        progress=progress,
    )
    if local_files_only or constants.HF_HUB_OFFLINE:
        reason = "local_files_only=True" if local_files_only else "HF_HUB_OFFLINE=1"
        return _cached(request, f"the hub is not asked ({reason})")
    try:
        with in_the_users_words(repo_id, revision=revision, token=token):
            return _fetched(request)
    except ConnectionError as error:
        try:
            path = _cached(request, str(error))
        except FileNotFoundError as missing:
            raise ConnectionError(str(missing)) from error
        logger.warning("%s; %s is taken from the cache, at commit %s", error, repo_id, path.name)
        return path


def download_file(repo_id: str, candidates: Sequence[str]) -> Path:
    """The local copy of the first of some small files that a hub repository has.

    Raises:
        FileNotFoundError: it has none of them; and as `download`.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache

    names = " or ".join(candidates)
    reason = "the hub is not asked (HF_HUB_OFFLINE=1)"
    if not constants.HF_HUB_OFFLINE:
        try:
            with in_the_users_words(repo_id):
                listing = {file.rfilename for file in HfApi().model_info(repo_id).siblings or ()}
                if present := [name for name in candidates if name in listing]:
                    return Path(hf_hub_download(repo_id, present[0]))
        except ConnectionError as error:
            reason = str(error)
        else:
            raise FileNotFoundError(f"{repo_id} has no {names}")
    for name in candidates:
        if isinstance(found := try_to_load_from_cache(repo_id, name), str):
            return Path(found)
    raise FileNotFoundError(f"{repo_id} has no {names} in the hub's cache, and {reason}")


def origin(path: Path) -> tuple[str, str] | None:
    """The repository and the commit that a folder in the hub's cache is of; None of any other folder."""
    folder = path.absolute()
    kind, *names = folder.parent.parent.name.split("--")
    if kind != "models" or len(names) != 2 or folder.parent.name not in ("snapshots", _EXPORTED):
        return None
    return "/".join(names), folder.name


def _fetched(request: _Request) -> Path:
    """What is needed, from the hub, less what the cache has."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    repo_id, token, cache_dir = request.repo_id, request.token, request.cache_dir
    info = HfApi(token=token).model_info(repo_id, revision=request.revision, files_metadata=True)
    files = {file.rfilename: file for file in info.siblings or ()}
    # by the name of the revision, not of the commit, so that the cache knows it offline
    start = hf_hub_download(
        repo_id, _start(repo_id, files), revision=request.revision, token=token, cache_dir=cache_dir
    )
    snapshot = Path(start).parent
    commit = snapshot.name
    if MANIFEST_NAME in files:
        hf_hub_download(repo_id, MANIFEST_NAME, revision=commit, token=token, cache_dir=cache_dir)
    needed = _needed(request, files, snapshot)
    repository = snapshot.parent.parent
    exported = repository / _EXPORTED / commit if is_exported(files) else None
    folder = exported or snapshot
    places = {name: exported / name if exported else _blob(repository, files[name]) for name in needed}
    missing = [name for name in needed if not (folder / name).exists() and not places[name].exists()]
    if missing:
        size = sum(files[name].size or 0 for name in missing)
        _check_room(repo_id, repository, size)
        request.progress(f"{repo_id}: downloading {_bytes(size)} in {len(missing)} files")
    for name in missing:
        if files[name].lfs and not (snapshot / name).exists():  # of which the client makes a copy
            transfer(repo_id, name, commit=commit, repository=repository, destination=places[name], token=token)
    if not all((folder / name).exists() for name in needed):
        snapshot_download(
            repo_id,
            revision=commit,
            token=token,
            cache_dir=cache_dir,
            local_dir=exported,
            allow_patterns=[glob.escape(name) for name in needed],
        )
    return folder


def _cached(request: _Request, reason: str) -> Path:
    """What is needed, from the cache alone.

    Raises:
        FileNotFoundError: it is not there, or not whole; the message has the reason why the hub was not asked.
    """
    from huggingface_hub import try_to_load_from_cache

    repo_id, revision = request.repo_id, request.revision
    for name in (MODEL_INDEX, _LONE_CONFIG):
        found = try_to_load_from_cache(repo_id, name, cache_dir=request.cache_dir, revision=revision)
        if isinstance(found, str):
            snapshot = Path(found).parent
            break
    else:
        where = f" at the revision {revision}" if revision else ""
        raise FileNotFoundError(f"{repo_id}{where} is not in the hub's cache, and {reason}")
    exported = snapshot.parent.parent / _EXPORTED / snapshot.name
    folder = exported if is_exported(_files(exported)) else snapshot
    try:
        _needed(request, _files(folder), folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}: the hub's cache has only a part, and {reason}") from error
    return folder


def _start(repo_id: str, listing: Collection[str]) -> str:
    """The file that says what a repository holds.

    Raises:
        ValueError: it has none; files at its root that may be whole checkpoints are named.
    """
    for name in (MODEL_INDEX, _LONE_CONFIG):
        if name in listing:
            return name
    alone = sorted(name for name in listing if "/" not in name and name.endswith((".safetensors", ".ckpt")))
    way_out = f"; to use a file of it, download that file and name it: {', '.join(alone[:3])}" if alone else ""
    raise ValueError(f"{repo_id} is no model: it has no {MODEL_INDEX}{way_out}")


def _needed(request: _Request, listing: Collection[str], folder: Path) -> list[str]:
    """The files that are needed of a listing, by what the small ones in the folder say.

    Raises:
        FileNotFoundError: the listing lacks some.
        ValueError: it is no model that is known here, or one that is refused.
    """
    try:
        if is_exported(listing):
            if not request.exported:
                raise ValueError("it was exported already: open it by this name")
            manifest = read_manifest(folder)
            return exported_files(listing, manifest.files if manifest else None)
        index = read_json_object(folder / MODEL_INDEX) if MODEL_INDEX in listing else {}
        if not index and lone_network(folder) is None:
            raise ValueError(f"there is no {MODEL_INDEX}, and {_LONE_CONFIG} is of no network that is known alone")
        request.check(index, folder)
        return needed_files(listing, index, request.selection)
    except (FileNotFoundError, ValueError) as error:
        if str(error).startswith(request.repo_id):
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{request.repo_id}: {error}") from error


def _blob(repository: Path, file: "RepoSibling") -> Path:
    """Where the cache has the content of a file, whatever the commit."""
    return repository / "blobs" / (file.lfs.sha256 if file.lfs else file.blob_id or "unknown")


def _check_room(repo_id: str, folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(f"{repo_id}: {_bytes(size)} are to be downloaded, and {folder} has room for {_bytes(free)}")


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def _files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
