"""`safelight doctor`: what is installed, which backends work on this machine, and why the others do not."""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
from dataclasses import dataclass

import numpy as np

from .backends import BACKENDS, COMPILED, ON_GPU, Tuning, backend_module
from .backends.choice import COMPILED_FROM, chosen_backend
from .engines.store import default_store
from .model_folder import open_model_folder
from .networks import Engine, open_unet
from .processor import this_processor
from .source import bundled_model, cache_folder

SUMMARY = "show what is installed, which backends work here, and how to mend what does not"

PACKAGES = (
    "numpy",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "pillow",
    "tqdm",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-ep-nv-tensorrt-rtx-cu12",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "openvino",
)
EXTRAS = {
    "export": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "bench": ("torch", "diffusers", "matplotlib", "transformers"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: whether it works, what was found, and the fix where it does not."""

    subject: str
    works: bool
    detail: str
    fix: str = ""


def examine() -> list[Finding]:
    """Looks at packages, backends, the bundled model and the cache; nothing is changed."""
    backends = [_backend(name) for name in BACKENDS]
    return [*_packages(), *_extras(), _processor(), *backends, _choice(), _cuda(), _cache()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command takes none."""
    del parser


def run(arguments: argparse.Namespace) -> int:
    """Prints the findings; the exit status is 0 when at least one backend works."""
    del arguments
    print(
        f"safelight {importlib.metadata.version('safelight')}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
    )
    findings = examine()
    for finding in findings:
        print(f"{'ok ' if finding.works else '-- '} {finding.subject}: {finding.detail}")
        if finding.fix:
            print(f"      {finding.fix}")
    return 0 if any(finding.works for finding in findings if finding.subject.startswith("backend")) else 1


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> list[Finding]:
    versions = {package: _version(package) for package in PACKAGES}
    installed = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
    findings = [Finding("packages", True, installed)]
    if versions["onnxruntime"] and versions["onnxruntime-gpu"]:
        findings.append(
            Finding(
                "onnxruntime",
                False,
                "onnxruntime and onnxruntime-gpu are both installed and overwrite each other",
                "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'safelight[cpu]' or 'safelight[gpu]'",
            )
        )
    return findings


def _extras() -> list[Finding]:
    findings = []
    for extra, packages in EXTRAS.items():
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        detail = f"lacks {', '.join(missing)}" if missing else "installed"
        fix = f"pip install 'safelight[{extra}]'" if missing else ""
        findings.append(Finding(f"extra {extra}", not missing, detail, fix))
    return findings


def _backend(name: str) -> Finding:
    """Opens the bundled UNet with a backend and runs it once."""
    try:
        detail = backend_module(name).describe()
    except ModuleNotFoundError as error:
        return Finding(f"backend {name}", False, "not installed", str(error))
    except ImportError as error:
        return Finding(f"backend {name}", False, "cannot be imported", str(error))
    if name in COMPILED:
        return _compiled(name, detail)
    tuning = Tuning(options={"cache": False}) if name == "openvino" else Tuning()  # nothing is written here
    return _tried(f"backend {name}", detail, Engine(name, "cuda" if name in ON_GPU else "cpu", tuning=tuning))


def _compiled(name: str, detail: str) -> Finding:
    """A backend that runs compiled engines: works where there is a GPU for them."""
    from .backends.tensorrt.cuda import CudaError
    from .backends.tensorrt.device import describe_devices

    try:
        gpus = describe_devices()
    except CudaError as error:
        return Finding(f"backend {name}", False, f"{detail}; {error}", "engines can be built here, not run")
    engines = f"{len(default_store().names())} engines in {default_store().folder}"
    return Finding(f"backend {name}", True, f"{detail}; {', '.join(gpus)}; {engines}")


def _processor() -> Finding:
    """The CPU, and what it computes in fastest."""
    try:
        precision = backend_module("openvino").fastest_precision("cpu")
    except ImportError:
        precision = "fp32"
    return Finding("processor", True, f"{this_processor()}; --precision auto is {precision}")


def _choice() -> Finding:
    """What `--backend auto` is on the CPU, for a model that is large and for one that is not."""
    large, small = chosen_backend(COMPILED_FROM, "cpu"), chosen_backend(COMPILED_FROM - 1, "cpu")
    size = f"{COMPILED_FROM / 1e6:.0f} MB of weights"
    if large == small:
        return Finding("auto", True, f"{large.backend}: {large.reason}")
    return Finding(
        "auto", True, f"from {size} on {large.backend}: {large.reason}; below {small.backend}: {small.reason}"
    )


def _cuda() -> Finding:
    """Does the same with ONNX Runtime on a GPU."""
    try:
        detail = backend_module("onnxruntime").describe()
    except ModuleNotFoundError:
        return Finding("device cuda", False, "onnxruntime is not installed", "pip install 'safelight[gpu]'")
    return _tried("device cuda", detail, Engine("onnxruntime", "cuda"))


def _tried(subject: str, detail: str, engine: Engine) -> Finding:
    """Whether an engine runs the bundled UNet."""
    try:
        unet = open_unet(open_model_folder(bundled_model()), engine)
        channels, width = int(unet.config["in_channels"]), int(unet.config["cross_attention_dim"])
        sample = unet(np.zeros((1, channels, 8, 8)), 1.0, np.zeros((1, 4, width))).sample
        unet.close()
    except (MemoryError, OSError, RuntimeError, ValueError) as error:
        if engine.device != "cpu":  # what is missing, and what to install, or that there is no GPU
            return Finding(subject, False, detail, str(error))
        return Finding(subject, False, f"{detail}; fails on the bundled model: {error}", "report this")
    works = bool(np.isfinite(sample).all())
    return Finding(subject, works, f"{detail}; runs the bundled model" if works else f"{detail}; gives NaN")


def _cache() -> Finding:
    folder = cache_folder()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if os.access(nearest, os.W_OK):
        return Finding("cache", True, str(folder))
    return Finding("cache", False, f"{folder} cannot be written", "set SAFELIGHT_CACHE to a folder that can")
