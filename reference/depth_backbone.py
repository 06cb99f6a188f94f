"""What looks at the picture in a depth estimator: a vision transformer, of Dosovitskiy et al. 2020 (arXiv:2010.11929).

In DPT-Hybrid it sees the maps of a convolutional network: the first stages of BiT, of Kolesnikov et al. 2020
(arXiv:1912.11370), a ResNet whose weights are standardized and whose norms are of groups.
"""

# torch gives the call of a module no type
# mypy: no-warn-return-any

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attention import attend
from .configuration import NetworkConfig

#: constants of the architecture, in no configuration
_WEIGHT_EPS = 1e-8
_BATCH_NORM_EPS = 1e-5
_STAGES = ("stage1", "stage2", "stage3")
#: a block's inner layers have a quarter of its channels, which transformers rounds to a multiple of 8
_BOTTLENECK = 4
_CHANNELS_MULTIPLE = 8 * _BOTTLENECK


@dataclass(frozen=True, kw_only=True)
class BitConfig(NetworkConfig):
    """The keys of a `backbone_config` of model_type "bit" that change its output; defaults are transformers'.

    Implemented is what DPT-Hybrid uses: three stages of bottleneck blocks, padded as TensorFlow does.
    """

    network: ClassVar[str] = "BitBackbone"
    neutral: ClassVar[Mapping[str, object]] = {"hidden_act": "relu", "output_stride": 32, "width_factor": 1}
    refuses_unknown_keys: ClassVar[bool] = False  # transformers writes what training needs as well

    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    layer_type: str = "preactivation"
    global_padding: str | None = None
    num_groups: int = 32
    embedding_dynamic_padding: bool = False
    out_features: tuple[str, ...] = ("stage4",)

    def __post_init__(self) -> None:
        padding = None if self.global_padding is None else self.global_padding.upper()
        asked: dict[str, tuple[object, object]] = {
            "layer_type": (self.layer_type, "bottleneck"),
            "global_padding": (padding, "SAME"),
            "embedding_dynamic_padding": (self.embedding_dynamic_padding, True),
            "out_features": (list(self.out_features), list(_STAGES)),
        }
        for key, (value, known) in asked.items():
            if value != known:
                raise ValueError(f"{self.network}: {key} = {value!r} is not implemented, only {key} = {known!r}")
        if len(self.depths) != len(_STAGES) or len(self.hidden_sizes) < len(_STAGES):
            raise ValueError(
                f"{self.network}: depths and hidden_sizes must describe {len(_STAGES)} stages, "
                f"got {list(self.depths)} and {list(self.hidden_sizes)}"
            )
        if any(size % _CHANNELS_MULTIPLE for size in self.stage_channels):
            raise ValueError(
                f"{self.network}: hidden_sizes must be multiples of {_CHANNELS_MULTIPLE}, got {list(self.hidden_sizes)}"
            )

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """The channels of each stage's output; `hidden_sizes` may name a fourth stage, which is not built."""
        return self.hidden_sizes[: len(_STAGES)]

    @classmethod
    def _check_network(cls, values: Mapping[str, Any]) -> None:
        super()._check_network(values)
        if (model_type := values.get("model_type", "bit")) != "bit":
            raise ValueError(f"backbone_config must be of model_type 'bit', got {model_type!r}")


#: what transformers takes for a DPT-Hybrid that says nothing about its backbone
HYBRID_BACKBONE = BitConfig(
    layer_type="bottleneck",
    global_padding="SAME",
    depths=(3, 4, 9),
    embedding_dynamic_padding=True,
    out_features=_STAGES,
)


class BitBackbone(nn.Module):
    """From a picture to feature maps: a stem that quarters the size, and stages that halve it, all but the first."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__()
        inputs = (config.embedding_size, *config.stage_channels)
        stages = nn.ModuleList(
            BitStage(inputs[stage], inputs[stage + 1], depth=depth, stride=min(stage + 1, 2), groups=config.num_groups)
            for stage, depth in enumerate(config.depths)
        )
        self.bit = nn.ModuleDict({"embedder": BitEmbeddings(config), "encoder": nn.ModuleDict({"stages": stages})})

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Maps (batch, num_channels, height, width) to three maps, of a quarter, an eighth, a sixteenth of the size.

        Each is (batch, hidden_sizes[stage], rows, columns), sizes rounded up.
        """
        maps = [self.bit["embedder"](pixel_values)]
        for stage in self.bit.get_submodule("encoder.stages").children():
            maps.append(stage(maps[-1]))
        return maps[1:]


class BitEmbeddings(nn.Module):
    """The stem: a wide convolution and a pooling, each halving the size."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__()
        self.convolution = WeightStandardizedConv2d(config.num_channels, config.embedding_size, 7, stride=2)
        self.norm = nn.GroupNorm(config.num_groups, config.embedding_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Maps (batch, num_channels, height, width) to (batch, embedding_size, height / 4, width / 4)."""
        sample = functional.relu(self.norm(self.convolution(pixel_values)))
        return functional.max_pool2d(pad_same(sample, kernel_size=3, stride=2), kernel_size=3, stride=2)


class BitStage(nn.Module):
    """Blocks, the first of which changes size and channels."""

    def __init__(self, in_channels: int, channels: int, *, depth: int, stride: int, groups: int) -> None:
        super().__init__()
        first = BitBottleneckLayer(in_channels, channels, stride=stride, groups=groups, downsamples=True)
        rest = (BitBottleneckLayer(channels, channels, stride=1, groups=groups) for _ in range(depth - 1))
        self.layers = nn.Sequential(first, *rest)

    def forward(self, sample: Tensor) -> Tensor:
        """Maps (batch, in_channels, height, width) to (batch, channels, height / stride, width / stride)."""
        return self.layers(sample)


class BitBottleneckLayer(nn.Module):
    """Three convolutions, the middle one narrow, added to their input."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, groups: int, downsamples: bool = False) -> None:
        super().__init__()
        inner = channels // _BOTTLENECK
        if downsamples:
            convolution = WeightStandardizedConv2d(in_channels, channels, 1, stride=stride)
            self.downsample = nn.Sequential(OrderedDict(conv=convolution, norm=nn.GroupNorm(groups, channels)))
        else:
            self.downsample = nn.Sequential()
        self.conv1 = WeightStandardizedConv2d(in_channels, inner, 1)
        self.norm1 = nn.GroupNorm(groups, inner)
        self.conv2 = WeightStandardizedConv2d(inner, inner, 3, stride=stride)
        self.norm2 = nn.GroupNorm(groups, inner)
        self.conv3 = WeightStandardizedConv2d(inner, channels, 1)
        self.norm3 = nn.GroupNorm(groups, channels)

    def forward(self, sample: Tensor) -> Tensor:
        """Maps (batch, in_channels, height, width) to (batch, channels, height / stride, width / stride)."""
        shortcut = self.downsample(sample)
        sample = functional.relu(self.norm1(self.conv1(sample)))
        sample = functional.relu(self.norm2(self.conv2(sample)))
        return functional.relu(self.norm3(self.conv3(sample)) + shortcut)


class WeightStandardizedConv2d(nn.Conv2d):
    """A convolution whose filters have mean 0 and variance 1, of Qiao et al. 2019 (arXiv:1903.10520)."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, *, stride: int = 1) -> None:
        super().__init__(in_channels, channels, kernel_size, stride=stride, bias=False)

    def forward(self, sample: Tensor) -> Tensor:
        """Maps (batch, in_channels, height, width) to (batch, channels, height / stride, width / stride)."""
        filters = (1, 2, 3)
        mean = self.weight.mean(filters, keepdim=True)
        variance = self.weight.var(filters, correction=0, keepdim=True)
        weight = (self.weight - mean) / (variance + _WEIGHT_EPS).sqrt()
        kernel_size, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return functional.conv2d(sample, weight, padding=kernel_size // 2)
        return functional.conv2d(pad_same(sample, kernel_size=kernel_size, stride=stride), weight, stride=stride)


class BatchNorm(nn.Module):
    """Batch norm with the statistics that training left, and without torch's counter of the batches."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, sample: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to the same shape."""
        return functional.batch_norm(
            sample, self.running_mean, self.running_var, self.weight, self.bias, eps=_BATCH_NORM_EPS
        )


def pad_same(sample: Tensor, *, kernel_size: int, stride: int) -> Tensor:
    """Zeros around (batch, channels, height, width) as TensorFlow's SAME adds them: an odd one at the right and bottom.

    A convolution of the result gives height and width divided by the stride, rounded up.
    """
    vertical, horizontal = (
        max((-(-size // stride) - 1) * stride + kernel_size - size, 0) for size in sample.shape[-2:]
    )
    top, left = vertical // 2, horizontal // 2
    return functional.pad(sample, (left, horizontal - left, top, vertical - top))


class DPTViTEmbeddings(nn.Module):
    """The readout token and, after it, a token for each patch of the picture or of the convolutions' last map."""

    def __init__(
        self, channels: int, *, image_size: int, patch_size: int, num_channels: int, convolutions: BitConfig | None
    ) -> None:
        super().__init__()
        self.grid_size = image_size // patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + self.grid_size**2, channels))
        self.is_hybrid = convolutions is not None
        if convolutions is not None:
            self.backbone = BitBackbone(convolutions)
            self.projection = nn.Conv2d(convolutions.stage_channels[-1], channels, 1)
        else:
            projection = nn.Conv2d(num_channels, channels, patch_size, stride=patch_size)
            self.patch_embeddings = nn.ModuleDict({"projection": projection})

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int], list[Tensor]]:
        """Maps (batch, num_channels, height, width) to tokens, their grid, and the convolutions' maps, if any.

        Returns:
            (batch, 1 + rows * columns, channels); (rows, columns); three of (batch, hidden_sizes[stage], ...).
        """
        maps = self.backbone(pixel_values) if self.is_hybrid else []
        patches: Tensor = self.projection(maps[-1]) if maps else self.patch_embeddings["projection"](pixel_values)
        grid = (patches.shape[2], patches.shape[3])
        readout = self.cls_token.expand(patches.shape[0], -1, -1)
        hidden = torch.cat([readout, patches.flatten(2).transpose(1, 2)], dim=1)
        return hidden + self._positions(grid), grid, maps

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """The learned positions, (1, 1 + rows * columns, channels), interpolated where the grid is another."""
        if grid == (self.grid_size, self.grid_size):
            return self.position_embeddings
        readout, patches = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        image = patches.transpose(1, 2).reshape(1, -1, self.grid_size, self.grid_size)
        image = functional.interpolate(image, size=grid, mode="bilinear")
        return torch.cat([readout, image.flatten(2).transpose(1, 2)], dim=1)


class DPTViTEncoder(nn.Module):
    """The layers."""

    def __init__(
        self, channels: int, *, layers: int, heads: int, inner_channels: int, eps: float, qkv_bias: bool
    ) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            DPTViTLayer(channels, heads=heads, inner_channels=inner_channels, eps=eps, qkv_bias=qkv_bias)
            for _ in range(layers)
        )

    def forward(self, hidden: Tensor) -> list[Tensor]:
        """Gives (batch, tokens, channels) as each layer left it."""
        hidden_states = []
        for layer in self.layer:
            hidden = layer(hidden)
            hidden_states.append(hidden)
        return hidden_states


class DPTViTLayer(nn.Module):
    """Attention and a feed-forward layer, each added to its input."""

    def __init__(self, channels: int, *, heads: int, inner_channels: int, eps: float, qkv_bias: bool) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(channels, eps=eps)
        self.attention = DPTViTAttention(channels, heads=heads, qkv_bias=qkv_bias)
        self.layernorm_after = nn.LayerNorm(channels, eps=eps)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(channels, inner_channels)})
        self.output = nn.ModuleDict({"dense": nn.Linear(inner_channels, channels)})

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (batch, tokens, channels) to the same shape."""
        hidden = hidden + self.attention(self.layernorm_before(hidden))
        inner = functional.gelu(self.intermediate["dense"](self.layernorm_after(hidden)))
        return hidden + self.output["dense"](inner)


class DPTViTAttention(nn.Module):
    """Every token looks at every other."""

    def __init__(self, channels: int, *, heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.attention = nn.ModuleDict(
            {name: nn.Linear(channels, channels, bias=qkv_bias) for name in ("query", "key", "value")}
        )
        self.output = nn.ModuleDict({"dense": nn.Linear(channels, channels)})
        self.heads = heads

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (batch, tokens, channels) to the same shape."""
        query, key, value = (self.attention[name](hidden) for name in ("query", "key", "value"))
        return self.output["dense"](attend(query, key, value, heads=self.heads))
