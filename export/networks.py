"""What there is to export: one description per network serves the trace, the manifest and the check."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from safelight.reference import (
    AutoencoderKL,
    AutoencoderTiny,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    DPTForDepthEstimation,
    StableDiffusionSafetyChecker,
    UNet2DConditionModel,
    UNet2DModel,
)
from safelight.reference.safety_checker import CONCEPTS, SPECIAL_CARE_CONCEPTS

Config = Mapping[str, Any]


@dataclass(frozen=True)
class TensorDescription:
    """An input or output: a fixed dimension is a number, a free one its name."""

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype | None = None  # None: the network's own floating-point dtype
    below: int | None = None  # of integers: random examples lie in [0, below)
    spread: float = 1.0  # the standard deviation of random examples

    def without_values(self, sizes: Mapping[str, int], dtype: torch.dtype) -> Tensor:
        """A tensor on the meta device, the free dimensions taken from `sizes`; `dtype` is the network's."""
        shape = [sizes[dimension] if isinstance(dimension, str) else dimension for dimension in self.shape]
        return torch.empty(shape, dtype=self.dtype or dtype, device="meta")


@dataclass(frozen=True)
class NetworkDescription:
    """One graph to export: which part of a component's module it is, and what goes in and out."""

    name: str  # the folder that it is written to
    component: str  # the folder of the checkpoint that it comes from
    run: Callable[..., Any]  # the part of the component's module that the graph holds, over plain tensors
    inputs: tuple[TensorDescription, ...]
    outputs: tuple[TensorDescription, ...]
    trace_sizes: Mapping[str, int]  # no two alike and no 1, so that no dimension passes for another or for a constant
    check_sizes: Sequence[Mapping[str, int]]  # what the written graph is run at
    full_precision: bool = False  # computed in float32 whatever the others are: float16 ends before its numbers do

    def module(self, model: nn.Module) -> nn.Module:
        """The part of the component's module that the graph holds, as a module over plain tensors."""
        return _Part(model, self.run)


class _Part(nn.Module):
    """Calls one function of a model; its parameters are the model's, with the prefix `model.`."""

    def __init__(self, model: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.run = run

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self.model, *inputs)


def _encode_text(model: CLIPTextModel, input_ids: Tensor) -> tuple[Tensor, ...]:
    output = model(input_ids)
    return (output.last_hidden_state, output.pooler_output, *output.hidden_states)


def _encode_and_project_text(model: CLIPTextModelWithProjection, input_ids: Tensor) -> tuple[Tensor, ...]:
    output = model(input_ids)
    return (output.text_embeds, output.last_hidden_state, *output.hidden_states)


def _text_encoder(component: str, config: Config, _pipeline: Config) -> list[NetworkDescription]:
    width = config["hidden_size"]
    outputs = (
        TensorDescription("last_hidden_state", ("batch", "sequence_length", width)),
        TensorDescription("pooler_output", ("batch", width)),
    )
    return [_text_network(component, config, _encode_text, outputs)]


def _projecting_text_encoder(component: str, config: Config, _pipeline: Config) -> list[NetworkDescription]:
    outputs = (
        TensorDescription("text_embeds", ("batch", config["projection_dim"])),
        TensorDescription("last_hidden_state", ("batch", "sequence_length", config["hidden_size"])),
    )
    return [_text_network(component, config, _encode_and_project_text, outputs)]


def _text_network(
    component: str, config: Config, run: Callable[..., Any], outputs: tuple[TensorDescription, ...]
) -> NetworkDescription:
    """A text encoder that gives those outputs and, after them, all its hidden states."""
    length, width = config["max_position_embeddings"], config["hidden_size"]
    states = tuple(
        TensorDescription(f"hidden_states.{layer}", ("batch", "sequence_length", width))
        for layer in range(config["num_hidden_layers"] + 1)
    )
    token_ids = TensorDescription("input_ids", ("batch", "sequence_length"), torch.int64, below=config["vocab_size"])
    return NetworkDescription(
        name=component,
        component=component,
        run=run,
        inputs=(token_ids,),
        outputs=(*outputs, *states),
        trace_sizes={"batch": 2, "sequence_length": length - 1},
        check_sizes=({"batch": 2, "sequence_length": length}, {"batch": 1, "sequence_length": 5}),
    )


#: sizes that SDXL's UNet is told: original, crop and target, two numbers each
TIME_IDS = 6
#: those that its refiner is told: original and crop, and an aesthetic score
REFINER_TIME_IDS = 5
#: random sizes lie below this
_SIZES_BELOW = 1024


def _unet(component: str, config: Config, pipeline: Config) -> list[NetworkDescription]:
    image = ("height", "width")
    added: tuple[TensorDescription, ...] = ()
    if config["time_cond_proj_dim"] is not None:
        added = (TensorDescription("timestep_cond", ("batch", config["time_cond_proj_dim"])),)
    if config["addition_embed_type"] is not None:
        count = REFINER_TIME_IDS if pipeline.get("requires_aesthetics_score") else TIME_IDS
        pooled = config["projection_class_embeddings_input_dim"] - count * config["addition_time_embed_dim"]
        added += (
            TensorDescription("text_embeds", ("batch", pooled)),
            TensorDescription("time_ids", ("batch", count), below=_SIZES_BELOW),
        )
    names = [tensor.name for tensor in added]

    def predict(model: UNet2DConditionModel, sample: Tensor, timestep: Tensor, text: Tensor, *more: Tensor) -> Tensor:
        return model.predict(sample, timestep, text, **dict(zip(names, more, strict=True)))

    return [
        NetworkDescription(
            name=component,
            component=component,
            run=predict,
            inputs=(
                TensorDescription("sample", ("batch", config["in_channels"], *image)),
                TensorDescription("timestep", ("batch",), torch.float32, below=1000),
                TensorDescription("encoder_hidden_states", ("batch", "sequence_length", config["cross_attention_dim"])),
                *added,
            ),
            outputs=(TensorDescription("out_sample", ("batch", config["out_channels"], *image)),),
            trace_sizes={"batch": 2, "height": 22, "width": 30, "sequence_length": 7},
            check_sizes=(
                {"batch": 2, "height": 16, "width": 16, "sequence_length": 32},
                {"batch": 1, "height": 11, "width": 22, "sequence_length": 9},
            ),
        )
    ]


def _unconditional_unet(component: str, config: Config, _pipeline: Config) -> list[NetworkDescription]:
    image = ("height", "width")
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    timesteps = config["num_train_timesteps"] if config["time_embedding_type"] == "learned" else 1000
    classes: tuple[TensorDescription, ...] = ()
    if config["class_embed_type"] == "timestep":
        classes = (TensorDescription("class_labels", ("batch",), torch.float32, below=timesteps),)
    elif config["class_embed_type"] == "identity":
        width = config["time_embedding_dim"] or 4 * config["block_out_channels"][0]
        classes = (TensorDescription("class_labels", ("batch", width)),)
    elif config["num_class_embeds"] is not None:
        classes = (TensorDescription("class_labels", ("batch",), torch.int64, below=config["num_class_embeds"]),)
    return [
        NetworkDescription(
            name=component,
            component=component,
            run=UNet2DModel.predict,
            inputs=(
                TensorDescription("sample", ("batch", config["in_channels"], *image)),
                TensorDescription("timestep", ("batch",), torch.float32, below=timesteps),
                *classes,
            ),
            outputs=(TensorDescription("out_sample", ("batch", config["out_channels"], *image)),),
            trace_sizes={"batch": 2, "height": 3 * factor, "width": 5 * factor},
            check_sizes=(
                {"batch": 2, "height": 2 * factor, "width": 2 * factor},
                {"batch": 1, "height": 2 * factor, "width": 4 * factor},
            ),
        )
    ]


#: pixels of the depth map along each side of a patch, whatever the patch's size
_DEPTH_A_PATCH = 16


def _depth_estimator(component: str, config: Config, _pipeline: Config) -> list[NetworkDescription]:
    size = config["image_size"]
    height, width = size if isinstance(size, list | tuple) else (size, size)
    deep, wide = (_DEPTH_A_PATCH * (side // config["patch_size"]) for side in (height, width))
    return [
        NetworkDescription(
            name=component,
            component=component,
            run=DPTForDepthEstimation.predict,
            inputs=(TensorDescription("pixel_values", ("batch", config["num_channels"], height, width)),),
            outputs=(TensorDescription("predicted_depth", ("batch", deep, wide)),),
            trace_sizes={"batch": 2},
            check_sizes=({"batch": 2}, {"batch": 1}),
        )
    ]


def _check_safety(model: StableDiffusionSafetyChecker, clip_input: Tensor) -> tuple[Tensor, ...]:
    output = model(clip_input)
    return output.has_nsfw_concepts, output.special_scores, output.concept_scores


def _safety_checker(component: str, config: Config, _pipeline: Config) -> list[NetworkDescription]:
    vision = config["vision_config"]
    size = vision["image_size"]
    return [
        NetworkDescription(
            name=component,
            component=component,
            run=_check_safety,
            inputs=(TensorDescription("clip_input", ("batch", vision["num_channels"], size, size)),),
            outputs=(
                TensorDescription("has_nsfw_concepts", ("batch",), torch.bool),
                TensorDescription("special_scores", ("batch", SPECIAL_CARE_CONCEPTS), torch.float32),
                TensorDescription("concept_scores", ("batch", CONCEPTS), torch.float32),
            ),
            trace_sizes={"batch": 2},
            check_sizes=({"batch": 2}, {"batch": 1}),
        )
    ]


def _autoencoder(component: str, config: Config, pipeline: Config) -> list[NetworkDescription]:
    latent, factor = config["latent_channels"], 2 ** (len(config["block_out_channels"]) - 1)
    parameters = TensorDescription("latent_parameters", ("batch", 2 * latent, "latent_height", "latent_width"))
    # diffusers runs SDXL's in float32 where its configuration asks for that, and no other
    wide = bool(config["force_upcast"] and "StableDiffusionXL" in str(pipeline.get("_class_name")))
    networks = [
        _encoder(component, config, AutoencoderKL.encode_parameters, parameters, factor),
        _decoder(component, config, AutoencoderKL.decode_sample, spread=1 / config["scaling_factor"]),
    ]
    return [replace(network, full_precision=wide) for network in networks]


def _tiny_autoencoder(component: str, config: Config, _pipeline: Config) -> list[NetworkDescription]:
    factor = 2 ** (len(config["num_encoder_blocks"]) - 1)
    latents = TensorDescription("latents", ("batch", config["latent_channels"], "latent_height", "latent_width"))
    return [
        _encoder(component, config, AutoencoderTiny.encode_latents, latents, factor),
        _decoder(component, config, AutoencoderTiny.decode_sample),
    ]


def _encoder(
    component: str, config: Config, run: Callable[..., Any], output: TensorDescription, factor: int
) -> NetworkDescription:
    return NetworkDescription(
        name=f"{component}_encoder",
        component=component,
        run=run,
        inputs=(TensorDescription("sample", ("batch", config["in_channels"], "height", "width")),),
        outputs=(output,),
        trace_sizes={"batch": 2, "height": 6 * factor, "width": 10 * factor},
        check_sizes=(
            {"batch": 2, "height": 8 * factor, "width": 8 * factor},
            {"batch": 1, "height": 5 * factor, "width": 11 * factor},
        ),
    )


def _decoder(component: str, config: Config, run: Callable[..., Any], *, spread: float = 1.0) -> NetworkDescription:
    latents = ("batch", config["latent_channels"], "latent_height", "latent_width")
    return NetworkDescription(
        name=f"{component}_decoder",
        component=component,
        run=run,
        inputs=(TensorDescription("latent_sample", latents, spread=spread),),
        outputs=(TensorDescription("sample", ("batch", config["out_channels"], "height", "width")),),
        trace_sizes={"batch": 2, "latent_height": 6, "latent_width": 10},
        check_sizes=(
            {"batch": 2, "latent_height": 8, "latent_width": 8},
            {"batch": 1, "latent_height": 5, "latent_width": 11},
        ),
    )


@dataclass(frozen=True)
class ComponentKind:
    """A class of networks that can be exported: the reference's module, and the graphs that it is written as."""

    model: Any  # a reference class: `from_config`, `from_pretrained`
    describe: Callable[[str, Config, Config], list[NetworkDescription]]
    suffixes: tuple[str, ...] = ("",)  # the networks' names are the component's with each of these


#: the class named in model_index.json -> how it is exported
COMPONENT_KINDS: Mapping[str, ComponentKind] = {
    "CLIPTextModel": ComponentKind(CLIPTextModel, _text_encoder),
    "CLIPTextModelWithProjection": ComponentKind(CLIPTextModelWithProjection, _projecting_text_encoder),
    "UNet2DConditionModel": ComponentKind(UNet2DConditionModel, _unet),
    "AutoencoderKL": ComponentKind(AutoencoderKL, _autoencoder, ("_encoder", "_decoder")),
    "AutoencoderTiny": ComponentKind(AutoencoderTiny, _tiny_autoencoder, ("_encoder", "_decoder")),
    "UNet2DModel": ComponentKind(UNet2DModel, _unconditional_unet),
    "DPTForDepthEstimation": ComponentKind(DPTForDepthEstimation, _depth_estimator),
    "StableDiffusionSafetyChecker": ComponentKind(StableDiffusionSafetyChecker, _safety_checker),
}


def network_names(class_name: str, component: str) -> tuple[str, ...]:
    """The names of the networks that a component is written as, in their order."""
    return tuple(component + suffix for suffix in COMPONENT_KINDS[class_name].suffixes)


def describe(class_name: str, component: str, config: Config, pipeline: Config) -> list[NetworkDescription]:
    """The graphs that a component is written as.

    Args:
        class_name: of the component, as model_index.json has it; a key of `COMPONENT_KINDS`.
        component: the name of its folder.
        config: the reference module's configuration, complete with defaults.
        pipeline: model_index.json, whose options say what a configuration does not.
    """
    return COMPONENT_KINDS[class_name].describe(component, config, pipeline)


def build(class_name: str, config: Config, dtype: torch.dtype) -> nn.Module:
    """The reference module on the meta device: shapes and names without weights."""
    with torch.device("meta"):
        model = COMPONENT_KINDS[class_name].model.from_config(config)
    return cast("nn.Module", model.to(dtype).eval())
