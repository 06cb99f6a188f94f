"""From what a user names (a folder, a checkpoint, a hub id) to a model folder on this machine."""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .hub import Selection, download, download_file, origin
from .manifest import FORMAT_VERSION, file_record
from .model_folder import MODEL_INDEX, is_checkpoint

#: what says where a model comes from, among the options of `from_pretrained`
SOURCE_OPTIONS = ("variant", "revision", "token", "cache_dir", "local_files_only")

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
#: how the names of single-file checkpoints end that are not safetensors files
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def bundled_model() -> Path:
    """The folder of the model that comes with the package: small pictures of emoji."""
    return Path(__file__).parent / "models" / "emoji"


def cache_folder() -> Path:
    """Where exports of checkpoints are kept: `$SAFELIGHT_CACHE`, or `~/.cache/safelight`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SAFELIGHT_CACHE") or Path(base) / "safelight")


def is_hub_id(name: str) -> bool:
    """Whether a name can be a hub repository's: owner/name."""
    return _HUB_ID.fullmatch(name) is not None


def local_model(
    name: str | Path,
    *,
    variant: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The model folder that a user means; a checkpoint, folder or safetensors file, is exported into the cache first.

    Raises:
        FileNotFoundError: there is no such folder, and it is no hub id; or the hub does not have it.
        OSError: the hub cannot be reached, refuses, or has more than there is room for; see `hub.download`.
        ModuleNotFoundError: it is a checkpoint, and the export extra is not installed.
        RuntimeError: the export failed.
        ValueError: it is a pickled file.
    """
    path = Path(name)
    if path.is_file() and path.suffix in _PICKLES:
        raise ValueError(
            f"{path} is a pickle, which is never opened here; safelight export {path} FOLDER --allow-pickle "
            "reads its tensors and nothing else; then open FOLDER"
        )
    if not path.exists():
        if not is_hub_id(str(name)):
            raise FileNotFoundError(f"{name} does not exist, and is no hub id either (owner/name)")
        path = download(
            str(name),
            Selection(variant=variant),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            check=lambda index, folder: _check_checkpoint(str(name), index, folder, variant),
        )
    return exported(path, variant=variant) if is_checkpoint(path) or _is_single_file(path) else path


def local_file(name: str | Path, candidates: Sequence[str]) -> Path:
    """The first of some files that a folder, or a hub repository, has.

    Raises:
        FileNotFoundError: it has none of them, or is neither a folder nor a hub repository.
    """
    folder = Path(name)
    if not folder.exists() and is_hub_id(str(name)):
        return download_file(str(name), candidates)
    for candidate in candidates:
        if (folder / candidate).is_file():
            return folder / candidate
    raise FileNotFoundError(f"{name} has no {' or '.join(candidates)}")


def _is_single_file(path: Path) -> bool:
    return path.suffix == ".safetensors" and path.is_file()


def exported(checkpoint: Path, *, variant: str | None = None) -> Path:
    """The cache's export of a checkpoint, folder or file, made in a separate process if it is not there yet.

    Raises:
        ModuleNotFoundError: the export extra is not installed.
        RuntimeError: the export failed; its last words are in the message.
    """
    destination = _destination(checkpoint, variant)
    if (destination / MODEL_INDEX).is_file():
        return destination
    _require_export(checkpoint)
    command = [sys.executable, "-m", "safelight.runtime", "export", str(checkpoint), str(destination), "--quiet"]
    command += ["--variant", variant] if variant else []
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode and not (destination / MODEL_INDEX).is_file():  # another process may have been faster
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the export of {checkpoint} failed: {last.removeprefix('safelight: ')}")
    return destination


def _check_checkpoint(repo_id: str, index: Mapping[str, Any], folder: Path, variant: str | None) -> None:
    """Refuses a checkpoint on the hub that cannot be exported, or not here, before its weights are fetched."""
    from .hub.files import networks_of
    from .networks import NETWORK_OPENERS  # which import this module

    for name, class_name in networks_of(index).items():
        if class_name not in NETWORK_OPENERS:
            known = ", ".join(NETWORK_OPENERS)
            raise ValueError(f"component {name} is a {class_name}, which is not known here; known: {known}")
    if not (_destination(folder, variant) / MODEL_INDEX).is_file():
        _require_export(repo_id)


def _require_export(checkpoint: str | Path) -> None:
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("onnxscript") is None:
        raise ModuleNotFoundError(
            f"{checkpoint} is a checkpoint that was not exported yet. On a machine with the export extra "
            f"(pip install 'safelight[export]'): safelight export {checkpoint} FOLDER; then open FOLDER"
        )


def _destination(checkpoint: Path, variant: str | None) -> Path:
    """Where the cache has the export of a checkpoint."""
    return cache_folder() / "exports" / _content_key(checkpoint, variant)


def _content_key(checkpoint: Path, variant: str | None) -> str:
    """A name for an export of exactly these files, in the format that is read here."""
    if commit := origin(checkpoint):
        return _key([FORMAT_VERSION, commit, variant])
    digests = {
        str(path.relative_to(checkpoint)): file_record(path).sha256
        for path in sorted([checkpoint, *checkpoint.glob("**/*")])
        if path.is_file() and path.suffix in {".json", ".txt", ".safetensors"}
    }
    return _key([FORMAT_VERSION, digests, variant])


def _key(content: list[object]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
