"""The other tool, optimum-onnx, in the environment that `make interchange-setup` makes."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from safelight.runtime.tokenizer import CLIPTokenizer

HERE = Path(__file__).parent
ENVIRONMENT = checkpoints.ROOT / ".venv-optimum"
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}


@dataclass(frozen=True)
class Optimum:
    """optimum-onnx, in processes of its own."""

    workspace: Path

    def pictures(
        self, model: Path, pipeline: str, *, seed: int = 0, save_to: Path | None = None, **call: Any
    ) -> np.ndarray:
        """The float images, (batch, height, width, 3), that a pipeline of theirs makes of a model folder.

        Args:
            model: the folder.
            pipeline: the class.
            seed: of torch's generator.
            save_to: where the pipeline saves itself afterwards.
            **call: its arguments; pictures and arrays among them.
        """
        folder = self.workspace / str(len(list(self.workspace.iterdir())))
        folder.mkdir()
        for name, value in list(call.items()):
            if isinstance(value, np.ndarray):
                np.save(folder / f"{name}.npy", call.pop(name))
            elif isinstance(value, Image.Image):
                call.pop(name).save(folder / f"{name}.png")
        job = {"model": str(model), "pipeline": pipeline, "seed": seed, "call": call}
        (folder / "job.json").write_text(json.dumps({**job, "save_to": None if save_to is None else str(save_to)}))
        _run(ENVIRONMENT / "bin" / "python", HERE / "optimum_pipeline.py", folder)
        return np.load(folder / "pictures.npy")

    def export(self, checkpoint: Path) -> Path:
        """Their export of a checkpoint, made once for each release of theirs."""
        key = checkpoints.key([checkpoint.name], [HERE / "constraints.txt", Path(__file__)])
        command = (ENVIRONMENT / "bin" / "optimum-cli", "export", "onnx", "--model", hub_layout(checkpoint))
        folder = checkpoints.CACHE / "optimum" / f"{checkpoint.name}-{key}"
        return checkpoints.publish(folder, lambda target: _run(*command, target))


def _run(*command: Any) -> None:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=OFFLINE, check=False)
    assert result.returncode == 0, result.stderr


def hub_layout(checkpoint: Path) -> Path:
    """A checkpoint as the hub has it: transformers 5, which saved ours, writes what 4 does not read.

    That is a text model's weights without their prefix, and a tokenizer without vocabulary and merges.
    """

    def write(target: Path) -> None:
        shutil.copytree(checkpoint, target, dirs_exist_ok=True)
        for file in target.glob("text_encoder*/model.safetensors"):
            state = load_file(file)
            named = {name if name.startswith("text_") else f"text_model.{name}": state[name] for name in state}
            save_file(named, file, metadata={"format": "pt"})
        for tokenizer in target.glob("tokenizer*"):
            CLIPTokenizer.from_pretrained(tokenizer).save_pretrained(tokenizer)

    key = checkpoints.key([checkpoint.name], [Path(__file__)])
    return checkpoints.publish(checkpoints.CACHE / "hub-layout" / f"{checkpoint.name}-{key}", write)


@pytest.fixture(scope="session")
def optimum(tmp_path_factory: pytest.TempPathFactory) -> Optimum:
    """optimum-onnx; a test that needs it is skipped where it is not installed."""
    if not (ENVIRONMENT / "bin" / "optimum-cli").is_file():
        pytest.skip("optimum-onnx is not there: make interchange-setup")
    return Optimum(tmp_path_factory.mktemp("optimum"))
