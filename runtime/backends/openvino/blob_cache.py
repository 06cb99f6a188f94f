"""Compiled networks on the disk: OpenVINO's graphs after its transformations, without weights.

A blob names places in the file that the graph's weights lie in, which is mapped, so that a network of gigabytes has a
blob of megabytes. It is code, which is loaded without being looked at: it lies in a folder that nobody else can write
to, under a name that says all that it depends on, behind its own hash.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import openvino

from ...engines.private_files import make_private_folder, open_private, write_private
from ...source import cache_folder
from .devices import Device

logger = logging.getLogger(__name__)

#: of all blobs together, in bytes; those that were not used for longest go first
MOST_BYTES = 256_000_000
_SUFFIX = ".blob"
_WITHOUT_WEIGHTS = {"CACHE_MODE": "OPTIMIZE_SIZE"}


def blob_folder() -> Path:
    """Where blobs lie."""
    return cache_folder() / "openvino"


@dataclass(frozen=True, kw_only=True)
class BlobCache:
    """The blobs of one graph on one device."""

    device: Device
    weights: Path
    identity: Mapping[
        str, Any
    ]  # what they depend on besides shapes: graph, weights, outputs, properties, OpenVINO, device

    @classmethod
    def of(
        cls, graph: Path, weights: Path, device: Device, properties: Mapping[str, Any], outputs: Sequence[str] = ()
    ) -> Self:
        """The cache of a graph.

        Args:
            graph: an ONNX file, known by its content.
            weights: the one file of its weights, which blobs name places in; known by path, size and time of change.
            device: that it is compiled for.
            properties: that it is compiled with.
            outputs: nodes that have become outputs beside the file's own.
        """
        status = weights.stat()
        identity = {
            "graph": hashlib.sha256(graph.read_bytes()).hexdigest(),
            "weights": [str(weights.resolve()), status.st_size, status.st_mtime_ns],
            "outputs": list(outputs),
            "openvino": openvino.__version__,
            "device": [device.name, str(device.property("FULL_DEVICE_NAME")), *device.capabilities],
            "properties": {name: str(value) for name, value in properties.items()},
        }
        return cls(device=device, weights=weights, identity=identity)

    def compiled(self, model: Any, shapes: Mapping[str, Any]) -> Any:
        """A compiled network: from its blob, or else compiled, and kept. A cache that cannot be used is a warning.

        Args:
            model: openvino.Model, of these shapes.
            shapes: of the inputs, by name.

        Raises:
            RuntimeError: OpenVINO cannot compile it.
        """
        path = blob_folder() / (self._key(shapes) + _SUFFIX)
        try:
            make_private_folder(path.parent)
            if (blob := _read(path)) is not None:
                with contextlib.suppress(RuntimeError):  # one that OpenVINO does not take is compiled anew
                    return self._imported(blob)
        except (OSError, ValueError) as error:
            logger.warning("compiled networks are not kept: %s", error)
            return self.device.core.compile_model(model, self.device.name)
        compiled = self.device.core.compile_model(model, self.device.name, _WITHOUT_WEIGHTS)
        self._keep(compiled, path)
        return compiled

    def _imported(self, blob: bytes) -> Any:
        options = {**_WITHOUT_WEIGHTS, "WEIGHTS_PATH": str(self.weights)}
        return self.device.core.import_model(io.BytesIO(blob), self.device.name, options)

    def _keep(self, compiled: Any, path: Path) -> None:
        stream = io.BytesIO()
        compiled.export_model(stream)
        blob = stream.getvalue()
        new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            write_private(new, hashlib.sha256(blob).digest() + blob)
            new.replace(path)
            _prune(path.parent)
        except OSError as error:
            logger.warning("%s cannot be kept: %s", path, error)
            new.unlink(missing_ok=True)

    def _key(self, shapes: Mapping[str, Any]) -> str:
        text = json.dumps([self.identity, {name: list(shape) for name, shape in shapes.items()}], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(path: Path) -> bytes | None:
    """A blob; None where there is none, or not as it was written.

    Raises:
        PermissionError: somebody else can have written it.
        ValueError: it is no regular file.
    """
    try:
        with open_private(path) as file:
            content = file.readall()
    except FileNotFoundError:
        return None
    digest, blob = content[:32], content[32:]
    if hashlib.sha256(blob).digest() != digest:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # when it was used, for `_prune`
    return blob


def _prune(folder: Path) -> None:
    """Deletes what was not used for longest, until the rest is not more than `MOST_BYTES`."""
    found = [(path, path.stat()) for path in folder.glob("*" + _SUFFIX)]
    room = MOST_BYTES
    for path, status in sorted(found, key=lambda each: each[1].st_mtime_ns, reverse=True):
        room -= status.st_size
        if room < 0:
            path.unlink(missing_ok=True)
