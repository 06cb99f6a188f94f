"""The depth estimator of depth-to-image checkpoints: DPT, of Ranftl et al. 2021 (arXiv:2103.13413).

A vision transformer looks at the picture; what four of its layers see becomes four images again, which are
fused from the coarsest to the finest. In DPT-Hybrid convolutions come first, and two of the four images are theirs.
"""

# torch gives the call of a module no type
# mypy: no-warn-return-any

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from .configuration import NetworkConfig
from .depth_backbone import HYBRID_BACKBONE, BatchNorm, BitConfig, DPTViTEmbeddings, DPTViTEncoder
from .network import Network

_READOUT_TYPES = ("ignore", "add", "project")
#: the stages of DPT-Hybrid that the convolutions give
_CONVOLUTIONAL_STAGES = 2
#: of the last convolutions; a constant of the architecture, in no configuration
_HEAD_CHANNELS = 32


@dataclass(frozen=True, kw_only=True)
class DPTConfig(NetworkConfig):
    """The keys of a depth estimator's `config.json` that change its output; defaults are transformers'.

    `use_bias_in_fusion_residual` None means a bias where there is no batch norm.
    """

    network: ClassVar[str] = "DPTForDepthEstimation"
    neutral: ClassVar[Mapping[str, object]] = {"hidden_act": "gelu", "head_in_index": -1, "backbone": None}
    refuses_unknown_keys: ClassVar[bool] = False  # transformers writes what training and segmentation need as well

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-12
    image_size: int = 384
    patch_size: int = 16
    num_channels: int = 3
    qkv_bias: bool = True
    is_hybrid: bool = False
    backbone_config: BitConfig | None = None
    backbone_out_indices: tuple[int, ...] = (2, 5, 8, 11)
    readout_type: str = "project"
    neck_ignore_stages: tuple[int, ...] = (0, 1)
    reassemble_factors: tuple[int | float, ...] = (4, 2, 1, 0.5)
    neck_hidden_sizes: tuple[int, ...] = (96, 192, 384, 768)
    fusion_hidden_size: int = 256
    use_batch_norm_in_fusion_residual: bool | None = False
    use_bias_in_fusion_residual: bool | None = None
    add_projection: bool = False

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"{self.network}: hidden_size {self.hidden_size} is no multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        known = ("project",) if self.is_hybrid else _READOUT_TYPES
        if self.readout_type not in known:
            raise ValueError(f"{self.network}: readout_type must be one of {list(known)}, got {self.readout_type!r}")
        if self.is_hybrid and self.neck_ignore_stages != (0, 1):
            raise ValueError(
                f"{self.network}: neck_ignore_stages = {list(self.neck_ignore_stages)} is not implemented, only [0, 1]"
            )
        if self.backbone_config is not None and not self.is_hybrid:
            raise ValueError(f"{self.network}: a backbone_config is implemented with is_hybrid = true only")
        self._check_stages()

    def _check_stages(self) -> None:
        stages = len(self.neck_hidden_sizes)
        if len(self.reassemble_factors) != stages or len(self.backbone_out_indices) != stages:
            raise ValueError(
                f"{self.network}: backbone_out_indices, reassemble_factors, neck_hidden_sizes must be of one length, "
                f"got {len(self.backbone_out_indices)}, {len(self.reassemble_factors)} and {stages}"
            )
        if (maps := self.convolutions) and self.neck_hidden_sizes[:2] != maps.stage_channels[:2]:
            raise ValueError(
                f"{self.network}: neck_hidden_sizes must begin with the backbone's, {list(maps.stage_channels[:2])}, "
                f"got {list(self.neck_hidden_sizes)}"
            )
        indices = self.backbone_out_indices
        allowed = set(range(self.num_hidden_layers))
        if not indices or list(indices) != sorted(allowed & set(indices)):
            raise ValueError(
                f"{self.network}: backbone_out_indices must increase and lie in [0, {self.num_hidden_layers}), "
                f"got {list(indices)}"
            )
        if not all(factor > 0 and (factor % 1 == 0 or 1 / factor % 1 == 0) for factor in self.reassemble_factors):
            raise ValueError(
                f"{self.network}: reassemble_factors must be whole numbers or one divided by them, "
                f"got {list(self.reassemble_factors)}"
            )

    @property
    def convolutions(self) -> BitConfig | None:
        """What DPT-Hybrid has before the transformer."""
        return (self.backbone_config or HYBRID_BACKBONE) if self.is_hybrid else None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that a `config.json` describes; see `NetworkConfig`."""
        if isinstance(backbone := values.get("backbone_config"), Mapping):
            values = {**values, "backbone_config": BitConfig.from_dict(backbone)}
        return super().from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """The configuration with its defaults filled in, as JSON spells it."""
        backbone = None if self.backbone_config is None else self.backbone_config.to_dict()
        return {**super().to_dict(), "backbone_config": backbone}

    @classmethod
    def _check_network(cls, values: Mapping[str, Any]) -> None:
        super()._check_network(values)
        if (model_type := values.get("model_type", "dpt")) != "dpt":
            raise ValueError(f"expected the configuration of {cls.network}, got model_type {model_type!r}")


@dataclass(frozen=True)
class DepthEstimatorOutput:
    """What a depth estimator gives.

    Attributes:
        predicted_depth: (batch, height, width), not negative; the larger, the nearer. Scale and shift are unknown.
    """

    predicted_depth: Tensor


class DPTForDepthEstimation(Network):
    """From a picture to how near each of its pixels is."""

    config_class = DPTConfig
    # What nothing reads: the norm after the last layer, which is none of the four that are looked at; the residual of
    # the first fusion, which has nothing to add (Intel/dpt-large lacks it, transformers' files have it); a counter.
    renames = (
        (r"^dpt\.(layernorm|pooler)\..*", "unused"),
        (r"^neck\.fusion_stage\.layers\.0\.residual_layer1\..*", "unused"),
        (r".*\.num_batches_tracked$", "unused"),
    )
    ignored = frozenset({"unused"})

    def __init__(self, config: DPTConfig) -> None:
        super().__init__(config)
        self.config = config
        self.dpt = DPTModel(config)
        self.neck = DPTNeck(config)
        self.head = DPTDepthEstimationHead(config)

    def forward(self, pixel_values: Tensor) -> DepthEstimatorOutput:
        """Estimates depth.

        Args:
            pixel_values: (batch, num_channels, height, width), normalized as the checkpoint's feature extractor does;
                the checkpoint was trained at `image_size`. Unlike transformers, which takes squares only (and
                DPT-Hybrid at `image_size` only), any size of at least a patch; the positions are interpolated.

        Returns:
            (batch, height, width) of the input, where patch_size is 16 as published and both are multiples of 32.
        """
        return DepthEstimatorOutput(self.predict(pixel_values))

    def predict(self, pixel_values: Tensor) -> Tensor:
        """The predicted depth alone, which is what an export holds; see `forward`.

        `torch.export` can leave the batch free; height and width become constants.
        """
        maps, grid = self.dpt(pixel_values)
        return self.head(self.neck(maps, grid))


class DPTModel(nn.Module):
    """The encoder: what a checkpoint calls `dpt`."""

    def __init__(self, config: DPTConfig) -> None:
        super().__init__()
        self.embeddings = DPTViTEmbeddings(
            config.hidden_size,
            image_size=config.image_size,
            patch_size=config.patch_size,
            num_channels=config.num_channels,
            convolutions=config.convolutions,
        )
        self.encoder = DPTViTEncoder(
            config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            inner_channels=config.intermediate_size,
            eps=config.layer_norm_eps,
            qkv_bias=config.qkv_bias,
        )
        self.out_indices = config.backbone_out_indices

    def forward(self, pixel_values: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """Maps (batch, num_channels, height, width) to what the stages see, and the patches' grid.

        Of a layer (batch, 1 + rows * columns, hidden_size), readout token first; DPT-Hybrid's first two are images.
        """
        hidden, grid, maps = self.embeddings(pixel_values)
        hidden_states = self.encoder(hidden)
        images = maps[:_CONVOLUTIONAL_STAGES]
        return [*images, *(hidden_states[index] for index in self.out_indices[len(images) :])], grid


class DPTNeck(nn.Module):
    """Makes images of what the stages see, and fuses them from the last, the coarsest, to the first."""

    def __init__(self, config: DPTConfig) -> None:
        super().__init__()
        width = config.fusion_hidden_size
        self.reassemble_stage = DPTReassembleStage(config)
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, width, 3, padding=1, bias=False) for channels in config.neck_hidden_sizes
        )
        layers = (DPTFeatureFusionLayer(config, has_residual=stage > 0) for stage in range(len(self.convs)))
        self.fusion_stage = nn.ModuleDict({"layers": nn.ModuleList(layers)})

    def forward(self, states: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Gives (batch, fusion_hidden_size, height, width), twice the first stage's size; see `DPTModel`."""
        images = self.reassemble_stage(states, grid)
        features = [conv(image) for conv, image in zip(self.convs, images, strict=True)]
        first, *layers = self.fusion_stage.get_submodule("layers").children()
        fused: Tensor = first(features.pop())
        for layer in layers:
            fused = layer(fused, features.pop())
        return fused


class DPTReassembleStage(nn.Module):
    """Section 3.1 of the paper: tokens become images again, each stage's in its size."""

    def __init__(self, config: DPTConfig) -> None:
        super().__init__()
        width, readout_type = config.hidden_size, config.readout_type
        self.first = _CONVOLUTIONAL_STAGES if config.is_hybrid else 0
        stages = list(zip(config.neck_hidden_sizes, config.reassemble_factors, strict=True))
        self.layers = nn.ModuleList(
            nn.Identity() if stage < self.first else DPTReassembleLayer(width, channels, factor)
            for stage, (channels, factor) in enumerate(stages)
        )
        if readout_type == "project":
            self.readout_projects = nn.ModuleList(
                nn.Identity() if stage < self.first else nn.Sequential(nn.Linear(2 * width, width), nn.GELU())
                for stage in range(len(stages))
            )
        self.readout_type = readout_type

    def forward(self, states: Sequence[Tensor], grid: tuple[int, int]) -> list[Tensor]:
        """Maps each (batch, 1 + rows * columns, hidden_size) to (batch, neck_hidden_sizes[stage], height, width)."""
        images = list(states)
        for stage in range(self.first, len(images)):
            tokens = self._read(stage, states[stage][:, :1], states[stage][:, 1:])
            images[stage] = self.layers[stage](tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *grid))
        return images

    def _read(self, stage: int, readout: Tensor, tokens: Tensor) -> Tensor:
        """What the readout token, (batch, 1, hidden_size), tells the others."""
        if self.readout_type == "add":
            return tokens + readout
        if self.readout_type == "project":
            return self.readout_projects[stage](torch.cat([tokens, readout.expand_as(tokens)], dim=-1))
        return tokens


class DPTReassembleLayer(nn.Module):
    """Changes an image's channels, and its size by a factor."""

    def __init__(self, in_channels: int, channels: int, factor: float) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, channels, 1)
        self.resize: nn.Module = nn.Identity()
        if factor > 1:
            self.resize = nn.ConvTranspose2d(channels, channels, int(factor), stride=int(factor))
        elif factor < 1:
            self.resize = nn.Conv2d(channels, channels, 3, stride=int(1 / factor), padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Maps (batch, in_channels, rows, columns) to (batch, channels, rows * factor, columns * factor)."""
        return self.resize(self.projection(image))


class DPTFeatureFusionLayer(nn.Module):
    """Adds a finer image to what the coarser ones gave, and doubles the size."""

    def __init__(self, config: DPTConfig, *, has_residual: bool) -> None:
        super().__init__()
        self.projection = nn.Conv2d(config.fusion_hidden_size, config.fusion_hidden_size, 1)
        if has_residual:
            self.residual_layer1 = DPTPreActResidualLayer(config)
        self.residual_layer2 = DPTPreActResidualLayer(config)

    def forward(self, fused: Tensor, image: Tensor | None = None) -> Tensor:
        """Maps (batch, fusion_hidden_size, height, width) to twice the height and width."""
        if image is not None:
            if image.shape[2:] != fused.shape[2:]:  # odd sizes do not survive a halving and a doubling
                image = functional.interpolate(image, size=fused.shape[2:], mode="bilinear")
            fused = fused + self.residual_layer1(image)
        fused = functional.interpolate(self.residual_layer2(fused), scale_factor=2, mode="bilinear", align_corners=True)
        return self.projection(fused)


class DPTPreActResidualLayer(nn.Module):
    """Two convolutions, each after its activation, added to their input."""

    def __init__(self, config: DPTConfig) -> None:
        super().__init__()
        width, normalizes = config.fusion_hidden_size, bool(config.use_batch_norm_in_fusion_residual)
        bias = not normalizes if config.use_bias_in_fusion_residual is None else config.use_bias_in_fusion_residual
        self.convolution1 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.convolution2 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.batch_norm1: nn.Module = BatchNorm(width) if normalizes else nn.Identity()
        self.batch_norm2: nn.Module = BatchNorm(width) if normalizes else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Maps (batch, fusion_hidden_size, height, width) to the same shape."""
        inner = self.batch_norm1(self.convolution1(functional.relu(image)))
        return image + self.batch_norm2(self.convolution2(functional.relu(inner)))


class DPTDepthEstimationHead(nn.Module):
    """Convolutions down to one channel, and a last doubling of the size."""

    def __init__(self, config: DPTConfig) -> None:
        super().__init__()
        width = config.fusion_hidden_size
        self.projection = nn.Conv2d(width, width, 3, padding=1) if config.add_projection else None
        self.head = nn.Sequential(
            nn.Conv2d(width, width // 2, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(width // 2, _HEAD_CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(_HEAD_CHANNELS, 1, 1),
            nn.ReLU(),
        )

    def forward(self, fused: Tensor) -> Tensor:
        """Maps (batch, fusion_hidden_size, height / 2, width / 2) to (batch, height, width)."""
        if self.projection is not None:
            fused = functional.relu(self.projection(fused))
        return self.head(fused).squeeze(1)
