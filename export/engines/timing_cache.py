"""How long TensorRT's kernels took: what one build measured, the next one on the same GPU need not.

TensorRT for RTX measures nothing while it builds, and has no use of one: with a cache it would ask for a GPU.
"""

import logging
import os
import secrets
from pathlib import Path
from typing import Any

from safelight.runtime.engines.private_files import open_private

logger = logging.getLogger(__name__)


def use_timing_cache(config: Any, path: Path) -> Any:
    """Gives a builder's configuration the measurements of earlier builds, and returns the cache that it fills.

    Args:
        config: TensorRT's `IBuilderConfig`.
        path: of the file; one that is not there, or that TensorRT does not take, is begun anew.
    """
    try:
        with open_private(path) as file:
            content = file.readall()
    except FileNotFoundError:
        content = b""
    except (PermissionError, ValueError) as error:
        logger.warning("the timing cache is not used: %s", error)
        content = b""
    cache = config.create_timing_cache(content)
    if not config.set_timing_cache(cache, False):  # of another version, or of another GPU
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def keep_timing_cache(cache: Any, path: Path) -> None:
    """Writes a cache, for the next build: in one step, so that of two builds at once one wins."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(memoryview(cache.serialize()))
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
