"""What is made once and kept from one run to the next: checkpoints, exports, starting noise, what other tools need.

Each is a folder whose name ends in a key of what made it, and that is there as a whole or not at all.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from safelight.runtime import Generator

from .cases import Case
from .gpu.jobs import make
from .machine import version

_ROOT = Path(__file__).resolve().parents[1]
#: what decides what an export is
EXPORTING_CODE = ("export/**/*.py", "reference/*.py", "runtime/manifest.py")


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """A folder on a disk."""

    folder: Path
    time_limit: float = 3600.0  # seconds, of each thing that is made
    progress: Callable[[str], None] = print
    failures: dict[str, str] = field(default_factory=dict)  # of what was tried: it is not tried again

    def checkpoint(self, case: Case) -> Path:
        """The case's checkpoint, in diffusers' layout.

        Raises:
            RuntimeError: it cannot be made; the last line of the log says why.
            ValueError: the case is a folder whose checkpoint nobody has named.
        """
        model = case.model
        if model.checkpoint is not None:
            return Path(model.checkpoint)
        if model.shape is None:
            raise ValueError(f"{model.name} has no checkpoint: --checkpoint says where it is")
        return self.made(
            f"{model.name}-checkpoint",
            key([model.shape], ["benchmarks/published.py"]),
            lambda folder: [sys.executable, "-m", "safelight.benchmarks.published", str(folder), str(model.shape)],
        )

    def export(self, case: Case) -> Path:
        """The case's model folder, in float32.

        Raises:
            RuntimeError: it cannot be made; the last line of the log says why.
        """
        if case.model.folder is not None:
            return Path(case.model.folder)
        checkpoint = self.checkpoint(case)
        program = [sys.executable, "-m", "safelight.runtime", "export", "--no-validate", "--dtype", "fp32"]
        return self.made(
            f"{case.model.name}-export",
            key([checkpoint.name, *exporters()], EXPORTING_CODE),
            lambda folder: [*program, str(checkpoint), str(folder)],
        )

    def latents(self, case: Case) -> Path:
        """The starting noise of all contenders, (batch, channels, height, width) of unit variance, in a NumPy file.

        Each picture's is that of a seed of its own, the next number.
        """
        shape = case.latent_shape
        file = self.folder / f"latents-{case.seed}-{'x'.join(map(str, shape))}.npy"
        if not file.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(f".{os.getpid()}.npy")
            seeds = range(case.seed, case.seed + case.batch)
            np.save(partial, np.concatenate([Generator(seed).randn((1, *shape[1:])) for seed in seeds]))
            partial.replace(file)
        return file

    def made(
        self,
        name: str,
        made_by: str,
        command: Callable[[Path], Sequence[str]],
        environment: Mapping[str, str] | None = None,
    ) -> Path:
        """A folder that a command fills, unless it has done so before.

        Args:
            name: of the folder, to which the key is added.
            made_by: see `key`.
            command: of the folder that it is to fill, which is not there yet; its parent is.
            environment: of the command's process; this process's when None.

        Raises:
            RuntimeError: the command failed, or took too long.
        """
        target = self.folder / f"{name}-{made_by}"
        if not target.exists() and target.name not in self.failures:
            self.progress(f"{target.name} is made, once")
            variables = {**(environment or os.environ), "HF_HUB_OFFLINE": "1"}
            job = make(name, target, command, seconds=self.time_limit, environment=variables)
            if job.failure is not None:
                self.failures[target.name] = job.failure
        if target.name in self.failures:
            raise RuntimeError(f"{name}: {self.failures[target.name]}; see {target.name}.log")
        return target

    def has(self, name: str) -> bool:
        """Whether a folder of this name was made, by whatever."""
        return any(self.folder.glob(f"{name}-{'[0-9a-f]' * _KEY_LENGTH}"))


_KEY_LENGTH = 12


def key(words: Sequence[Any], patterns: Sequence[str] = ()) -> str:
    """What tells apart what was made by different code, from different sources.

    Args:
        words: anything that JSON can write.
        patterns: of files in the repository whose contents count.
    """
    digest = hashlib.sha256(json.dumps(list(words)).encode())
    for pattern in patterns:
        for file in sorted(_ROOT.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:_KEY_LENGTH]


def exporters() -> list[str | None]:
    """The versions of what an export is made with."""
    return [version(package) for package in ("torch", "onnxscript", "onnx-ir")]
