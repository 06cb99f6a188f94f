"""The other tools: a row for each tool and precision, and why one cannot take part here."""

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
#: of what stable-diffusion.cpp's kernels know: the UNets of Stable Diffusion 1.x and 2.x, and of SDXL
_PUBLISHED_CHANNELS = ([320, 640, 1280, 1280], [320, 640, 1280])


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A tool in one precision."""

    name: str
    tool: str
    precision: str  # of the arithmetic, as `Job.precision`
    module: str  # the worker: `benchmarks.peers.NAME`, beside this module
    options: Mapping[str, Any] = field(default_factory=dict)  # `Job.options`
    environment: str | None = None  # a folder of the repository; None: the one that safelight runs in
    target: str | None = None  # of make, which makes the environment
    export: str | None = None  # the module that makes what the tool opens; None: it opens the checkpoint
    packages: tuple[str, ...] = ()  # of the environment that safelight runs in
    compiler: bool = False  # whether it compiles C++
    published_shapes: bool = False  # whether it knows these alone

    @property
    def python(self) -> Path:
        """The program that runs its worker."""
        return Path(sys.executable) if self.environment is None else _ROOT / self.environment / "bin" / "python"

    def export_command(self, checkpoint: Path, folder: Path) -> list[str]:
        """What makes the folder that its worker opens, with the worker's variables of the environment."""
        assert self.export is not None, f"{self.name} opens the checkpoint"
        return [str(self.python), "-m", self.export, str(checkpoint), str(folder)]

    def missing(self, checkpoint: Path | None = None) -> str | None:
        """Why it cannot take part; None when it can.

        Args:
            checkpoint: of the case, where there is one already.
        """
        if self.environment is not None and not (self.python.parent.parent / ".installed").is_file():
            return f"{self.environment} is not there: make {self.target}"
        absent = [package for package in self.packages if importlib.util.find_spec(package) is None]
        if absent:
            return f"{', '.join(absent)} not installed: pip install 'safelight[export,bench]'"
        compiler = os.environ.get("CXX", "g++")
        if self.compiler and shutil.which(compiler) is None:
            return f"torch.compile needs a C++ compiler, and {compiler} is not there: install it, or name one in CXX"
        if self.published_shapes and checkpoint is not None:
            return _unpublished(checkpoint)
        return None


def _unpublished(checkpoint: Path) -> str | None:
    config = json.loads((checkpoint / "unet" / "config.json").read_text(encoding="utf-8"))
    channels = config.get("block_out_channels")
    if channels in _PUBLISHED_CHANNELS:
        return None
    return f"it knows the published shapes alone, and the UNet's channels are {channels}"


def _diffusers(name: str, precision: str, **options: Any) -> Peer:
    return Peer(
        name=name,
        tool="diffusers",
        precision=precision,
        module="benchmarks.peers.diffusers",
        options=options,
        packages=("torch", "diffusers", "transformers"),
        compiler=bool(options.get("compile")),
    )


def _genai(name: str, precision: str) -> Peer:
    return Peer(
        name=name,
        tool="OpenVINO GenAI",
        precision=precision,
        module="benchmarks.peers.openvino_genai",
        environment=".venv-genai",
        target="peers-genai",
        export="benchmarks.peers.openvino_genai_export",
    )


def _sdcpp(name: str, precision: str) -> Peer:
    return Peer(
        name=name,
        tool="stable-diffusion.cpp",
        precision=precision,
        module="benchmarks.peers.stable_diffusion_cpp",
        environment=".venv-sdcpp",
        target="peers-sdcpp",
        published_shapes=True,
    )


_ALL = (
    _diffusers("diffusers", "fp32"),
    _diffusers("diffusers bf16", "bf16", channels_last=True),
    _diffusers("diffusers, torch.compile", "fp32", compile=True, freezing=True),
    _diffusers("diffusers bf16, torch.compile", "bf16", channels_last=True, compile=True, freezing=True),
    Peer(
        name="optimum-onnx",
        tool="optimum-onnx",
        precision="fp32",
        module="benchmarks.peers.optimum_onnx",
        environment=".venv-optimum",
        target="interchange-setup",
        export="benchmarks.peers.optimum_onnx_export",
    ),
    _genai("OpenVINO GenAI", "fp32"),
    _genai("OpenVINO GenAI bf16", "bf16"),
    _sdcpp("stable-diffusion.cpp", "fp32"),
    _sdcpp("stable-diffusion.cpp fp16", "fp16"),
    _sdcpp("stable-diffusion.cpp bf16", "bf16"),
)

#: by name
PEERS: Mapping[str, Peer] = MappingProxyType({peer.name: peer for peer in _ALL})
