"""What there is to measure with: the GPU, and the packages; and of what there is not, why not.

`python -m safelight.benchmarks.gpu.inventory` prints it as JSON: a process of its own imports the packages, and leaves
the one that measures without a CUDA context.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from safelight.runtime.backends import BACKENDS, backend_module

#: module -> the distributions that it may come from; imported, because a wheel alone says little
_IMPORTED: Mapping[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "onnx": ("onnx",),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt-rtx"),
    "cuda.bindings.runtime": ("cuda-bindings",),
}
#: looked for only: slow to import
_FOUND: Mapping[str, tuple[str, ...]] = {
    "diffusers": ("diffusers",),
    "onnxscript": ("onnxscript",),
    "transformers": ("transformers",),
    "triton": ("triton",),
    "pynvml": ("nvidia-ml-py",),
    "pytest": ("pytest",),
}
_GPU_FIELDS = ("name", "driver_version", "memory.total", "compute_cap", "clocks.max.sm", "power.limit")
_TIME_LIMIT = 120  # seconds, for the imports


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What was found."""

    gpu: dict[str, str] = field(default_factory=dict)  # by `_GPU_FIELDS`
    gpu_missing: str | None = None  # why there is none
    versions: dict[str, str] = field(default_factory=dict)  # of modules that work
    missing: dict[str, str] = field(default_factory=dict)  # module -> why it does not
    torch_cuda: str | None = None  # the version of CUDA with which PyTorch can use the GPU
    providers: list[str] = field(default_factory=list)  # of ONNX Runtime
    backends: dict[str, str | None] = field(default_factory=dict)  # of the runtime: why one cannot be used, or None

    @classmethod
    def take(cls) -> Self:
        """Looks, in another process."""
        gpu, reason = _gpu()
        try:
            result = subprocess.run(
                [sys.executable, "-m", __name__], capture_output=True, text=True, check=True, timeout=_TIME_LIMIT
            )
        except subprocess.SubprocessError as error:
            detail = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
            return cls(gpu=gpu, gpu_missing=reason, missing=dict.fromkeys((*_IMPORTED, *_FOUND), detail))
        return cls(gpu=gpu, gpu_missing=reason, **json.loads(result.stdout.splitlines()[-1]))

    def lines(self) -> list[str]:
        """For a person: what is there, and what is not."""
        gpu = ", ".join(f"{name} {value}" for name, value in self.gpu.items())
        return [
            f"GPU: {gpu or 'none: ' + str(self.gpu_missing)}",
            f"Python {platform.python_version()}, "
            + ", ".join(f"{name} {version}" for name, version in self.versions.items()),
            f"PyTorch on the GPU: {'CUDA ' + self.torch_cuda if self.torch_cuda else 'no'}",
            f"ONNX Runtime providers: {', '.join(self.providers) or 'none'}",
            *(f"not there: {name}: {reason}" for name, reason in self.missing.items()),
            *(f"backend {name}: {reason or 'can be imported'}" for name, reason in self.backends.items()),
        ]


def _gpu() -> tuple[dict[str, str], str | None]:
    """The first GPU, as nvidia-smi has it; or why there is none."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except FileNotFoundError:
        return {}, "there is no nvidia-smi, which NVIDIA's driver brings"
    except subprocess.TimeoutExpired:
        return {}, "nvidia-smi did not answer in 30 s"
    if result.returncode:
        return {}, (result.stderr or result.stdout).strip().splitlines()[-1]
    values = [value.strip() for value in result.stdout.splitlines()[0].split(",")]
    return dict(zip(_GPU_FIELDS, values, strict=True)), None


def look() -> dict[str, Any]:
    """What this process can import: the fields of `Inventory` but those of the GPU."""
    found = Inventory()
    modules: dict[str, Any] = {}
    for name, distributions in _IMPORTED.items():
        try:
            modules[name] = importlib.import_module(name)
        except Exception as error:  # a library that does not load raises whatever it likes
            found.missing[name] = _first_line(error)
            continue
        version = getattr(modules[name], "__version__", None) or _version(distributions)
        if getattr(modules[name], "__file__", None) is None:  # the stubs of tensorrt leave a folder without code
            found.missing[name] = "an empty folder of that name, as a package of type stubs leaves it"
        else:
            found.versions[name] = str(version)
    for name, distributions in _FOUND.items():
        if importlib.util.find_spec(name) is None:
            found.missing[name] = "not installed"
        else:
            found.versions[name] = str(_version(distributions))
    torch, onnxruntime = modules.get("torch"), modules.get("onnxruntime")
    if onnxruntime is not None:
        found.providers.extend(onnxruntime.get_available_providers())
    for name in BACKENDS:
        try:
            backend_module(name)
            found.backends[name] = None
        except Exception as error:  # as above
            found.backends[name] = _first_line(error)
    fields = asdict(found)
    fields["torch_cuda"] = torch.version.cuda if torch is not None and torch.cuda.is_available() else None
    return {name: value for name, value in fields.items() if not name.startswith("gpu")}


def _version(distributions: tuple[str, ...]) -> str | None:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


if __name__ == "__main__":
    print(json.dumps(look()))
