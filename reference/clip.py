"""The transformer that CLIP's models of text and of pictures have in common (Radford et al. 2021, arXiv:2103.00020)."""

# torch gives the call of a module no type
# mypy: no-warn-return-any

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attention import attend
from .configuration import NetworkConfig


def quick_gelu(hidden: Tensor) -> Tensor:
    """The approximation of GELU that OpenAI's CLIP was trained with."""
    return hidden * torch.sigmoid(1.702 * hidden)


_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": functional.gelu}


@dataclass(frozen=True, kw_only=True)
class CLIPEncoderConfig(NetworkConfig):
    """The keys of a `config.json` that describe the transformer.

    Attributes:
        model_type: what transformers calls the model.
    """

    model_type: ClassVar[str]
    refuses_unknown_keys: ClassVar[bool] = False  # transformers writes what generation and training need as well

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int = 12
    num_attention_heads: int
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.hidden_act not in _ACTIVATIONS:
            raise ValueError(f"{self.network}: hidden_act must be one of {list(_ACTIVATIONS)}, got {self.hidden_act!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"{self.network}: hidden_size {self.hidden_size} is no multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )

    @classmethod
    def _check_network(cls, values: Mapping[str, Any]) -> None:
        super()._check_network(values)
        if (model_type := values.get("model_type", cls.model_type)) != cls.model_type:
            raise ValueError(f"expected the configuration of {cls.network}, got model_type {model_type!r}")


class CLIPEncoder(nn.Module):
    """The layers."""

    def __init__(self, config: CLIPEncoderConfig, *, is_causal: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            CLIPEncoderLayer(config, is_causal=is_causal) for _ in range(config.num_hidden_layers)
        )

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Gives (batch, tokens, hidden_size) as it came, then as each layer left it."""
        hidden_states = [hidden]
        for layer in self.layers:
            hidden_states.append(layer(hidden_states[-1]))
        return tuple(hidden_states)


class CLIPEncoderLayer(nn.Module):
    """Attention to the other tokens, and a feed-forward layer, each added to its input."""

    def __init__(self, config: CLIPEncoderConfig, *, is_causal: bool) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = CLIPAttention(config, is_causal=is_causal)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CLIPMLP(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (batch, tokens, hidden_size) to the same shape."""
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        return hidden + self.mlp(self.layer_norm2(hidden))


class CLIPAttention(nn.Module):
    """Self-attention: of text to the tokens before, of pictures to all."""

    def __init__(self, config: CLIPEncoderConfig, *, is_causal: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(width, width),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )
        self.out_proj = nn.Linear(width, width)
        self.heads = config.num_attention_heads
        self.is_causal = is_causal

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (batch, tokens, hidden_size) to the same shape."""
        query, key, value = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        return self.out_proj(attend(query, key, value, heads=self.heads, is_causal=self.is_causal))


class CLIPMLP(nn.Module):
    """A wider layer, and back."""

    def __init__(self, config: CLIPEncoderConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = _ACTIVATIONS[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (batch, tokens, hidden_size) to the same shape."""
        return self.fc2(self.activation(self.fc1(hidden)))
