"""PyTorch's pipelines as contenders: the reference's modules in the runtime's loop, and diffusers."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from safelight.runtime.backends import Array

from ..torch_reference import Placement, TorchNetwork, reference_pipeline
from .case import Picture
from .contenders import Task
from .opened import RuntimePipeline

#: kernels of Inductor in a CUDA graph: of torch.compile's modes the fastest that does not search for minutes
_compiled = partial(torch.compile, mode="reduce-overhead", dynamic=False)


def placement(device: str, *, compiled: bool) -> Placement:
    """In half precision, as fast as PyTorch knows how."""
    torch.backends.cudnn.benchmark = True
    eager = Placement(device=device, dtype=torch.float16, channels_last=True)
    return replace(eager, prepare=_compiled_where_it_matters) if compiled else eager


def _compiled_where_it_matters(network: str, module: nn.Module) -> nn.Module:
    return cast("nn.Module", _compiled(module)) if network in ("unet", "vae_decoder") else module


def wait(device: str) -> None:
    """Until the GPU has done all that it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


class ReferencePipeline(RuntimePipeline):
    """The reference's modules in the runtime's loop. What a step takes is measured with its inputs on the GPU."""

    def __init__(self, task: Task, placed: Placement) -> None:
        assert task.case.checkpoint is not None
        super().__init__(reference_pipeline(Path(task.case.checkpoint), placed), task.case)
        self._device = task.device

    def step(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """See `Opened`."""
        network: TorchNetwork = self._pipeline.unet.network
        call = network.placed(inputs)

        def run() -> None:
            call()
            wait(self._device)

        return run


class DiffusersPipeline:
    """diffusers, with everything on the GPU from the prompt to the picture."""

    def __init__(self, task: Task, *, compiled: bool) -> None:
        from diffusers import DiffusionPipeline

        assert task.case.checkpoint is not None
        torch.backends.cudnn.benchmark = True
        self._case, self._device = task.case, task.device
        pipeline: Any = DiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
            task.case.checkpoint, dtype=torch.float16
        )
        self._xl = hasattr(pipeline, "text_encoder_2")
        if not self._xl:
            pipeline.register_modules(safety_checker=None)
        pipeline = pipeline.to(task.device)
        pipeline.set_progress_bar_config(disable=True)
        for network in (pipeline.unet, pipeline.vae):
            network.to(memory_format=torch.channels_last)
        if compiled:
            pipeline.unet = _compiled(pipeline.unet)
            pipeline.vae.decode = _compiled(pipeline.vae.decode)
        self._pipeline = pipeline

    def _call(self, inputs: Mapping[str, Array]) -> Callable[[], torch.Tensor]:
        placed = {name: torch.from_numpy(array).to(self._device, torch.float16) for name, array in inputs.items()}
        sample, text = placed.pop("sample"), placed.pop("encoder_hidden_states")
        timestep = placed.pop("timestep").float()
        options: dict[str, Any] = {"added_cond_kwargs": placed} if placed else {}

        @torch.inference_mode()
        def call() -> torch.Tensor:
            found: torch.Tensor = self._pipeline.unet(
                sample, timestep, encoder_hidden_states=text, return_dict=False, **options
            )[0]
            return found

        return call

    def unet(self, inputs: Mapping[str, Array]) -> Array:
        """See `Opened`."""
        found: Array = self._call(inputs)().float().cpu().numpy()
        return found

    def step(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """See `Opened`."""
        call = self._call(inputs)

        def run() -> None:
            call()
            wait(self._device)

        return run

    def pictures(self, latents: Array, num_inference_steps: int) -> Picture:
        """See `Opened`."""
        started = perf_counter()
        names = ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
        with torch.inference_mode():
            encoded = self._pipeline.encode_prompt(
                self._case.prompt,
                device=torch.device(self._device),
                num_images_per_prompt=1,
                do_classifier_free_guidance=True,
            )
        wait(self._device)
        ends = [perf_counter()]

        def noted(_pipeline: object, step: int, _timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
            if step == num_inference_steps - 1:
                wait(self._device)
                ends.append(perf_counter())
            return tensors

        output = self._pipeline(
            height=self._case.height,
            width=self._case.width,
            num_inference_steps=num_inference_steps,
            guidance_scale=self._case.guidance_scale,
            num_images_per_prompt=len(latents),
            latents=torch.from_numpy(latents).to(self._device, torch.float16),
            output_type="np",
            callback_on_step_end=noted,
            **dict(zip(names, encoded, strict=False)),
        )
        ended = perf_counter()
        seconds = {"text": ends[0] - started, "denoise": ends[1] - ends[0], "decode": ended - ends[1]}
        return Picture(np.asarray(output.images, dtype=np.float32), {"total": ended - started, **seconds})
