"""The record beside an engine: what it was built from, for which shapes and GPUs, and which bytes it is."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from ..manifest import FileRecord, TensorRecord

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
