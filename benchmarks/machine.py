"""What the measurements were made on: the machine and the versions."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

PACKAGES = ("safelight", "numpy", "onnxruntime", "openvino", "torch", "diffusers", "transformers")
#: of the processor, as Linux names them: what the products of matrices can be made with
FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "bf16",
    "i8mm",
    "sve",
)
_CPUINFO = Path("/proc/cpuinfo")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def machine() -> dict[str, Any]:
    """The processor with the flags that count here, its cores, the memory, and how it is clocked if that is told."""
    known = _cpuinfo()
    flags = (known.get("flags") or known.get("Features") or "").split()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    return {
        "processor": known.get("model name") or platform.processor(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "processors": os.cpu_count(),
        "usable": usable_processors(),
        "memory": pages,
        "governor": _GOVERNOR.read_text().strip() if _GOVERNOR.is_file() else None,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def usable_processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str | None]:
    """Of the packages of this environment; None for those that are not installed."""
    return {package: version(package) for package in PACKAGES}


def version(package: str) -> str | None:
    """Of one package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpuinfo() -> dict[str, str]:
    """Of the first processor."""
    lines = _CPUINFO.read_text().partition("\n\n")[0].splitlines() if _CPUINFO.is_file() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
