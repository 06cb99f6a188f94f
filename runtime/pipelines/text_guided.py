"""What the text-guided tasks share: prompts, guidance, the loop and the pictures at its end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from ..backends import Array
from ..conditioning import PromptEmbeddings, PromptEncoder, check_embeddings
from ..denoising import denoise
from ..guidance import guidance_scale_embedding
from ..image import to_pil, to_unit_interval
from ..latents import check_size
from ..long_prompts import chunk_count, encode_long_prompts
from ..networks import Autoencoder, CLIPTextModel, UNet2DConditionModel
from ..random import Generator
from ..schedulers import Scheduler
from ..textual_inversion import fitting_textual_inversion, load_textual_inversion
from ..tokenizer import CLIPTokenizer
from .call import Call, OutputType
from .guided_unet import CONDITIONS, GuidedUNet
from .outputs import StableDiffusionPipelineOutput
from .prompts import Prompts
from .sizes import REFINER_TIME_IDS, TIME_IDS
from .sped_up import SpedUpPipeline

#: the option of model_index.json that embeds no negative prompt, which is not an empty one, as zeros
ZEROS_FOR_NO_PROMPT = "force_zeros_for_empty_prompt"


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a loop begins, and what it needs besides prompts."""

    latents: Array  # (batch, latent_channels, height / factor, width / factor), as noisy as the first timestep has them
    timesteps: Sequence[float]
    generator: Generator | Sequence[Generator]  # of the noise that steps draw
    channels: Array | None = None  # see `GuidedUNet`
    #: (index of the step, latents) -> the latents to go on with, before the callback sees them
    after_step: Callable[[int, Array], Array] | None = None


class TextGuidedPipeline(SpedUpPipeline, abstract=True):
    """Text encoders, a UNet that works on latents, an autoencoder: Stable Diffusion in all its families."""

    component_names: ClassVar[tuple[str, ...]] = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    #: tokenizers and their text encoders, by name
    text_components: ClassVar[tuple[tuple[str, str], ...]] = (("tokenizer", "text_encoder"),)
    #: text encoder -> the tensor of an embedding file that is for it; None for the only one
    embedding_parts: ClassVar[Mapping[str, str | None]] = MappingProxyType({"text_encoder": None})
    #: whether the UNet attends to the last layer but one of its text encoders, without the final norm
    penultimate: ClassVar[bool] = False
    #: whether no negative prompt is embedded as zeros, where model_index.json does not say it
    zeros_for_no_prompt: ClassVar[bool] = False
    #: what a callback may ask for
    callback_tensors: ClassVar[tuple[str, ...]] = ("latents", "prompt_embeds")

    vae: Autoencoder
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel
    scheduler: Scheduler
    interrupt: bool = False  # a callback sets it to end the loop after the step
    prompt_weights: bool = False  # whether `(word:1.3)` and `[word]` weigh, as in AUTOMATIC1111's webui
    long_prompts: bool = False  # whether what is too long for the text encoder is encoded in chunks, not cut off
    _guidance_scale: float = 1.0  # of the call that is running; a callback may change it, as in diffusers

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
            pretrained_model_name_or_path: a safetensors file, of diffusers' layout or of AUTOMATIC1111's; for SDXL one
                with `clip_l` and `clip_g`.
            token: the word; the file's own when None.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds no embedding, one of another width, or is a pickle; the word is taken.
        """
        path = pretrained_model_name_or_path
        parts = {name: part for name, part in self.embedding_parts.items() if getattr(self, name) is not None}
        for name, part in parts.items():  # all of them, before one is taught
            fitting_textual_inversion(path, folder=self.folder, token=token, component=name, part=part)
        for tokenizer, name in ((tokenizer, name) for tokenizer, name in self.text_components if name in parts):
            load_textual_inversion(
                path,
                token=token,
                folder=self.folder,
                engine=self.engine,
                tokenizer=getattr(self, tokenizer),
                text_encoder=getattr(self, name),
                component=name,
                part=parts[name],
            )

    @property
    def guidance_scale(self) -> float:
        """The scale of the call that is running."""
        return self._guidance_scale

    @property
    def prompt_encoders(self) -> list[PromptEncoder]:
        """The text encoders that the model has, each with its tokenizer.

        Raises:
            ValueError: it has none.
        """
        pairs = [(getattr(self, tokenizer), getattr(self, encoder)) for tokenizer, encoder in self.text_components]
        encoders = [PromptEncoder(*pair, penultimate=self.penultimate) for pair in pairs if None not in pair]
        if not encoders:
            raise ValueError("this pipeline has no text encoder: give prompt_embeds, and with guidance negative ones")
        return encoders

    @property
    def _takes_pooled(self) -> bool:
        """Whether the UNet is told pooled text and sizes."""
        return self.unet.config["addition_embed_type"] is not None

    @property
    def time_ids(self) -> int:
        """How many sizes a UNet that takes any is told: see `Sizes`."""
        return REFINER_TIME_IDS if self.folder.index.get("requires_aesthetics_score") else TIME_IDS

    def check_channels(self, task: str, *known: int) -> int:
        """How many channels the UNet takes.

        Raises:
            ValueError: they are none of those that a task can give.
        """
        found = int(self.unet.config["in_channels"])
        if found not in known:
            raise ValueError(f"{task} needs a UNet of {' or '.join(map(str, known))} channels, this one has {found}")
        return found

    def _guidance(self, prompts: Prompts, guidance_scale: float, guidance_rescale: float = 0.0) -> GuidedUNet:
        """The UNet steered by prompts.

        Raises:
            TypeError: a prompt that is no string.
            ValueError: arguments that exclude each other or do not fit together.
        """
        count = prompts.num_images_per_prompt
        if count < 1:
            raise ValueError(f"num_images_per_prompt must be at least 1, got {count}")
        knows_scale = self._knows_scale  # and needs no guidance
        halves = self._halves(prompts, guided=guidance_scale > 1 and not knows_scale)
        conditions = {"encoder_hidden_states": _batch([half.hidden for half in halves], count)}
        if self._takes_pooled:
            pooled = [half.pooled for half in halves if half.pooled is not None]
            conditions["text_embeds"] = _batch(pooled, count)
        if knows_scale:
            embedded = guidance_scale_embedding(guidance_scale - 1, int(self.unet.config["time_cond_proj_dim"]))
            conditions["timestep_cond"] = np.repeat(embedded, len(conditions["encoder_hidden_states"]), axis=0)
        unet = self._unet_for_picture()
        return GuidedUNet(unet, conditions, 1.0 if knows_scale else guidance_scale, guidance_rescale)

    def _halves(self, prompts: Prompts, *, guided: bool) -> list[PromptEmbeddings]:
        """The embeddings of the prompts, and before them, if guided, of what to move away from."""
        if (prompts.prompt is None) == (prompts.prompt_embeds is None):
            count = "neither" if prompts.prompt is None else "both"
            raise ValueError(f"give either prompt or prompt_embeds, got {count}")
        if prompts.prompt_embeds is not None:
            positive = self._given("prompt_embeds", prompts.prompt_embeds, prompts.pooled_prompt_embeds)
        else:
            texts = prompts.texts(len(self.prompt_encoders))
            chunks = self._chunks(prompts, texts, guided)
            positive = self._encoded(texts, prompts.clip_skip, min_chunks=chunks)
            if prompts.pooled_prompt_embeds is not None:
                positive = replace(positive, pooled=self._pooled("pooled_prompt_embeds", prompts.pooled_prompt_embeds))
        return [self._negative(prompts, positive), positive] if guided else [positive]

    def _negative(self, prompts: Prompts, positive: PromptEmbeddings) -> PromptEmbeddings:
        """The embeddings to move away from, one for each of the prompt's; text is encoded at their length."""
        if prompts.negative_prompt is not None and prompts.negative_prompt_embeds is not None:
            raise ValueError("give either negative_prompt or negative_prompt_embeds, got both")
        if prompts.negative_prompt_embeds is not None:
            negative = self._given(
                "negative_prompt_embeds", prompts.negative_prompt_embeds, prompts.negative_pooled_prompt_embeds
            )
        elif prompts.negative_prompt is None and self.folder.index.get(ZEROS_FOR_NO_PROMPT, self.zeros_for_no_prompt):
            pooled = None if positive.pooled is None else np.zeros_like(positive.pooled)
            return PromptEmbeddings(np.zeros_like(positive.hidden), pooled)
        else:
            texts = prompts.negative_texts(len(self.prompt_encoders))
            longest = min(encoder.tokenizer.model_max_length for encoder in self.prompt_encoders)
            length = positive.hidden.shape[1]
            chunks = max(length // longest, 1) if self.long_prompts else 1
            negative = self._encoded(texts, None, length if 2 <= length <= longest else None, min_chunks=chunks)
        if negative.hidden.shape[1:] != positive.hidden.shape[1:]:
            raise ValueError(
                f"negative_prompt_embeds must be {positive.hidden.shape[1:]} each, as prompt_embeds are, "
                f"got {negative.hidden.shape[1:]}"
            )
        if len(negative.hidden) not in (1, len(positive.hidden)):
            raise ValueError(f"there are {len(positive.hidden)} prompts and {len(negative.hidden)} negative prompts")
        hidden = np.broadcast_to(negative.hidden, positive.hidden.shape)
        if positive.pooled is None or negative.pooled is None:
            return PromptEmbeddings(hidden)
        return PromptEmbeddings(hidden, np.broadcast_to(negative.pooled, positive.pooled.shape))

    def _given(self, name: str, embeds: Array, pooled: Array | None) -> PromptEmbeddings:
        """Embeddings that the caller brings.

        Raises:
            ValueError: they are of another shape than the UNet takes, or pooled ones are missing.
        """
        hidden = check_embeddings(name, np.asarray(embeds), int(self.unet.config["cross_attention_dim"]))
        pooled_name = name.replace("prompt_embeds", "pooled_prompt_embeds")
        if not self._takes_pooled:
            return PromptEmbeddings(hidden)
        if pooled is None:
            raise ValueError(f"{name} needs {pooled_name} beside it")
        return PromptEmbeddings(hidden, self._pooled(pooled_name, pooled))

    def _pooled(self, name: str, pooled: Array) -> Array:
        config = self.unet.config
        sizes = self.time_ids * int(config["addition_time_embed_dim"])
        width = int(config["projection_class_embeddings_input_dim"]) - sizes
        return check_embeddings(name, np.asarray(pooled), width, rank=2)

    def _chunks(self, prompts: Prompts, texts: list[list[str]], guided: bool) -> int:
        """How many chunks the longest of prompts and negative prompts needs: all are to be equally long."""
        if not self.long_prompts:
            return 1
        encoders = self.prompt_encoders
        every = list(zip(encoders, texts, strict=True))
        if guided and prompts.negative_prompt_embeds is None:
            every += zip(encoders, prompts.negative_texts(len(encoders)), strict=True)
        return max(chunk_count(encoder.tokenizer, each, weighted=self.prompt_weights) for encoder, each in every)

    def _encoded(
        self, texts: list[list[str]], clip_skip: int | None, max_length: int | None = None, *, min_chunks: int
    ) -> PromptEmbeddings:
        """What all text encoders make of their prompts, side by side; pooled is the last one's."""
        found = [
            encode_long_prompts(
                encoder,
                prompts,
                weighted=self.prompt_weights,
                chunked=self.long_prompts,
                clip_skip=clip_skip,
                max_length=max_length,
                min_chunks=min_chunks,
            )
            for encoder, prompts in zip(self.prompt_encoders, texts, strict=True)
        ]
        hidden = [each.hidden for each in found]
        return PromptEmbeddings(hidden[0] if len(hidden) == 1 else np.concatenate(hidden, axis=2), found[-1].pooled)

    def _check_callback(self, names: Sequence[str]) -> None:
        """Refuses tensors that a callback cannot be given.

        Raises:
            ValueError: names those that it can.
        """
        if unknown := set(names) - set(self.callback_tensors):
            known = ", ".join(self.callback_tensors)
            raise ValueError(f"callbacks are given {known}; there is no {', '.join(sorted(unknown))}")

    def _made(
        self, predict: GuidedUNet, start: Start, call: Call, finish: Callable[[Any], Any] = lambda images: images
    ) -> Any:
        """What a call returns: the loop from its start to the end, and the pictures.

        Args:
            predict: the UNet with the prompts.
            start: where the loop begins.
            call: how it runs.
            finish: what is to be done with the pictures.
        """
        predict.channels = start.channels
        denoised = self._denoised(predict, start, call)
        call.stopwatch.stage("denoise")
        self.engine.release()
        images, nsfw = self._decoded(denoised, call.output_type)
        images = finish(images)
        call.stopwatch.stage("decode")
        self.engine.release()
        return self._output(images, nsfw, call)

    def _output(self, images: Any, nsfw: list[bool] | None, call: Call) -> Any:
        """The output, or the tuple of its first two fields."""
        output = StableDiffusionPipelineOutput(images=images, nsfw_content_detected=nsfw, timings=call.stopwatch.stages)
        return output if call.return_dict else (images, nsfw)

    def _denoised(self, predict: GuidedUNet, start: Start, call: Call) -> Array:
        """The latents at the end of the loop."""
        self.interrupt = False
        self._guidance_scale = predict.guidance_scale
        calls = len(start.timesteps)
        predict.calls, predict.done = calls, 0
        predict.guided, predict.reuse = self.speed.guided_calls(calls), self.speed.step_reuse(calls)
        with self.progress_bar(len(start.timesteps)) as bar:

            def on_step(index: int, timestep: float, latents: Array) -> Array:
                bar.update()
                if start.after_step is not None:
                    latents = start.after_step(index, latents)
                return (
                    latents
                    if call.callback_on_step_end is None
                    else self._called_back(call, predict, index, timestep, latents)
                )

            return denoise(
                predict,
                self.scheduler,
                start.latents,
                start.timesteps,
                on_step=on_step,
                interrupted=lambda: self.interrupt,
                eta=call.eta,
                generator=start.generator,
            )

    def _called_back(self, call: Call, predict: GuidedUNet, index: int, timestep: float, latents: Array) -> Array:
        """The latents to go on with after the callback, which may also have changed conditions and scale."""
        if call.callback_on_step_end is None:
            return latents
        conditions = {name: CONDITIONS[name] for name in self.callback_tensors if name in CONDITIONS}
        tensors = {"latents": latents, **{name: predict.conditions[graph] for name, graph in conditions.items()}}
        given = {name: tensors[name] for name in call.callback_on_step_end_tensor_inputs}
        changed = call.callback_on_step_end(self, index, timestep, given) or {}
        for name, graph in conditions.items():
            if name in changed:
                predict.conditions[graph] = changed[name]
        predict.guidance_scale = self._guidance_scale
        return changed.get("latents", latents)

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


def _batch(halves: Sequence[Array], num_images_per_prompt: int) -> Array:
    """The embeddings of all branches as one batch, each as often as there are images of its prompt."""
    return np.concatenate([np.repeat(half, num_images_per_prompt, axis=0) for half in halves])
