"""What is made once and kept from one command to the next: checkpoints, exports, inputs, answers, compiled kernels.

Each is a folder whose name ends in a key of what made it, and that is there as a whole or not at all.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..inputs import unet_inputs
from ..workspace import EXPORTING_CODE, exporters, key
from .cases import GpuCase


@dataclass(frozen=True)
class Workspace:
    """A folder for one case."""

    folder: Path
    case: GpuCase
    steps: int  # of a picture
    largest_batch: int

    @property
    def checkpoint(self) -> Path:
        """The checkpoint with random weights."""
        return self.folder / f"checkpoint-{key([self.case.shape], ['benchmarks/published.py'])}"

    @property
    def export(self) -> Path:
        """The model folder that is exported from it."""
        return self.folder / f"export-{key([self.checkpoint.name, *exporters()], EXPORTING_CODE)}"

    @property
    def inputs(self) -> Path:
        """The file of arrays that every contender gets."""
        return self.folder / f"inputs-{key([repr(self.case), self.largest_batch], ['benchmarks/inputs.py'])}.npz"

    @property
    def answers(self) -> Path:
        """What the reference gives for them."""
        code = ["benchmarks/torch_reference.py", "benchmarks/gpu/answers.py", "reference/*.py"]
        return self.folder / f"answers-{key([self.checkpoint.name, self.inputs.name, self.steps], code)}"

    def engines(self, flavour: str) -> Path:
        """The store of one TensorRT's engines."""
        return self.folder / f"engines-{flavour}"

    def results(self, contender: str) -> Path:
        """A new folder for what one contender finds."""
        folder = self.folder / "results" / contender
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def size(self) -> tuple[int, int]:
        """Height and width in pixels, as the case or the checkpoint has them."""
        if self.case.height is not None and self.case.width is not None:
            return self.case.height, self.case.width
        side = int(_config(self.checkpoint, "unet")["sample_size"]) * self._factor()
        return side, side

    def _factor(self) -> int:
        return int(2 ** (len(_config(self.checkpoint, "vae")["block_out_channels"]) - 1))

    def write_inputs(self) -> None:
        """Writes the arrays, which depend on the checkpoint's configurations."""
        height, width = (side // self._factor() for side in self.size())
        length = _config(self.checkpoint, "text_encoder").get("max_position_embeddings", 77)
        arrays = unet_inputs(_config(self.checkpoint, "unet"), height=height, width=width, length=length)
        channels = arrays["sample"].shape[1]
        noise = np.random.default_rng(1).standard_normal((self.largest_batch, channels, height, width))
        partial = self.inputs.with_suffix(".partial.npz")
        named: dict[str, Any] = {**arrays, "latents": noise.astype(np.float32)}
        np.savez(partial, **named)
        partial.replace(self.inputs)


def checkpoint_command(workspace: Workspace, folder: Path) -> list[str]:
    """What writes the checkpoint into a folder."""
    return [sys.executable, "-m", "safelight.benchmarks.published", str(folder), workspace.case.shape]


def export_command(workspace: Workspace, folder: Path) -> list[str]:
    """What writes the model folder into a folder."""
    options = ["--dtype", "fp16", "--no-validate"]
    return [sys.executable, "-m", "safelight.runtime", "export", str(workspace.checkpoint), str(folder), *options]


def build_command(workspace: Workspace, flavour: str, gpu: str | None) -> list[str]:
    """What builds TensorRT's engines into their store."""
    height, width = workspace.size()
    command = [sys.executable, "-m", "safelight.runtime", "build", str(workspace.export), "--target", flavour]
    command += ["--shape", f"{width}x{height}", "--batch", f"1-{workspace.largest_batch}", "--dtype", "fp16"]
    command += ["--output", str(workspace.engines(flavour))]
    return [*command, "--gpu", gpu] if gpu is not None and flavour == "tensorrt-rtx" else command


def _config(checkpoint: Path, component: str) -> Mapping[str, Any]:
    config: Mapping[str, Any] = json.loads((checkpoint / component / "config.json").read_text())
    return config
