"""Who takes part on a GPU: each opens its pipeline in a process of its own, and says why it cannot."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Protocol, Self

from safelight.runtime.backends import Array
from safelight.runtime.engines.record import FLAVOURS

from .case import Case, Picture
from .inventory import Inventory


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one process does."""

    contender: str
    case: Case
    device: str
    inputs: str  # a file of arrays: the UNet's inputs by the names of its graph, and `latents` to begin with
    folder: str  # for what is found
    engines: str | None = None  # the store of engines that were built
    batches: tuple[int, ...] = (1, 4)  # pictures at once
    started: float  # of the process, as `time.time` has it
    seconds: float  # that it has, from then on
    warm_only: bool = False  # compile, measure nothing

    def to_json(self) -> dict[str, Any]:
        """For the process."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """From `to_json`."""
        return cls(**{**fields, "case": Case(**fields["case"]), "batches": tuple(fields["batches"])})


class Opened(Protocol):
    """A pipeline that is ready."""

    def unet(self, inputs: Mapping[str, Array]) -> Array:
        """What the UNet predicts, (batch, channels, height, width) float32."""
        ...

    def step(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """What runs the UNet once and waits for it. Inputs lie where this contender has them from step to step."""
        ...

    def pictures(self, latents: Array, num_inference_steps: int) -> Picture:
        """As many pictures as there are latents, (batch, channels, height, width) of unit variance.

        The image is (batch, height, width, 3); the seconds are "total", "text", "denoise" and "decode".
        """
        ...


@dataclass(frozen=True)
class GpuContender:
    """One row of the table."""

    says: str  # what it is, in the table's legend
    open: Callable[[Task], Opened]
    missing: Callable[[Inventory, str], str | None]  # why it cannot take part with a device here; None when it can
    exported: bool = True  # it runs the model folder; otherwise the checkpoint
    compiles: bool = False  # by torch.compile: minutes at first, and again for another batch
    engines: str | None = None  # the flavour of TensorRT that has to build them first


def _runtime(backend: str) -> Callable[[Task], Opened]:
    def open_pipeline(task: Task) -> Opened:
        from .opened import RuntimePipeline, open_runtime

        return RuntimePipeline(open_runtime(task, backend), task.case)

    return open_pipeline


def _plain(task: Task) -> Opened:
    from .opened import RuntimePipeline
    from .plain_session import open_plain

    return RuntimePipeline(open_plain(task), task.case)


def _reference(*, compiled: bool) -> Callable[[Task], Opened]:
    def open_pipeline(task: Task) -> Opened:
        from .opened_torch import ReferencePipeline, placement

        return ReferencePipeline(task, placement(task.device, compiled=compiled))

    return open_pipeline


def _diffusers(*, compiled: bool) -> Callable[[Task], Opened]:
    def open_pipeline(task: Task) -> Opened:
        from .opened_torch import DiffusersPipeline

        return DiffusersPipeline(task, compiled=compiled)

    return open_pipeline


def _onnxruntime_missing(provider: str) -> Callable[[Inventory, str], str | None]:
    def missing(found: Inventory, device: str) -> str | None:
        wanted = "CPUExecutionProvider" if device == "cpu" else provider
        if device == "cpu" and provider != "CUDAExecutionProvider":
            return f"{provider} needs a GPU"
        if wanted in found.providers:
            return None
        if "onnxruntime" in found.missing:
            return f"onnxruntime: {found.missing['onnxruntime']}: pip install 'safelight[gpu]'"
        version = found.versions.get("onnxruntime")
        return f"onnxruntime {version} has no {wanted}: pip uninstall onnxruntime && pip install 'safelight[gpu]'"

    return missing


def _backend_missing(name: str) -> Callable[[Inventory, str], str | None]:
    def missing(found: Inventory, device: str) -> str | None:
        if name not in found.backends:
            return "this safelight has no such backend"
        if device == "cpu":
            return "needs a GPU"
        return found.backends[name]

    return missing


def _torch_missing(*packages: str, compiled: bool, diffusers: bool) -> Callable[[Inventory, str], str | None]:
    def missing(found: Inventory, device: str) -> str | None:
        for package in packages:
            if package in found.missing:
                return f"{package}: {found.missing[package]}"
        if device != "cpu" and found.torch_cuda is None:
            return f"torch {found.versions['torch']} cannot use a GPU here"
        if compiled and device == "cpu":
            return "torch.compile is measured on a GPU only"
        if compiled and "triton" in found.missing:
            return f"triton: {found.missing['triton']}"
        if not diffusers and device != "cpu" and "diffusers" not in found.missing:
            return "it would stand in for diffusers, which is here"
        return None

    return missing


def _torch(says: str, open_pipeline: Callable[[Task], Opened], *, compiled: bool, diffusers: bool) -> GpuContender:
    packages = ("torch", "diffusers", "transformers") if diffusers else ("torch", "onnxscript")
    missing = _torch_missing(*packages, compiled=compiled, diffusers=diffusers)
    return GpuContender(says, open_pipeline, missing, exported=False, compiles=compiled)


def _tensorrt(flavour: str) -> GpuContender:
    says = f"the runtime, {flavour} engines"
    return GpuContender(says, _runtime(flavour), _backend_missing(flavour), engines=flavour)


_COMPILED = "fp16, torch.compile(mode='reduce-overhead') of UNet and VAE decoder"
_EAGER = "fp16, channels last, SDPA, cudnn.benchmark"
_STAND_IN = "safelight's PyTorch reference, which stands in for diffusers"
#: in the order in which they are measured: what the targets need comes first
CONTENDERS: Mapping[str, GpuContender] = MappingProxyType(
    {
        "onnxruntime": GpuContender(
            "the runtime, ONNX Runtime", _runtime("onnxruntime"), _onnxruntime_missing("CUDAExecutionProvider")
        ),
        "diffusers-compile": _torch(
            f"diffusers, {_COMPILED}", _diffusers(compiled=True), compiled=True, diffusers=True
        ),
        "reference-compile": _torch(
            f"{_STAND_IN}, {_COMPILED}", _reference(compiled=True), compiled=True, diffusers=False
        ),
        **{flavour: _tensorrt(flavour) for flavour in reversed(FLAVOURS)},
        "diffusers": _torch(f"diffusers, {_EAGER}", _diffusers(compiled=False), compiled=False, diffusers=True),
        "reference": _torch(f"{_STAND_IN}, {_EAGER}", _reference(compiled=False), compiled=False, diffusers=False),
        "onnxruntime-plain": GpuContender(
            "the runtime, its networks by InferenceSession.run: no IO binding, no CUDA graph",
            _plain,
            _onnxruntime_missing("CUDAExecutionProvider"),
        ),
        **{
            f"onnxruntime-{flavour}": GpuContender(
                f"the runtime, ONNX Runtime's {flavour} provider",
                _runtime(f"onnxruntime-{flavour}"),
                _backend_missing(f"onnxruntime-{flavour}"),
            )
            for flavour in FLAVOURS
        },
    }
)
#: whom the targets are against: the first that was measured
PEERS = ("diffusers-compile", "reference-compile", "diffusers", "reference")
