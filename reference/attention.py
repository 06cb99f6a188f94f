"""Attention over tokens, and the transformers that let an image attend to itself and to a text."""

# torch gives the call of a module no type
# mypy: no-warn-return-any

from torch import Tensor, nn
from torch.nn import functional

#: of the transformers' group norm; a constant of the architecture, in no configuration
_GROUP_NORM_EPS = 1e-6


def attend(query: Tensor, key: Tensor, value: Tensor, *, heads: int, is_causal: bool = False) -> Tensor:
    """Softmax attention, the channels divided among heads.

    Args:
        query: (batch, tokens, channels).
        key: (batch, other_tokens, channels).
        value: (batch, other_tokens, channels).
        heads: how many; a divisor of `channels`.
        is_causal: whether a token sees only itself and those before it.

    Returns:
        (batch, tokens, channels).
    """
    shape = query.shape
    query, key, value = (
        tensor.reshape(*tensor.shape[:2], heads, shape[2] // heads).transpose(1, 2)  # (batch, heads, tokens, width)
        for tensor in (query, key, value)
    )
    attended = functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
    return attended.transpose(1, 2).reshape(shape)


class Attention(nn.Module):
    """Attention of tokens to themselves or to a context."""

    def __init__(self, channels: int, *, heads: int, context_channels: int | None = None, upcast: bool = False) -> None:
        super().__init__()
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels or channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels or channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])
        self.heads = heads
        self.upcast = upcast

    def forward(self, hidden: Tensor, context: Tensor | None = None) -> Tensor:
        """Maps (batch, tokens, channels) to the same shape.

        Args:
            hidden: asks.
            context: (batch, context_tokens, context_channels), is asked; None for `hidden` itself.
        """
        context = hidden if context is None else context
        query, key, value = self.to_q(hidden), self.to_k(context), self.to_v(context)
        if self.upcast:  # Stable Diffusion 2.1: the scores overflow float16
            query, key, value = query.float(), key.float(), value.float()
        return self.to_out[0](attend(query, key, value, heads=self.heads).to(hidden.dtype))


class GEGLU(nn.Module):
    """A linear layer gated by the GELU of another, of Shazeer 2020 (arXiv:2002.05202)."""

    def __init__(self, channels: int, inner_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner_channels)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (batch, tokens, channels) to (batch, tokens, inner_channels)."""
        hidden, gate = self.proj(hidden).chunk(2, dim=-1)
        return hidden * functional.gelu(gate)


class FeedForward(nn.Module):
    """A gated layer four times as wide, and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # the checkpoint counts a dropout in the middle
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (batch, tokens, channels) to the same shape."""
        return self.net(hidden)


class BasicTransformerBlock(nn.Module):
    """Attention to the image itself, attention to the text, and a feed-forward layer, each added to its input."""

    def __init__(self, channels: int, *, heads: int, context_channels: int, upcast: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads=heads, upcast=upcast)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads=heads, context_channels=context_channels, upcast=upcast)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, hidden: Tensor, context: Tensor) -> Tensor:
        """Maps (batch, tokens, channels) to the same shape; `context` is (batch, text_tokens, context_channels)."""
        hidden = hidden + self.attn1(self.norm1(hidden))
        hidden = hidden + self.attn2(self.norm2(hidden), context)
        return hidden + self.ff(self.norm3(hidden))


class Transformer2DModel(nn.Module):
    """A transformer whose tokens are the pixels of an image."""

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        layers: int,
        context_channels: int,
        groups: int,
        use_linear_projection: bool,
        upcast: bool,
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=_GROUP_NORM_EPS)
        self.proj_in = _projection(channels, linear=use_linear_projection)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, heads=heads, context_channels=context_channels, upcast=upcast)
            for _ in range(layers)
        )
        self.proj_out = _projection(channels, linear=use_linear_projection)
        self.use_linear_projection = use_linear_projection

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to the same shape.

        Args:
            sample: the image.
            context: (batch, text_tokens, context_channels).
        """
        size = sample.shape[-2:]
        hidden: Tensor = self.norm(sample)
        hidden = self.proj_in(to_tokens(hidden)) if self.use_linear_projection else to_tokens(self.proj_in(hidden))
        for block in self.transformer_blocks:
            hidden = block(hidden, context)
        if self.use_linear_projection:
            return sample + to_image(self.proj_out(hidden), size)
        return sample + self.proj_out(to_image(hidden, size))


class SpatialAttention(nn.Module):
    """Attention of an image to itself; as autoencoders have it unless options say otherwise.

    Args:
        channels: of the image.
        groups: of the group norm; None for no norm.
        eps: of the group norm.
        head_channels: of one head, at most `channels`; there are as many heads as fit. None for a single one.
        scale_factor: what the result, input included, is divided by.
    """

    def __init__(
        self,
        channels: int,
        *,
        groups: int | None,
        eps: float,
        head_channels: int | None = None,
        scale_factor: float = 1.0,
    ) -> None:
        super().__init__()
        head_channels = head_channels or channels
        self.heads = channels // head_channels
        inner_channels = self.heads * head_channels
        self.group_norm = None if groups is None else nn.GroupNorm(groups, channels, eps=eps)
        self.to_q = nn.Linear(channels, inner_channels)
        self.to_k = nn.Linear(channels, inner_channels)
        self.to_v = nn.Linear(channels, inner_channels)
        self.to_out = nn.ModuleList([nn.Linear(inner_channels, channels)])
        self.scale_factor = scale_factor

    def forward(self, sample: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to the same shape."""
        hidden = to_tokens(sample if self.group_norm is None else self.group_norm(sample))
        hidden = attend(self.to_q(hidden), self.to_k(hidden), self.to_v(hidden), heads=self.heads)
        attended = sample + to_image(self.to_out[0](hidden), sample.shape[-2:])
        return attended if self.scale_factor == 1 else attended / self.scale_factor


def to_tokens(sample: Tensor) -> Tensor:
    """(batch, channels, height, width) as (batch, height * width, channels)."""
    return sample.reshape(*sample.shape[:2], -1).transpose(1, 2)


def to_image(hidden: Tensor, size: tuple[int, ...]) -> Tensor:
    """(batch, height * width, channels) as (batch, channels, height, width)."""
    return hidden.transpose(1, 2).reshape(hidden.shape[0], hidden.shape[2], *size)


def _projection(channels: int, *, linear: bool) -> nn.Module:
    return nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
