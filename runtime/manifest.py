"""`safelight.json`: what an exported folder says of itself. The reader owns the format; export writes through here."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from .text_files import read_json

MANIFEST_NAME = "safelight.json"
FORMAT_VERSION = 2  # the newest that is read
_FIRST_FORMAT = 1  # what a folder is written as that has nothing of the second, for older readers
#: what the second brought, of a component; left out where it is none
_OF_THE_SECOND = ("variants", "cache_branch_id", "quantization")

#: the graphs of DeepCache beside a UNet's own: the whole that also gives the feature, and what is computed with one
DEEP, SHALLOW = VARIANTS = ("deep", "shallow")
CACHED_FEATURE = "cached_feature"  # its name in both
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """An input or output of a graph; a free dimension is its name."""

    name: str
    dtype: str
    shape: list[int | str]


@dataclass(frozen=True, kw_only=True)
class QuantizationRecord:
    """What of a network is in 8 bits, and what measuring it against its source found."""

    weights: str  # dtype of the weights of the layers that are quantized
    activations: str | None  # what those layers compute in; None: in float, with the weights widened
    operators: dict[str, int]  # how many of each became integers
    in_float: list[str]  # the weights of the layers that were left in float
    calls: int  # that the ranges of the activations were taken from
    quantizer: str  # package and version
    measured: dict[str, Any] | None = None  # `export.quantization.gate.Timing`; None before it was


@dataclass(frozen=True, kw_only=True)
class ComponentRecord:
    """One network of the folder: its graphs by target ("onnx" is the canonical one), its weights, its fidelity."""

    class_name: str
    dtype: str | None = None  # of its arithmetic, where that is not the manifest's
    graphs: dict[str, str]  # target -> path in the folder
    weights: str  # path in the folder: a safetensors file, which every graph of the component points into
    transposed: list[str]  # the tensors of `weights` that are stored as the transpose of the checkpoint's
    inputs: list[TensorRecord]
    outputs: list[TensorRecord]
    variants: dict[str, dict[str, str]] = field(default_factory=dict)  # each of `VARIANTS` -> its graphs, or none
    cache_branch_id: int | None = None  # of the skip that the variants are cut at; None without them
    quantization: QuantizationRecord | None = None  # None where no layer is in 8 bits
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
    left_out: list[str] = field(default_factory=list)  # networks that the export was asked to leave out
    components: dict[str, ComponentRecord]
    files: dict[str, FileRecord]  # every file of the folder except this one
    fidelity: dict[str, Any] | None = None  # of the whole: `fidelity.Report` without the components

    def write(self, folder: Path) -> None:
        """Writes `safelight.json` into the folder, in the oldest format that can say it."""
        content = asdict(self)
        components = content["components"].values()
        for component in components:
            for name in _OF_THE_SECOND:
                if not component[name] and component[name] != 0:  # 0 is a branch
                    del component[name]
        second = any(name in component for component in components for name in _OF_THE_SECOND)
        content["format_version"] = FORMAT_VERSION if second else _FIRST_FORMAT
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
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
    if not os.path.lexists(path):
        return None
    try:
        fields = read_json(path)
        version = fields["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a manifest: {error!r}") from error
    if version not in (_FIRST_FORMAT, FORMAT_VERSION):
        known = f"formats {_FIRST_FORMAT} and {FORMAT_VERSION}"
        raise ValueError(f"{path} is of format {version}, this safelight reads {known}: export again")
    try:
        components = {name: component_record(name, record) for name, record in fields.pop("components").items()}
        files = {_inside(name): _file(name, record) for name, record in fields.pop("files").items()}
        return Manifest(components=components, files=files, **fields)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a manifest: {error}") from error


def component_record(name: str, record: Mapping[str, Any]) -> ComponentRecord:
    """A component's record from its fields as JSON has them.

    Raises:
        KeyError, TypeError, ValueError: they are not those of a record, or name files that are not the component's.
    """
    fields = dict(record)
    quantization = fields.pop("quantization", None)
    component = ComponentRecord(
        quantization=None if quantization is None else QuantizationRecord(**quantization),
        inputs=[TensorRecord(**tensor) for tensor in fields.pop("inputs")],
        outputs=[TensorRecord(**tensor) for tensor in fields.pop("outputs")],
        **fields,
    )
    if "onnx" not in component.graphs:
        raise ValueError(f"{name} has no graph that any engine can read")
    if component.variants:
        _check_variants(name, component)
    graphs = [path for family in (component.graphs, *component.variants.values()) for path in family.values()]
    for path in (*graphs, component.weights):
        if PurePosixPath(_inside(path)).parent != PurePosixPath(name):
            raise ValueError(f"{path!r} is no file in the folder of {name}")
    for path in graphs:
        if not path.endswith(".onnx"):  # by which an engine knows what to read it as
            raise ValueError(f"{path!r} is no .onnx file")
    if not isinstance(component.transposed, list):
        raise TypeError(f"transposed of {name} must be a list")
    return component


def _check_variants(name: str, component: ComponentRecord) -> None:
    """Refuses variants that are not those of DeepCache."""
    if component.variants.keys() != set(VARIANTS):
        raise ValueError(f"variants of {name} must be {' and '.join(VARIANTS)}, got {', '.join(component.variants)}")
    if missing := [variant for variant in VARIANTS if "onnx" not in component.variants[variant]]:
        raise ValueError(f"the variant {missing[0]} of {name} has no graph that any engine can read")
    branch = component.cache_branch_id
    if type(branch) is not int or branch < 0:
        raise ValueError(f"cache_branch_id of {name} must be a number from 0 on, got {branch!r}")


def _file(name: str, record: Mapping[str, Any]) -> FileRecord:
    file = FileRecord(**record)
    if type(file.size) is not int or not isinstance(file.sha256, str) or not _SHA256.fullmatch(file.sha256):
        raise TypeError(f"{name} must have a size and a sha256, got {file.size!r} and {file.sha256!r}")
    return file


def _inside(path: object) -> str:
    """A path that is one of a file in the folder by its name.

    Raises:
        ValueError: it leads elsewhere, or does so on some system.
    """
    if (
        not isinstance(path, str)
        or any(character in path for character in "\0\\:")
        or any(part in ("", ".", "..") for part in path.split("/"))
    ):
        raise ValueError(f"{path!r} leads out of the model folder")
    return path
