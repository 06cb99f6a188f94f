"""Text to image with Stable Diffusion (Rombach et al. 2022, arXiv:2112.10752)."""

import inspect
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..backends import Array
from ..conditioning import check_embeddings, encode_prompts, prompt_list
from ..denoising import denoise
from ..guidance import guide
from ..image import to_pil, to_unit_interval
from ..latents import check_size, initial_latents
from ..networks import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from ..random import Generator
from ..schedulers import Scheduler
from ..tokenizer import CLIPTokenizer
from .base import DiffusionPipeline

if TYPE_CHECKING:
    from PIL.Image import Image

OutputType = Literal["pil", "np", "latent"]

#: (pipeline, step, timestep, tensors) -> the tensors to go on with; only those that changed need be there
StepCallback = Callable[[Any, int, float, dict[str, Array]], Mapping[str, Array] | None]

_CALLBACK_TENSORS = ("latents", "prompt_embeds")


@dataclass(frozen=True)
class StableDiffusionPipelineOutput:
    """What a call made."""

    images: "list[Image] | Array"  # PIL images; (batch, height, width, 3) in [0, 1] for "np"; latents for "latent"
    nsfw_content_detected: list[bool] | None = None
    timings: dict[str, float] = field(default_factory=dict)  # seconds in each stage: text, denoise, decode


@dataclass
class _Guided:
    """The UNet with its conditioning: what `denoise` calls. A callback may change embeddings and scale in between."""

    unet: UNet2DConditionModel
    prompt_embeds: Array  # (batch, length, width), or (2 * batch, ...) with the negative half first when guided
    guidance_scale: float
    guidance_rescale: float

    def __call__(self, sample: Array, timestep: float) -> Array:
        if self.guidance_scale <= 1:
            return self.unet(sample, timestep, self.prompt_embeds).sample
        output = self.unet(np.concatenate([sample, sample]), timestep, self.prompt_embeds).sample
        unconditional, conditional = np.split(output, 2)
        return guide(unconditional, conditional, self.guidance_scale, self.guidance_rescale)


class StableDiffusionPipeline(DiffusionPipeline):
    """Text to image: `pipeline("a cat", num_inference_steps=25, seed=0).images[0]`."""

    component_names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel
    scheduler: Scheduler
    interrupt: bool = False  # a callback sets it to end the loop after the step

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generator | Sequence[Generator] | None = None,
        latents: Array | None = None,
        prompt_embeds: Array | None = None,
        negative_prompt_embeds: Array | None = None,
        *,
        seed: int | Sequence[int] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Makes pictures from prompts.

        Args:
            prompt: one, or several for a batch; or `prompt_embeds` instead.
            height: of the image in pixels, a multiple of the autoencoder's factor; the model's own when None.
            width: likewise.
            num_inference_steps: how many times the noise is lowered; PNDM calls the model once more.
            timesteps: for schedulers that take their own, instead of `num_inference_steps`.
            sigmas: likewise.
            guidance_scale: how far past the negative prompt's prediction to go; 1 and below is no guidance.
            negative_prompt: what to move away from; empty when None.
            num_images_per_prompt: each with its own noise.
            eta: of DDIM (arXiv:2010.02502, equation 16): 0 is deterministic, 1 is DDPM.
            generator: where noise comes from; one for the batch, or one per image.
            latents: the starting noise, (batch, channels, height / factor, width / factor), unit variance.
            prompt_embeds: (batch, length, width), instead of `prompt`.
            negative_prompt_embeds: the same shape, instead of `negative_prompt`.
            seed: short for `generator=Generator(seed)`; a list gives one per image. None chooses one.
            output_type: "pil" images, "np" (batch, height, width, 3) float32 in [0, 1], or "latent".
            return_dict: a `StableDiffusionPipelineOutput` when true, else the tuple of its first two fields.
            guidance_rescale: phi of arXiv:2305.08891, section 3.4.
            clip_skip: how many of the text encoder's last layers to leave out for the prompt; the negative prompt keeps
                them all, as in diffusers.
            callback_on_step_end: called after each step with (pipeline, step, timestep, tensors); the tensors of the
                mapping that it returns replace those of the loop.
            callback_on_step_end_tensor_inputs: which tensors it is given: "latents", "prompt_embeds".

        Raises:
            TypeError: a prompt that is no string, a size that is no integer.
            ValueError: a size that the autoencoder cannot make, arrays of the wrong shape, arguments that exclude
                each other or do not fit together.
        """
        output_types = ("pil", "np", "latent")
        if output_type not in output_types:
            raise ValueError(f"output_type must be one of {', '.join(output_types)}, got {output_type!r}")
        if unknown := set(callback_on_step_end_tensor_inputs) - set(_CALLBACK_TENSORS):
            known = ", ".join(_CALLBACK_TENSORS)
            raise ValueError(f"callbacks are given {known}; there is no {', '.join(sorted(unknown))}")
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt must be at least 1, got {num_images_per_prompt}")
        height, width = self._size(height, width, latents)
        stopwatch = _Stopwatch()

        guided = guidance_scale > 1
        embeddings = self._embeddings(prompt, prompt_embeds, "prompt", clip_skip)
        if guided:
            negative = self._negative(negative_prompt, negative_prompt_embeds, embeddings)
        batch = embeddings.shape[0] * num_images_per_prompt
        embeddings = np.repeat(embeddings, num_images_per_prompt, axis=0)
        if guided:
            embeddings = np.concatenate([np.repeat(negative, num_images_per_prompt, axis=0), embeddings])
        predict = _Guided(self.unet, embeddings, guidance_scale, guidance_rescale)
        stopwatch.stage("text")

        set_timesteps(self.scheduler, num_inference_steps, timesteps, sigmas)
        noise_source = _generators(generator, seed, batch)
        shape = (batch, int(self.unet.config["in_channels"]), height // self.vae.factor, width // self.vae.factor)
        noise = initial_latents(shape, noise_source, latents) * np.float32(self.scheduler.init_noise_sigma)
        self.interrupt = False
        steps = self.scheduler.timesteps.tolist()
        with self.progress_bar(len(steps)) as bar:

            def on_step(index: int, timestep: float, latents: Array) -> Array:
                bar.update()
                if callback_on_step_end is None:
                    return latents
                tensors = {"latents": latents, "prompt_embeds": predict.prompt_embeds}
                given = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                changed = callback_on_step_end(self, index, timestep, given) or {}
                predict.prompt_embeds = changed.get("prompt_embeds", predict.prompt_embeds)
                return changed.get("latents", latents)

            denoised = denoise(
                predict,
                self.scheduler,
                noise,
                steps,
                on_step=on_step,
                interrupted=lambda: self.interrupt,
                eta=eta,
                generator=noise_source,
            )
        stopwatch.stage("denoise")

        images: Any = denoised
        if output_type != "latent":
            images = to_unit_interval(self.vae.decode(self.vae.unscale(denoised)))
            images = to_pil(images) if output_type == "pil" else images
        stopwatch.stage("decode")
        output = StableDiffusionPipelineOutput(images=images, timings=stopwatch.stages)
        return output if return_dict else (output.images, output.nsfw_content_detected)

    def _size(self, height: int | None, width: int | None, latents: Array | None) -> tuple[int, int]:
        """Height and width in pixels: as asked, or those of the latents given, or the model's own."""
        factor = self.vae.factor
        sample_size = self.unet.config["sample_size"]
        own = list(sample_size) if isinstance(sample_size, list | tuple) else [sample_size, sample_size]
        if latents is not None and np.ndim(latents) == 4:
            own = list(np.shape(latents)[2:])
        if None in own and None in (height, width):
            raise ValueError("this model's config.json names no sample_size: give height and width")
        height = own[0] * factor if height is None else height
        width = own[1] * factor if width is None else width
        check_size("height", height, factor)
        check_size("width", width, factor)
        return int(height), int(width)

    def _embeddings(
        self,
        prompt: str | Sequence[str] | None,
        embeds: Array | None,
        name: str,
        clip_skip: int | None,
        max_length: int | None = None,
    ) -> Array:
        if (prompt is None) == (embeds is None):
            count = "neither" if prompt is None else "both"
            raise ValueError(f"give either {name} or {name}_embeds, got {count}")
        if prompt is None:
            return check_embeddings(f"{name}_embeds", np.asarray(embeds), int(self.unet.config["cross_attention_dim"]))
        prompts = prompt_list(name, prompt)
        return encode_prompts(self.tokenizer, self.text_encoder, prompts, clip_skip=clip_skip, max_length=max_length)

    def _negative(self, prompt: str | Sequence[str] | None, embeds: Array | None, positive: Array) -> Array:
        """The embeddings to move away from, one for each of the prompt's; text is encoded at their length."""
        if prompt is None and embeds is None:
            prompt = ""
        length = positive.shape[1] if 2 <= positive.shape[1] <= self.tokenizer.model_max_length else None
        negative = self._embeddings(prompt, embeds, "negative_prompt", clip_skip=None, max_length=length)
        if len(negative) not in (1, len(positive)):
            raise ValueError(f"there are {len(positive)} prompts and {len(negative)} negative prompts")
        if negative.shape[1:] != positive.shape[1:]:
            raise ValueError(
                f"negative_prompt_embeds must be {positive.shape[1:]} each, as prompt_embeds are, "
                f"got {negative.shape[1:]}"
            )
        return np.broadcast_to(negative, positive.shape)


def set_timesteps(
    scheduler: Scheduler, num_inference_steps: int, timesteps: Sequence[int] | None, sigmas: Sequence[float] | None
) -> None:
    """Sets a scheduler's timesteps: so many, or the caller's own.

    Raises:
        ValueError: both are given, or the scheduler does not take its own.
    """
    given: dict[str, Any] = {"timesteps": timesteps, "sigmas": sigmas}
    own = {name: value for name, value in given.items() if value is not None}
    if not own:
        scheduler.set_timesteps(num_inference_steps)
        return
    if len(own) == 2:
        raise ValueError("give timesteps or sigmas, not both")
    (name,) = own
    if name not in inspect.signature(scheduler.set_timesteps).parameters:
        raise ValueError(f"{type(scheduler).__name__} does not take its own {name}")
    scheduler.set_timesteps(**own)


def _generators(
    generator: Generator | Sequence[Generator] | None, seed: int | Sequence[int] | None, batch: int
) -> Generator | list[Generator]:
    """Where the noise comes from: one generator for the batch, or one per image."""
    if generator is not None and seed is not None:
        raise ValueError("give generator or seed, not both")
    if seed is None and generator is None:
        return Generator(secrets.randbits(63))
    if generator is None:
        assert seed is not None
        generator = [Generator(one) for one in seed] if isinstance(seed, Sequence | np.ndarray) else Generator(seed)
    if isinstance(generator, Generator):
        return generator
    if not isinstance(generator, list | tuple) or not all(isinstance(one, Generator) for one in generator):
        raise TypeError("generator must be a safelight.runtime.Generator or a list of them; seed=n is short for one")
    if len(generator) != batch:
        raise ValueError(f"there are {batch} images and {len(generator)} generators or seeds")
    return list(generator)


class _Stopwatch:
    """Seconds between one stage's end and the next."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._last = perf_counter()

    def stage(self, name: str) -> None:
        now = perf_counter()
        self.stages[name] = now - self._last
        self._last = now
