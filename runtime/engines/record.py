"""The record beside an engine: what it was built from, for which shapes and GPUs, and which bytes it is."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from ..manifest import FileRecord, TensorRecord
from ..text_files import LARGEST_CONFIGURATION, parse_json
from ..typed_json import from_json
from .private_files import open_private

FORMAT_VERSION = 1
#: which TensorRT builds and runs an engine: names of backends, and of targets of `safelight build`
FLAVOURS = ("tensorrt", "tensorrt-rtx")

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ShapeRange:
    """The shapes that an input may have: each dimension from `smallest` to `largest`; tuned for `usual`."""

    smallest: Shape
    usual: Shape
    largest: Shape

    def holds(self, shape: Shape) -> bool:
        """Whether an array of this shape is within the range."""
        return len(shape) == len(self.smallest) and all(
            low <= size <= high for low, size, high in zip(self.smallest, shape, self.largest, strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One optimization profile of an engine, which is one bucket of shapes."""

    label: str  # as a person says it: "512x512, 1 to 4 images"
    shapes: Mapping[str, ShapeRange]  # of every input that has a free dimension

    def holds(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether inputs of these shapes are all within the profile."""
        return all(self.shapes[name].holds(shape) for name, shape in shapes.items() if name in self.shapes)


@dataclass(frozen=True, kw_only=True)
class EngineIdentity:
    """All that an engine depends on: two builds of one identity are interchangeable, and no others are."""

    format_version: int = FORMAT_VERSION
    flavour: str  # one of `FLAVOURS`
    version: str  # of that TensorRT
    gpus: tuple[str, ...]  # compute capabilities, such as "sm89"
    gpu_name: str | None = None  # of the very GPU, where the engine is for no other: flavour "tensorrt"
    network: str  # "unet", "vae_decoder", ...
    graph: str  # sha256 of the model folder's canonical graph of the network
    weights: str | None  # sha256 of its weight file; None where the plan holds none of them
    dtype: str  # of the arithmetic: "fp32", "fp16", "bf16"
    lowering: int  # revision of what was done to the graph on the way
    profiles: tuple[Profile, ...]
    options: Mapping[str, int | str | bool] = field(default_factory=dict)  # of the builder

    @property
    def key(self) -> str:
        """A sha256 over all fields: the content address of the engine."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """What the files of the engine are called, without `.plan` and `.json`."""
        return f"{self.network}-{self.key[:16]}"


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """An engine that was built."""

    identity: EngineIdentity
    plan: FileRecord
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    refittable: tuple[str, ...] = ()  # weights that have to be given to it when it is opened, by the folder's names
    built_at: str  # ISO 8601, UTC
    seconds: float  # that the build took
    peak_memory: int  # bytes, of the process that built it

    def text(self) -> str:
        """The record's JSON."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


_NETWORK = re.compile(r"[a-z][a-z0-9_]*")
_GPU = re.compile(r"sm[1-9][0-9]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DTYPES = ("fp32", "fp16", "bf16")


def read_record(path: Path) -> EngineRecord:
    """Reads the record of an engine.

    Args:
        path: of the file, whose name is the engine's.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: others can write it.
        ValueError: it is no record, one of another format, or the record of another engine.
    """
    with open_private(path) as file:
        content = file.read(LARGEST_CONFIGURATION + 1)
    if len(content) > LARGEST_CONFIGURATION:
        raise ValueError(f"{path} is larger than {LARGEST_CONFIGURATION} bytes, which no record is")
    value = parse_json(content, path)
    try:
        version = value["identity"]["format_version"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no record of an engine: it has no identity.format_version") from error
    if version != FORMAT_VERSION or type(version) is not int:
        raise ValueError(f"{path} is of format {version!r}, this safelight reads format {FORMAT_VERSION}: build again")
    try:
        record: EngineRecord = from_json(EngineRecord, value, "record")
        check_record(record)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no record of an engine: {error}") from error
    if record.identity.name != path.stem:
        raise ValueError(f"{path} is not what its name says: it is the record of {record.identity.name}")
    return record


def check_record(record: EngineRecord) -> None:
    """Refuses a record of what cannot be.

    Raises:
        ValueError: names the field.
    """
    for wrong in (*_wrong_in_identity(record.identity), *_wrong_in_build(record)):
        raise ValueError(wrong)


def _wrong_in_identity(identity: EngineIdentity) -> Iterator[str]:
    if not _NETWORK.fullmatch(identity.network):
        yield f"network {identity.network!r} is no name of one"
    if identity.flavour not in FLAVOURS:
        yield f"flavour must be {' or '.join(FLAVOURS)}, got {identity.flavour!r}"
    if identity.dtype not in _DTYPES:
        yield f"dtype must be one of {', '.join(_DTYPES)}, got {identity.dtype!r}"
    if not identity.gpus or not all(_GPU.fullmatch(gpu) for gpu in identity.gpus):
        yield f"gpus must be compute capabilities such as sm89, got {identity.gpus!r}"
    if not all(_SHA256.fullmatch(file) for file in (identity.graph, identity.weights) if file is not None):
        yield f"graph and weights must be sha256, got {identity.graph!r} and {identity.weights!r}"
    shown = (identity.version, identity.gpu_name or "", *(profile.label for profile in identity.profiles))
    if not identity.version or not all(text.isprintable() for text in shown):
        yield f"version, gpu_name and labels must be one line each, got {shown!r}"
    if not identity.profiles:
        yield "an engine has at least one profile"
    for profile in identity.profiles:
        for name, shapes in profile.shapes.items():
            rank = len(shapes.smallest)
            bounds = (*shapes.smallest, *shapes.usual), (*shapes.usual, *shapes.largest)
            if (
                (rank, rank) != (len(shapes.usual), len(shapes.largest))
                or any(low > high for low, high in zip(*bounds, strict=True))
                or min(shapes.smallest, default=1) < 1
            ):
                yield f"profile {profile.label!r} has no range of shapes for {name!r}: {shapes}"


def _wrong_in_build(record: EngineRecord) -> Iterator[str]:
    if record.plan.size < 1 or not _SHA256.fullmatch(record.plan.sha256):
        yield f"plan must have a size and a sha256, got {record.plan.size!r} and {record.plan.sha256!r}"
    for tensor in (*record.inputs, *record.outputs):
        if any(isinstance(dimension, int) and dimension < 1 for dimension in tensor.shape):
            yield f"tensor {tensor.name!r} cannot be of shape {tensor.shape}"
    if record.seconds < 0 or record.peak_memory < 0:
        yield f"seconds and peak_memory cannot be {record.seconds} and {record.peak_memory}"
    if built_at(record).utcoffset() != timedelta(0):
        yield f"built_at must be UTC, got {record.built_at!r}"


def built_at(record: EngineRecord) -> datetime:
    """When the engine was built.

    Raises:
        ValueError: the record does not say it in ISO 8601.
    """
    return datetime.fromisoformat(record.built_at)
