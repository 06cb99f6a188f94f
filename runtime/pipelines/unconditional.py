"""Pictures from noise alone: DDPM (Ho et al. 2020, arXiv:2006.11239), DDIM (Song et al. 2020, arXiv:2010.02502)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..backends import Array
from ..denoising import denoise
from ..image import to_pil, to_unit_interval
from ..model_folder import ModelFolder
from ..networks import Engine, UNet2DModel
from ..random import Generator, randn
from ..schedulers import DDIMScheduler, Scheduler
from .base import DiffusionPipeline
from .call import noise_sources
from .outputs import ImagePipelineOutput, Stopwatch


class UnconditionalPipeline(DiffusionPipeline, abstract=True):
    """A UNet that works on pixels, and a scheduler."""

    component_names = ("unet", "scheduler")

    unet: UNet2DModel
    scheduler: Scheduler

    def _made(
        self,
        batch_size: int,
        generator: Generator | Sequence[Generator] | None,
        seed: int | Sequence[int] | None,
        num_inference_steps: int,
        output_type: str,
        return_dict: bool,
        **step_options: Any,
    ) -> Any:
        """Runs the loop from noise to pictures."""
        if output_type not in ("pil", "np"):
            raise ValueError(f"output_type must be one of pil, np, got {output_type!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        size = self.unet.config["sample_size"]
        if size is None:
            raise ValueError("this model's config.json names no sample_size")
        height, width = size if isinstance(size, list | tuple) else (size, size)
        stopwatch = Stopwatch()
        self.scheduler.set_timesteps(num_inference_steps)
        source = noise_sources(generator, seed, batch_size)
        noise = randn((batch_size, int(self.unet.config["in_channels"]), height, width), source)
        timesteps = self.scheduler.timesteps.tolist()
        with self.progress_bar(len(timesteps)) as bar:

            def on_step(_index: int, _timestep: float, sample: Array) -> Array:
                bar.update()
                return sample

            sample = denoise(
                lambda sample, timestep: self.unet(sample, timestep).sample,
                self.scheduler,
                noise,
                timesteps,
                on_step=on_step,
                generator=source,
                **step_options,
            )
        stopwatch.stage("denoise")
        self.engine.release()
        images: Any = to_unit_interval(sample)
        images = to_pil(images) if output_type == "pil" else images
        stopwatch.stage("image")
        return ImagePipelineOutput(images, stopwatch.stages) if return_dict else (images,)


class DDPMPipeline(UnconditionalPipeline):
    """Pictures from noise: `pipeline(seed=0).images[0]`."""

    def __call__(
        self,
        batch_size: int = 1,
        generator: Generator | Sequence[Generator] | None = None,
        num_inference_steps: int = 1000,
        output_type: Literal["pil", "np"] = "pil",
        return_dict: bool = True,
        *,
        seed: int | Sequence[int] | None = None,
    ) -> Any:
        """Makes pictures.

        Args:
            batch_size: how many.
            generator: where noise comes from; one for the batch, or one per image.
            num_inference_steps: how many times the noise is lowered.
            output_type: "pil" images, or "np" (batch, height, width, channels) float32 in [0, 1].
            return_dict: an `ImagePipelineOutput` when true, else a tuple.
            seed: short for `generator=Generator(seed)`; a list gives one per image. None chooses one.

        Raises:
            ValueError: a number that is out of range, or of generators that is not the batch's.
        """
        return self._made(batch_size, generator, seed, num_inference_steps, output_type, return_dict)


class DDIMPipeline(UnconditionalPipeline):
    """Pictures from noise in fewer steps: `pipeline(num_inference_steps=50, seed=0).images[0]`.

    Whatever scheduler the folder has, a `DDIMScheduler` is made of its configuration.
    """

    def __init__(self, folder: ModelFolder, engine: Engine, components: Mapping[str, Any]) -> None:
        scheduler = DDIMScheduler.from_config(components["scheduler"].config)
        super().__init__(folder, engine, {**components, "scheduler": scheduler})

    def __call__(
        self,
        batch_size: int = 1,
        generator: Generator | Sequence[Generator] | None = None,
        eta: float = 0.0,
        num_inference_steps: int = 50,
        use_clipped_model_output: bool | None = None,
        output_type: Literal["pil", "np"] = "pil",
        return_dict: bool = True,
        *,
        seed: int | Sequence[int] | None = None,
    ) -> Any:
        """Makes pictures. What is not said here is as in `DDPMPipeline`.

        Args:
            batch_size: how many.
            generator: where noise comes from; one for the batch, or one per image.
            eta: 0 is deterministic, 1 is DDPM (equation 16).
            num_inference_steps: how many times the noise is lowered.
            use_clipped_model_output: of DDIM's step; its own default when None.
            output_type: "pil" images, or "np" (batch, height, width, channels) float32 in [0, 1].
            return_dict: an `ImagePipelineOutput` when true, else a tuple.
            seed: short for `generator=Generator(seed)`; a list gives one per image. None chooses one.

        Raises:
            ValueError: a number that is out of range, or of generators that is not the batch's.
        """
        clipped = {} if use_clipped_model_output is None else {"use_clipped_model_output": use_clipped_model_output}
        return self._made(
            batch_size, generator, seed, num_inference_steps, output_type, return_dict, eta=eta, **clipped
        )
