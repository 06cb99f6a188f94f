"""One large file from the hub over HTTP, continued where an earlier transfer broke off.

The client starts a file anew when the connection is reset or its process ends. What comes by Xet, as most of
huggingface.co's large files do, is left to the client all the same.
"""

import hashlib
import importlib.util
import re
from pathlib import Path
from typing import Any

_SHA256 = re.compile(r"[0-9a-f]{64}")


def transfer(
    repo_id: str, name: str, *, commit: str, repository: Path, destination: Path, token: str | None = None
) -> None:
    """Fetches a file that the hub stores by Git LFS to where it belongs, unless the client has a better way.

    What arrives is kept among the cache's blobs, also when the process is killed, and the next call asks for the rest
    alone. Two processes wait for each other, and for the client.

    Args:
        repo_id: owner/name.
        name: of the file in the repository.
        commit: the full hash.
        repository: the folder of the repository in the hub's cache.
        destination: where the file comes to lie, whole and with the hash that the hub names, or not at all.
        token: for the hub.

    Raises:
        OSError: the content is not that of the hash, or the disk is full.
        Exception: the client's, when the hub refuses or nothing arrives any more.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # lazy, as below

    url = hf_hub_url(repo_id, name, revision=commit)
    metadata = get_hf_file_metadata(url, token=token)
    sha256, size = metadata.etag, metadata.size
    if sha256 is None or not _SHA256.fullmatch(sha256) or size is None or _by_xet(metadata):
        return
    partial = repository / "blobs" / f"{sha256}.incomplete"
    lock = repository.parent / ".locks" / repository.name / f"{sha256}.lock"
    for folder in (partial.parent, lock.parent, destination.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if destination.exists():
            return
        _append(url, partial, size, token, name)
        with partial.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            partial.unlink()
            raise OSError(f"{repo_id}: {name} arrived with the sha256 {found}, the hub names {sha256}; try again")
        partial.replace(destination)


def _append(url: str, partial: Path, size: int, token: str | None, name: str) -> None:
    """Fetches what a file lacks, for as long as each attempt brings something."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers = build_hf_headers(token=token)
    with partial.open("ab") as file:
        if file.tell() > size:  # what no transfer of this file can have left
            file.seek(0)
            file.truncate()
        while (start := file.tell()) < size:
            try:
                http_get(url, file, resume_size=start, headers=headers, expected_size=size, displayed_filename=name)
            except Exception as error:  # a connection that breaks is the HTTP library's own, and the library changes
                refused = isinstance(error, HfHubHTTPError) or (isinstance(error, OSError) and error.errno is not None)
                if refused or file.tell() == start:
                    raise


def _by_xet(metadata: Any) -> bool:  # of clients before Xet too
    """Whether the client fetches a file by Xet."""
    from huggingface_hub import constants

    enabled = not getattr(constants, "HF_HUB_DISABLE_XET", False) and importlib.util.find_spec("hf_xet") is not None
    return enabled and getattr(metadata, "xet_file_data", None) is not None
