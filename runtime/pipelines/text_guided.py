"""What the tasks of Stable Diffusion share: prompts, guidance, the loop and the pictures at its end."""

import inspect
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from ..backends import Array
from ..conditioning import check_embeddings, prompt_list
from ..denoising import denoise
from ..guidance import guide
from ..image import to_pil, to_unit_interval
from ..latents import check_size
from ..long_prompts import encode_long_prompt_pair, encode_long_prompts
from ..networks import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from ..random import Generator
from ..schedulers import Scheduler
from ..textual_inversion import load_textual_inversion
from ..tokenizer import CLIPTokenizer
from .base import DiffusionPipeline

if TYPE_CHECKING:
    from PIL.Image import Image

OutputType = Literal["pil", "np", "latent"]
OUTPUT_TYPES = ("pil", "np", "latent")

#: (pipeline, step, timestep, tensors) -> the tensors to go on with; only those that changed need be there
StepCallback = Callable[[Any, int, float, dict[str, Array]], Mapping[str, Array] | None]

_CALLBACK_TENSORS = ("latents", "prompt_embeds")


@dataclass(frozen=True)
class StableDiffusionPipelineOutput:
    """What a call made."""

    images: "list[Image] | Array"  # PIL images; (batch, height, width, 3) in [0, 1] for "np"; latents for "latent"
    nsfw_content_detected: list[bool] | None = None  # which of them are black; None where nobody looked
    timings: dict[str, float] = field(default_factory=dict)  # seconds in each stage: text, image, denoise, decode


@dataclass
class GuidedUNet:
    """The UNet with its conditioning: what `denoise` calls. A callback may change embeddings and scale in between."""

    unet: UNet2DConditionModel
    prompt_embeds: Array  # (batch, length, width), or (2 * batch, ...) with the negative half first when guided
    guidance_scale: float
    guidance_rescale: float = 0.0
    channels: Array | None = None  # (batch, channels, height, width): appended to the latents, of a mask or a depth

    @property
    def batch(self) -> int:
        """How many pictures it is for."""
        return len(self.prompt_embeds) // (2 if self.guidance_scale > 1 else 1)

    def __call__(self, sample: Array, timestep: float) -> Array:
        """The guided prediction for latents, (batch, latent channels, height, width)."""
        if self.channels is not None:
            sample = np.concatenate([sample, self.channels], axis=1)
        if self.guidance_scale <= 1:
            return self.unet(sample, timestep, self.prompt_embeds).sample
        output = self.unet(np.concatenate([sample, sample]), timestep, self.prompt_embeds).sample
        unconditional, conditional = np.split(output, 2)
        return guide(unconditional, conditional, self.guidance_scale, self.guidance_rescale)


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How the loop runs: where it starts, what noise its steps draw, and who is told of each step."""

    timesteps: Sequence[float]
    generator: Generator | Sequence[Generator]
    eta: float
    callback: StepCallback | None
    callback_tensors: Sequence[str]
    #: (index of the step, latents) -> the latents to go on with, before the callback sees them
    after_step: Callable[[int, Array], Array] | None = None


class TextGuidedPipeline(DiffusionPipeline, abstract=True):
    """A pipeline of Stable Diffusion: a text encoder, a UNet that works on latents, an autoencoder."""

    component_names: ClassVar[tuple[str, ...]] = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel
    scheduler: Scheduler
    interrupt: bool = False  # a callback sets it to end the loop after the step
    prompt_weights: bool = False  # whether `(word:1.3)` and `[word]` weigh, as in AUTOMATIC1111's webui
    long_prompts: bool = False  # whether what is too long for the text encoder is encoded in chunks, not cut off

    def enable_prompt_weights(self, enabled: bool = True) -> None:
        """`(word)`, `(word:1.3)` and `[word]` in prompts give words more weight or less; see `prompt_weights`."""
        self.prompt_weights = enabled

    def enable_long_prompts(self, enabled: bool = True) -> None:
        """Prompts longer than the text encoder takes are encoded in chunks; see `long_prompts`."""
        self.long_prompts = enabled

    def load_textual_inversion(self, pretrained_model_name_or_path: str | Path, token: str | None = None) -> None:
        """Teaches the text encoder a word (Gal et al. 2022, arXiv:2208.01618).

        Pipelines that share this one's networks know it too.

        Args:
            pretrained_model_name_or_path: a safetensors file, of diffusers' layout or of AUTOMATIC1111's.
            token: the word; the file's own when None.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds no embedding, one of another width, or is a pickle; the word is taken.
        """
        load_textual_inversion(
            pretrained_model_name_or_path,
            token=token,
            folder=self.folder,
            engine=self.engine,
            tokenizer=self.tokenizer,
            text_encoder=self.text_encoder,
        )

    def _guidance(
        self,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None,
        prompt_embeds: Array | None,
        negative_prompt_embeds: Array | None,
        *,
        num_images_per_prompt: int,
        guidance_scale: float,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
    ) -> GuidedUNet:
        """The UNet steered by prompts: what each of a pipeline's arguments means is said there.

        Raises:
            TypeError: a prompt that is no string.
            ValueError: arguments that exclude each other or do not fit together.
        """
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt must be at least 1, got {num_images_per_prompt}")
        guided = guidance_scale > 1
        if guided and self.long_prompts and prompt_embeds is None and negative_prompt_embeds is None:
            halves = self._equally_long(prompt, negative_prompt, clip_skip)
        else:
            embeddings = self._embeddings(prompt, prompt_embeds, "prompt", clip_skip)
            halves = [self._negative(negative_prompt, negative_prompt_embeds, embeddings)] if guided else []
            halves.append(embeddings)
        embeddings = np.concatenate([np.repeat(half, num_images_per_prompt, axis=0) for half in halves])
        return GuidedUNet(self.unet, embeddings, guidance_scale, guidance_rescale)

    def _equally_long(
        self, prompt: str | Sequence[str] | None, negative_prompt: str | Sequence[str] | None, clip_skip: int | None
    ) -> list[Array]:
        """The embeddings of negative prompts and of prompts, in as many chunks as the longest of them needs."""
        if prompt is None:
            raise ValueError("give either prompt or prompt_embeds, got neither")
        positive, negative = encode_long_prompt_pair(
            self.tokenizer,
            self.text_encoder,
            prompt_list("prompt", prompt),
            prompt_list("negative_prompt", "" if negative_prompt is None else negative_prompt),
            weighted=self.prompt_weights,
            chunked=True,
            clip_skip=clip_skip,
        )
        return [_for_each(negative, positive), positive]

    def _denoised(self, predict: GuidedUNet, latents: Array, loop: Loop) -> Array:
        """The latents at the end of the loop."""
        self.interrupt = False
        with self.progress_bar(len(loop.timesteps)) as bar:

            def on_step(index: int, timestep: float, latents: Array) -> Array:
                bar.update()
                if loop.after_step is not None:
                    latents = loop.after_step(index, latents)
                if loop.callback is None:
                    return latents
                tensors = {"latents": latents, "prompt_embeds": predict.prompt_embeds}
                given = {name: tensors[name] for name in loop.callback_tensors}
                changed = loop.callback(self, index, timestep, given) or {}
                predict.prompt_embeds = changed.get("prompt_embeds", predict.prompt_embeds)
                return changed.get("latents", latents)

            return denoise(
                predict,
                self.scheduler,
                latents,
                loop.timesteps,
                on_step=on_step,
                interrupted=lambda: self.interrupt,
                eta=loop.eta,
                generator=loop.generator,
            )

    def _decoded(self, latents: Array, output_type: OutputType) -> tuple[Any, list[bool] | None]:
        """The pictures of latents, as they were asked for, and which of them a safety checker made black."""
        if output_type == "latent":
            return latents, None
        images, nsfw = self._checked(to_unit_interval(self.vae.decode(self.vae.unscale(latents))))
        return to_pil(images) if output_type == "pil" else images, nsfw

    def _checked(self, images: Array) -> tuple[Array, list[bool] | None]:
        """The images, (batch, height, width, 3), as a safety checker leaves them; here there is none."""
        return images, None

    def _size(self, height: int | None, width: int | None, latents: Array | None = None) -> tuple[int, int]:
        """Height and width in pixels: as asked, or those of the latents given, or the model's own."""
        factor = self.vae.factor
        if height is None or width is None:
            if latents is not None and np.ndim(latents) == 4:
                own = tuple(side * factor for side in np.shape(latents)[2:])
            else:
                own = self._own_size()
            height, width = own[0] if height is None else height, own[1] if width is None else width
        check_size("height", height, factor)
        check_size("width", width, factor)
        return int(height), int(width)

    def _own_size(self) -> tuple[int, int]:
        """Height and width of the pictures that the model was trained on, in pixels.

        Raises:
            ValueError: its configuration does not say.
        """
        size = self.unet.config["sample_size"]
        height, width = size if isinstance(size, list | tuple) else (size, size)
        if height is None or width is None:
            raise ValueError("this model's config.json names no sample_size: give height and width")
        return height * self.vae.factor, width * self.vae.factor

    def _embeddings(
        self,
        prompt: str | Sequence[str] | None,
        embeds: Array | None,
        name: str,
        clip_skip: int | None,
        max_length: int | None = None,
        min_chunks: int = 1,
    ) -> Array:
        if (prompt is None) == (embeds is None):
            count = "neither" if prompt is None else "both"
            raise ValueError(f"give either {name} or {name}_embeds, got {count}")
        if prompt is None:
            return check_embeddings(f"{name}_embeds", np.asarray(embeds), int(self.unet.config["cross_attention_dim"]))
        prompts = prompt_list(name, prompt)
        return encode_long_prompts(
            self.tokenizer,
            self.text_encoder,
            prompts,
            weighted=self.prompt_weights,
            chunked=self.long_prompts,
            clip_skip=clip_skip,
            max_length=max_length,
            min_chunks=min_chunks,
        )

    def _negative(self, prompt: str | Sequence[str] | None, embeds: Array | None, positive: Array) -> Array:
        """The embeddings to move away from, one for each of the prompt's; text is encoded at their length."""
        if prompt is None and embeds is None:
            prompt = ""
        longest = self.tokenizer.model_max_length
        length = positive.shape[1] if 2 <= positive.shape[1] <= longest else None
        chunks = max(positive.shape[1] // longest, 1) if self.long_prompts else 1
        negative = self._embeddings(prompt, embeds, "negative_prompt", None, max_length=length, min_chunks=chunks)
        if negative.shape[1:] != positive.shape[1:]:
            raise ValueError(
                f"negative_prompt_embeds must be {positive.shape[1:]} each, as prompt_embeds are, "
                f"got {negative.shape[1:]}"
            )
        return _for_each(negative, positive)


def _for_each(negative: Array, positive: Array) -> Array:
    """The embeddings of one negative prompt for all prompts, or of one for each."""
    if len(negative) not in (1, len(positive)):
        raise ValueError(f"there are {len(positive)} prompts and {len(negative)} negative prompts")
    return np.broadcast_to(negative, positive.shape)


def check_call(output_type: str, callback_tensors: Sequence[str]) -> None:
    """Refuses what no pipeline can give.

    Raises:
        ValueError: an unknown output type, or a tensor that callbacks are not given.
    """
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
    if unknown := set(callback_tensors) - set(_CALLBACK_TENSORS):
        known = ", ".join(_CALLBACK_TENSORS)
        raise ValueError(f"callbacks are given {known}; there is no {', '.join(sorted(unknown))}")


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


def noise_sources(
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


def finished(images: Any, nsfw: list[bool] | None, stopwatch: "Stopwatch", return_dict: bool) -> Any:
    """What a call returns, when its pictures are made: the output, or the tuple of its first two fields."""
    stopwatch.stage("decode")
    output = StableDiffusionPipelineOutput(images=images, nsfw_content_detected=nsfw, timings=stopwatch.stages)
    return output if return_dict else (output.images, output.nsfw_content_detected)


class Stopwatch:
    """Seconds between one stage's end and the next."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._last = perf_counter()

    def stage(self, name: str) -> None:
        """Notes how long a stage took that ends now."""
        now = perf_counter()
        self.stages[name] = now - self._last
        self._last = now
