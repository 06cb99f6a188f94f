"""The UNet of Stable Diffusion, of Rombach et al. 2022 (arXiv:2112.10752).

What later families add to the timestep's embedding is there where the configuration asks for it: SDXL's pooled text and
sizes (Podell et al. 2023, arXiv:2307.01952), and the guidance scale of latent consistency models (arXiv:2310.04378).
"""

# torch gives the call of a module no type
# mypy: no-warn-return-any

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .blocks import DownBlock, MidBlock, ResnetShape, TransformerShape, UpBlock
from .configuration import NetworkConfig
from .layers import TimestepEmbedding, timestep_frequencies
from .network import Network

#: the kinds of level -> whether they have transformers
_DOWN_BLOCKS = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
_UP_BLOCKS = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}

_TEXT_TIME = "text_time"  # of addition_embed_type: SDXL's

_TIME_WIDENING = 4  # the timestep's embedding is so many times as wide as its frequencies


@dataclass(frozen=True, kw_only=True)
class UNet2DConditionConfig(NetworkConfig):
    """The keys of a UNet's `config.json` that change its output; defaults are diffusers'.

    Where a key may be one number or one for each level, it is kept as it came; the methods spread it out.

    Attributes:
        attention_head_dim: the number of heads, not their width: an old mistake of diffusers that every checkpoint
            relies on.
        addition_embed_type: "text_time" adds an embedding of pooled text and of sizes to the timestep's; None nothing.
        addition_time_embed_dim: width of the embedding of each of those sizes.
        projection_class_embeddings_input_dim: width of pooled text and embedded sizes together.
        time_cond_proj_dim: width of the guidance scale's embedding, which is added to the timestep's; None for none.
    """

    network: ClassVar[str] = "UNet2DConditionModel"
    neutral: ClassVar[Mapping[str, object]] = MappingProxyType(
        {
            "act_fn": "silu",
            "attention_type": "default",
            "class_embed_type": None,
            "class_embeddings_concat": False,
            "conv_in_kernel": 3,
            "conv_out_kernel": 3,
            "cross_attention_norm": None,
            "dual_cross_attention": False,
            "encoder_hid_dim": None,
            "encoder_hid_dim_type": None,
            "mid_block_only_cross_attention": None,
            "mid_block_scale_factor": 1,
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "num_attention_heads": None,
            "num_class_embeds": None,
            "only_cross_attention": False,
            "resnet_out_scale_factor": 1.0,
            "resnet_skip_time_act": False,
            "resnet_time_scale_shift": "default",
            "reverse_transformer_layers_per_block": None,
            "time_embedding_act_fn": None,
            "time_embedding_dim": None,
            "time_embedding_type": "positional",
            "timestep_post_act": None,
        }
    )
    # a size that another addition_embed_type would need, and what only training reads
    without_effect: ClassVar[frozenset[str]] = frozenset({"addition_embed_type_num_heads", "dropout"})

    sample_size: int | tuple[int, ...] | None = None
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    down_block_types: tuple[str, ...] = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    upcast_attention: bool | None = False  # None as False, as SDXL's published configuration has it
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    time_cond_proj_dim: int | None = None

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        for key, kinds in (("down_block_types", _DOWN_BLOCKS), ("up_block_types", _UP_BLOCKS)):
            names = getattr(self, key)
            if unknown := [name for name in names if name not in kinds]:
                raise ValueError(f"{self.network}: {key} has {unknown[0]!r}, only {list(kinds)} are implemented")
            if len(names) != levels:
                raise ValueError(
                    f"{self.network}: {key} must have one entry for each of block_out_channels, {levels}, "
                    f"got {len(names)}"
                )
        for channels, heads in zip(self.block_out_channels, self.heads, strict=True):
            if channels % self.norm_num_groups or channels % heads or channels % 2:
                raise ValueError(
                    f"{self.network}: block_out_channels {channels} must be even and a multiple of "
                    f"norm_num_groups {self.norm_num_groups} and of attention_head_dim {heads}"
                )
        _ = self.layers, self.transformer_layers  # raise for wrong lengths
        if self.addition_embed_type not in (None, _TEXT_TIME):
            raise ValueError(
                f"{self.network}: addition_embed_type {self.addition_embed_type!r} is not implemented, "
                f"only {_TEXT_TIME!r} and None are"
            )
        if self.addition_embed_type is None and self.projection_class_embeddings_input_dim is not None:
            raise ValueError(
                f"{self.network}: projection_class_embeddings_input_dim is implemented for "
                f"addition_embed_type {_TEXT_TIME!r} alone"
            )
        widths = (self.addition_time_embed_dim, self.projection_class_embeddings_input_dim)
        if self.addition_embed_type == _TEXT_TIME and None in widths:
            raise ValueError(
                f"{self.network}: addition_embed_type {_TEXT_TIME!r} needs addition_time_embed_dim and "
                f"projection_class_embeddings_input_dim, got {widths[0]} and {widths[1]}"
            )

    @property
    def layers(self) -> tuple[int, ...]:
        """Resnet blocks of each level on the way down; there is one more on the way up."""
        return self._per_level("layers_per_block", len(self.block_out_channels))

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level."""
        return self._per_level("attention_head_dim", len(self.block_out_channels))

    @property
    def transformer_layers(self) -> tuple[int, ...]:
        """Transformer blocks in each transformer of each level."""
        return self._per_level("transformer_layers_per_block", len(self.block_out_channels))


@dataclass(frozen=True)
class UNet2DConditionOutput:
    """What a UNet gives.

    Attributes:
        sample: (batch, out_channels, height, width), the noise or whatever the scheduler's `prediction_type` names.
    """

    sample: Tensor


class UNet2DConditionModel(Network):
    """Predicts the noise in latents, given how much there is and a text."""

    config_class = UNet2DConditionConfig

    def __init__(self, config: UNet2DConditionConfig) -> None:
        super().__init__(config)
        self.config = config
        channels = config.block_out_channels
        resnet = ResnetShape(
            time_channels=_TIME_WIDENING * channels[0], groups=config.norm_num_groups, eps=config.norm_eps
        )
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(
            channels[0], resnet.time_channels, condition_channels=config.time_cond_proj_dim
        )
        if config.projection_class_embeddings_input_dim is not None:
            self.add_embedding = TimestepEmbedding(config.projection_class_embeddings_input_dim, resnet.time_channels)
        self.down_blocks = _down_blocks(config, resnet)
        self.mid_block = MidBlock(channels[-1], resnet=resnet, transformer=_transformer(config, level=-1))
        self.up_blocks = _up_blocks(config, resnet)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        timestep_cond: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
    ) -> UNet2DConditionOutput:
        """Predicts as `predict` does; the timestep may be a number, `text_embeds` and `time_ids` are in a mapping."""
        if not isinstance(timestep, Tensor):
            timestep = torch.tensor(timestep, dtype=torch.float32, device=sample.device)
        added = dict(added_cond_kwargs or {})
        if timestep_cond is not None:
            added["timestep_cond"] = timestep_cond
        return UNet2DConditionOutput(self.predict(sample, timestep, encoder_hidden_states, **added))

    def predict(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        *,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
        timestep_cond: Tensor | None = None,
    ) -> Tensor:
        """The model's output, from tensors to a tensor: what an export holds.

        Args:
            sample: (batch, in_channels, height, width), of any height and width.
            timestep: (batch,), (1,) or (), float or integer; may be fractional.
            encoder_hidden_states: (batch, sequence_length, cross_attention_dim).
            text_embeds: (batch, projection_dim), pooled text, where `addition_embed_type` is "text_time".
            time_ids: (batch, 6), original height and width, top and left of the crop, target height and width; or
                (batch, 5), with an aesthetic score in place of the last two; likewise.
            timestep_cond: (batch, time_cond_proj_dim), the embedded guidance scale, where there is such a width; None
                adds nothing.

        Returns:
            (batch, out_channels, height, width), in the dtype of `sample`.
        """
        if self.config.center_input_sample:
            sample = 2 * sample - 1
        embedded = self._embed(timestep, timestep_cond, sample.dtype)
        if self.config.addition_embed_type is not None:
            if text_embeds is None or time_ids is None:
                raise ValueError("this UNet needs text_embeds and time_ids")
            embedded = embedded + self._embed_text_and_sizes(text_embeds, time_ids, sample.dtype)
        time_embedding = functional.silu(embedded)  # (batch or 1, time_channels)

        skips: list[Tensor] = [self.conv_in(sample)]
        for down_block in self.down_blocks:
            skips += down_block(skips[-1], time_embedding, encoder_hidden_states)
        sample = self.mid_block(skips[-1], time_embedding, encoder_hidden_states)
        for up_block, layers in zip(self.up_blocks, reversed(self.config.layers), strict=True):
            split = len(skips) - (layers + 1)
            skips, own = skips[:split], skips[split:]
            like = skips[-1] if skips else None
            sample = up_block(sample, own, time_embedding, encoder_hidden_states, like=like)
        return self.conv_out(functional.silu(self.conv_norm_out(sample)))

    def _embed(self, timestep: Tensor, condition: Tensor | None, dtype: torch.dtype) -> Tensor:
        frequencies = self._frequencies(timestep.reshape(-1), self.config.block_out_channels[0])
        return self.time_embedding(frequencies.to(dtype), condition)

    def _embed_text_and_sizes(self, text_embeds: Tensor, time_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """(batch, time_channels), from (batch, projection_dim) and (batch, sizes)."""
        channels = self.config.addition_time_embed_dim
        assert channels is not None
        frequencies = self._frequencies(time_ids.reshape(-1), channels)  # (batch * sizes, channels)
        sizes = frequencies.reshape(text_embeds.shape[0], -1)
        return self.add_embedding(torch.cat([text_embeds, sizes.to(text_embeds.dtype)], dim=-1).to(dtype))

    def _frequencies(self, numbers: Tensor, channels: int) -> Tensor:
        return timestep_frequencies(
            numbers.float(),
            channels,
            flip_sin_to_cos=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )


def _transformer(config: UNet2DConditionConfig, *, level: int) -> TransformerShape:
    return TransformerShape(
        heads=config.heads[level],
        layers=config.transformer_layers[level],
        context_channels=config.cross_attention_dim,
        groups=config.norm_num_groups,
        use_linear_projection=config.use_linear_projection,
        upcast=bool(config.upcast_attention),
    )


def _down_blocks(config: UNet2DConditionConfig, resnet: ResnetShape) -> nn.ModuleList:
    channels = config.block_out_channels
    last = len(channels) - 1
    return nn.ModuleList(
        DownBlock(
            channels[max(level - 1, 0)],
            channels[level],
            layers=config.layers[level],
            resnet=resnet,
            transformer=_transformer(config, level=level) if _DOWN_BLOCKS[kind] else None,
            downsample_padding=config.downsample_padding if level < last else None,
        )
        for level, kind in enumerate(config.down_block_types)
    )


def _up_blocks(config: UNet2DConditionConfig, resnet: ResnetShape) -> nn.ModuleList:
    channels = config.block_out_channels
    last = len(channels) - 1
    return nn.ModuleList(
        UpBlock(
            channels[min(level + 1, last)],
            channels[level],
            skip_channels=[channels[max(level - 1, 0)], *[channels[level]] * config.layers[level]],
            resnet=resnet,
            transformer=_transformer(config, level=level) if _UP_BLOCKS[kind] else None,
            upsamples=level > 0,
        )
        for level, kind in zip(reversed(range(last + 1)), config.up_block_types, strict=True)
    )
