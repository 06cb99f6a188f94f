"""`safelight.json`: what an exported folder says of itself. The reader owns the format; export writes through here."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MANIFEST_NAME = "safelight.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """An input or output of a graph; a free dimension is its name."""

    name: str
    dtype: str
    shape: list[int | str]


@dataclass(frozen=True, kw_only=True)
class ComponentRecord:
    """One network of the folder: its graphs by target ("onnx" is the canonical one), its weights, its fidelity."""

    class_name: str
    graphs: dict[str, str]  # target -> path in the folder
    weights: str  # path in the folder: a safetensors file, which every graph of the component points into
    transposed: list[str]  # the tensors of `weights` that are stored as the transpose of the checkpoint's
    inputs: list[TensorRecord]
    outputs: list[TensorRecord]
    fidelity: dict[str, Any] | None = None  # `fidelity.ComponentFidelity`; None when it was not measured


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size in bytes and sha256 of one file."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole of `safelight.json`."""

    format_version: int = FORMAT_VERSION
    source: dict[str, Any] = field(default_factory=dict)  # where the checkpoint came from: id, revision, file hashes
    versions: dict[str, str] = field(default_factory=dict)  # of the packages that wrote the folder
    dtype: str  # of the arithmetic
    weights_dtype: str  # of the storage
    components: dict[str, ComponentRecord]
    files: dict[str, FileRecord]  # every file of the folder except this one
    fidelity: dict[str, Any] | None = None  # of the whole: `fidelity.Report` without the components

    def write(self, folder: Path) -> None:
        """Writes `safelight.json` into the folder."""
        text = json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False)
        (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def file_record(path: Path) -> FileRecord:
    """Size and sha256 of a file."""
    with path.open("rb") as file:
        return FileRecord(size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest; None when it has none (a folder that another exporter wrote).

    Raises:
        ValueError: `safelight.json` is not one, or is of a newer format.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a manifest: {error!r}") from error
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} is of format {version}, this safelight reads format {FORMAT_VERSION}: export again")
    try:
        components = {name: _component(record) for name, record in fields.pop("components").items()}
        files = {name: FileRecord(**record) for name, record in fields.pop("files").items()}
        return Manifest(components=components, files=files, **fields)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a manifest: {error}") from error


def _component(record: Mapping[str, Any]) -> ComponentRecord:
    fields = dict(record)
    return ComponentRecord(
        inputs=[TensorRecord(**tensor) for tensor in fields.pop("inputs")],
        outputs=[TensorRecord(**tensor) for tensor in fields.pop("outputs")],
        **fields,
    )
