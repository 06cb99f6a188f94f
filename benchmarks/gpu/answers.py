"""What the PyTorch reference gives: `python -m safelight.benchmarks.gpu.answers TASK.json`.

In float32 it is the truth, in half precision it says how far from that half precision may be; nothing is timed. The
task's folder gets `answers.npz`, and then `halves.json`. A task without batches asks for no picture, and for nothing in
half precision: on a CPU, where a GPU's engine is to be compared, these take too long.
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from safelight.runtime.backends import Array

from ..torch_reference import Placement, reference_pipeline
from .compare import picture_psnr, relative_error
from .contenders import Task
from .opened import RuntimePipeline


def main(task_file: Path) -> None:
    """Answers."""
    task = Task.from_json(json.loads(task_file.read_text()))
    folder = Path(task.folder)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    with np.load(task.inputs) as arrays:
        latents = arrays["latents"][:1]
        inputs = {name: arrays[name] for name in arrays.files if name != "latents"}
    truth = _answer(task, torch.float32, inputs, latents)
    named: dict[str, Any] = truth
    np.savez(folder / "answers.npz", **named)
    halves: dict[str, Any] = {"flops": _flops(task, inputs)}
    if task.batches:
        half = _answer(task, torch.float16, inputs, latents)
        halves["unet_error"] = relative_error(half["unet"], truth["unet"])
        halves["psnr"] = picture_psnr(half["picture"][0], truth["picture"][0])
    (folder / "halves.json").write_text(json.dumps(halves))


def _answer(task: Task, dtype: torch.dtype, inputs: dict[str, Array], latents: Array) -> dict[str, Array]:
    """The UNet's output, and the picture, (1, height, width, 3), if any is asked for."""
    assert task.case.checkpoint is not None
    placed = Placement(device=task.device, dtype=dtype)
    pipeline = RuntimePipeline(reference_pipeline(Path(task.case.checkpoint), placed), task.case)
    answer = {"unet": pipeline.unet(inputs)}
    if task.batches:
        answer["picture"] = pipeline.pictures(latents, task.case.num_inference_steps).image
    del pipeline
    gc.collect()
    if task.device != "cpu":
        torch.cuda.empty_cache()
    return answer


def _flops(task: Task, inputs: dict[str, Array]) -> int:
    """Operations of a guided step, as PyTorch counts them: nothing is computed, on the meta device."""
    from safelight.export.networks import build, describe

    assert task.case.checkpoint is not None
    config = json.loads((Path(task.case.checkpoint) / "unet" / "config.json").read_text())
    index = json.loads((Path(task.case.checkpoint) / "model_index.json").read_text())
    model: Any = build("UNet2DConditionModel", config, torch.float16)  # a reference module
    (description,) = describe("UNet2DConditionModel", "unet", model.config.to_dict(), index)
    tensors = [
        torch.empty(inputs[tensor.name].shape, dtype=tensor.dtype or torch.float16, device="meta")
        for tensor in description.inputs
    ]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        description.module(model)(*tensors)
    return int(counter.get_total_flops())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
