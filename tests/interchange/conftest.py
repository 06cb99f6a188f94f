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

    def export(self, checkpoint: Path, task: str, *, external_data: bool = False) -> Path:
        """Their export of a checkpoint, made once for each release of theirs.

        Args:
            checkpoint: in any layout.
            task: as they call it.
            external_data: weights beside the graphs, as they have them above 2 GB.
        """
        key = checkpoints.key([task, external_data], [HERE / "constraints.txt", Path(__file__)])
        program = (ENVIRONMENT / "bin" / "optimum-cli", "export", "onnx")
        command = (*program, "--model", hub_layout(checkpoint), "--task", task)
        folder = checkpoints.CACHE / "optimum" / f"{checkpoint.name}-{key}"
        environment = {"FORCE_ONNX_EXTERNAL_DATA": str(int(external_data))}
        return checkpoints.publish(folder, lambda target: _run(*command, target, **environment))


def _run(*command: Any, **environment: str) -> None:
    words = [str(word) for word in command]
    result = subprocess.run(words, capture_output=True, text=True, env=OFFLINE | environment, check=False)
    assert result.returncode == 0, result.stderr


def hub_layout(checkpoint: Path) -> Path:
    """A checkpoint as the hub has it: transformers 5, which saved ours, writes what 4 does not read.

    That is a text model's weights without their prefix, a tokenizer without vocabulary and merges, and an image
    processor's class.
    """

    def write(target: Path) -> None:
        shutil.copytree(checkpoint, target, dirs_exist_ok=True)
        for file in target.glob("text_encoder*/model.safetensors"):
            state = load_file(file)
            named = {name if name.startswith("text_") else f"text_model.{name}": state[name] for name in state}
            save_file(named, file, metadata={"format": "pt"})
        for tokenizer in target.glob("tokenizer*"):
            CLIPTokenizer.from_pretrained(tokenizer).save_pretrained(tokenizer)
        index = target / "model_index.json"
        index.write_text(index.read_text().replace("CLIPImageProcessorPil", "CLIPImageProcessor"))

    key = checkpoints.key([checkpoint.name], [Path(__file__)])
    return checkpoints.publish(checkpoints.CACHE / "hub-layout" / f"{checkpoint.name}-{key}", write)


@pytest.fixture(scope="session")
def optimum(tmp_path_factory: pytest.TempPathFactory) -> Optimum:
    """optimum-onnx; a test that needs it is skipped where it is not installed."""
    if not (ENVIRONMENT / "bin" / "optimum-cli").is_file():
        pytest.skip("optimum-onnx is not there: make interchange-setup")
    return Optimum(tmp_path_factory.mktemp("optimum"))
