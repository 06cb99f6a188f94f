"""From what a user names (a folder, a checkpoint, a hub id) to a model folder on this machine."""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .manifest import FORMAT_VERSION, file_record
from .model_folder import MODEL_INDEX, is_checkpoint

#: what says where a model comes from, among the options of `from_pretrained`
SOURCE_OPTIONS = ("variant", "revision", "token", "cache_dir", "local_files_only")

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
#: what a model folder may hold, and what a checkpoint in diffusers' layout holds; never code, never pickles, nor the
#: whole model in a single file, which lies beside the folders
_HUB_FILES = ("*.json", "*.txt", "*.onnx", "*.onnx_data", "*/*.safetensors", "diffusion_pytorch_model*.safetensors")


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
            str(name), revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
    return exported(path, variant=variant) if is_checkpoint(path) or _is_single_file(path) else path


def local_file(name: str | Path, candidates: Sequence[str]) -> Path:
    """The first of some files that a folder, or a hub repository, has.

    Raises:
        FileNotFoundError: it has none of them, or is neither a folder nor a hub repository.
    """
    folder = Path(name)
    if not folder.exists() and is_hub_id(str(name)):
        folder = download(str(name))
    for candidate in candidates:
        if (folder / candidate).is_file():
            return folder / candidate
    raise FileNotFoundError(f"{name} has no {' or '.join(candidates)}")


def download(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The local copy of a hub repository's model files.

    Raises:
        FileNotFoundError: the hub does not have it, or cannot be reached and the cache does not have it.
    """
    import huggingface_hub  # only for those who name a hub id

    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=list(_HUB_FILES),
            )
        )
    except Exception as error:  # a connection that breaks is the HTTP library's own, and the library changes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(f"{repo_id} is no folder here and cannot be had from the hub: {reason}") from error


def _is_single_file(path: Path) -> bool:
    return path.suffix == ".safetensors" and path.is_file()


def exported(checkpoint: Path, *, variant: str | None = None) -> Path:
    """The cache's export of a checkpoint, folder or file, made in a separate process if it is not there yet.

    Raises:
        ModuleNotFoundError: the export extra is not installed.
        RuntimeError: the export failed; its last words are in the message.
    """
    destination = cache_folder() / "exports" / _content_key(checkpoint, variant)
    if (destination / MODEL_INDEX).is_file():
        return destination
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("onnxscript") is None:
        raise ModuleNotFoundError(
            f"{checkpoint} is a checkpoint that was not exported yet. On a machine with the export extra "
            f"(pip install 'safelight[export]'): safelight export {checkpoint} FOLDER; then open FOLDER"
        )
    command = [sys.executable, "-m", "safelight.runtime", "export", str(checkpoint), str(destination), "--quiet"]
    command += ["--variant", variant] if variant else []
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode and not (destination / MODEL_INDEX).is_file():  # another process may have been faster
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the export of {checkpoint} failed: {last.removeprefix('safelight: ')}")
    return destination


def _content_key(checkpoint: Path, variant: str | None) -> str:
    """A name for an export of exactly these files, in the format that is read here."""
    digests = {
        str(path.relative_to(checkpoint)): file_record(path).sha256
        for path in sorted([checkpoint, *checkpoint.glob("**/*")])
        if path.is_file() and path.suffix in {".json", ".txt", ".safetensors"}
    }
    content = json.dumps([FORMAT_VERSION, digests, variant])
    return hashlib.sha256(content.encode()).hexdigest()[:32]
