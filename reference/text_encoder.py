"""The text encoders of Stable Diffusion: CLIP's, of Radford et al. 2021 (arXiv:2103.00020), OpenAI's and OpenCLIP's."""

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
from .network import Network

#: the end-of-text token of configurations written before transformers 4.31, which is not the one that the tokenizer has
_MISTAKEN_EOS_TOKEN_ID = 2


def quick_gelu(hidden: Tensor) -> Tensor:
    """The approximation of GELU that OpenAI's CLIP was trained with."""
    return hidden * torch.sigmoid(1.702 * hidden)


_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": functional.gelu}


@dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(NetworkConfig):
    """The keys of a text encoder's `config.json` that change its output; defaults are transformers'."""

    network: ClassVar[str] = "CLIPTextModel"
    refuses_unknown_keys: ClassVar[bool] = False  # transformers writes what generation and training need as well

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    projection_dim: int = 512

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
        if (model_type := values.get("model_type", "clip_text_model")) != "clip_text_model":
            raise ValueError(f"expected the configuration of {cls.network}, got model_type {model_type!r}")


@dataclass(frozen=True)
class CLIPTextOutput:
    """What a text encoder gives.

    Attributes:
        last_hidden_state: (batch, sequence_length, hidden_size), after the final layer norm.
        pooler_output: (batch, hidden_size), the last hidden state at the end-of-text token.
        hidden_states: num_hidden_layers + 1 of (batch, sequence_length, hidden_size): the embeddings, then every
            layer's output, none of them normalized at the end.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor
    hidden_states: tuple[Tensor, ...]


class CLIPTextModel(Network):
    """A causal transformer from token ids to text embeddings."""

    config_class = CLIPTextConfig
    # transformers 5 writes the names without the prefix that 4 has, and that LoRA files have
    renames = ((r"^(embeddings|encoder|final_layer_norm)\.", r"text_model.\1."),)
    ignored = frozenset({"text_model.embeddings.position_ids"})  # 0, 1, 2 ..., written before transformers 4.31

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__(config)
        self.config = config
        self.text_model = CLIPTextTransformer(config)

    def forward(self, input_ids: Tensor) -> CLIPTextOutput:
        """Encodes token ids.

        Args:
            input_ids: (batch, sequence_length), int64 or int32, in [0, vocab_size); the sequence no longer than
                `max_position_embeddings`.
        """
        return self.text_model(input_ids)


@dataclass(frozen=True, kw_only=True)
class CLIPTextProjectionConfig(CLIPTextConfig):
    """The same keys; `projection_dim` is the width of `text_embeds`."""

    network: ClassVar[str] = "CLIPTextModelWithProjection"


@dataclass(frozen=True)
class CLIPTextProjectionOutput:
    """What a text encoder with a projection gives.

    Attributes:
        text_embeds: (batch, projection_dim), the pooled output projected to where texts and images are compared.
        last_hidden_state: see `CLIPTextOutput`.
        hidden_states: likewise.
    """

    text_embeds: Tensor
    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...]


class CLIPTextModelWithProjection(Network):
    """A text encoder whose pooled output is projected: SDXL's second."""

    config_class = CLIPTextProjectionConfig
    ignored = CLIPTextModel.ignored

    def __init__(self, config: CLIPTextProjectionConfig) -> None:
        super().__init__(config)
        self.config = config
        self.text_model = CLIPTextTransformer(config)
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def forward(self, input_ids: Tensor) -> CLIPTextProjectionOutput:
        """Encodes token ids; see `CLIPTextModel`."""
        output: CLIPTextOutput = self.text_model(input_ids)
        text_embeds = self.text_projection(output.pooler_output)
        return CLIPTextProjectionOutput(text_embeds, output.last_hidden_state, output.hidden_states)


class CLIPTextTransformer(nn.Module):
    """Embeddings, layers, final norm: what a checkpoint calls `text_model`."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.embeddings = CLIPTextEmbeddings(config)
        self.encoder = CLIPEncoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.eos_token_id = config.eos_token_id

    def forward(self, input_ids: Tensor) -> CLIPTextOutput:
        """Maps (batch, sequence_length) to the output."""
        hidden_states = self.encoder(self.embeddings(input_ids))
        last_hidden_state: Tensor = self.final_layer_norm(hidden_states[-1])
        sequences = torch.arange(input_ids.shape[0], device=input_ids.device)
        pooler_output = last_hidden_state[sequences, self._end_of_text(input_ids)]
        return CLIPTextOutput(last_hidden_state, pooler_output, hidden_states)

    def _end_of_text(self, input_ids: Tensor) -> Tensor:
        """The position of each sequence's first end-of-text token, (batch,), as transformers finds it."""
        if self.eos_token_id == _MISTAKEN_EOS_TOKEN_ID:
            return input_ids.int().argmax(dim=-1)  # the true one is the highest of CLIP's vocabulary
        return (input_ids == self.eos_token_id).int().argmax(dim=-1)


class CLIPTextEmbeddings(nn.Module):
    """The sum of what a token is and where it stands."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Maps (batch, sequence_length) to (batch, sequence_length, hidden_size)."""
        tokens: Tensor = self.token_embedding(input_ids)
        return tokens + self.position_embedding.weight[: input_ids.shape[1]]


class CLIPEncoder(nn.Module):
    """The layers."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CLIPEncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Gives (batch, sequence_length, hidden_size) as it came, then as each layer left it."""
        hidden_states = [hidden]
        for layer in self.layers:
            hidden_states.append(layer(hidden_states[-1]))
        return tuple(hidden_states)


class CLIPEncoderLayer(nn.Module):
    """Attention to the tokens before, and a feed-forward layer, each added to its input."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = CLIPAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CLIPMLP(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (batch, sequence_length, hidden_size) to the same shape."""
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        return hidden + self.mlp(self.layer_norm2(hidden))


class CLIPAttention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(width, width),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )
        self.out_proj = nn.Linear(width, width)
        self.heads = config.num_attention_heads

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (batch, sequence_length, hidden_size) to the same shape."""
        query, key, value = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        return self.out_proj(attend(query, key, value, heads=self.heads, is_causal=True))


class CLIPMLP(nn.Module):
    """A wider layer, and back."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = _ACTIVATIONS[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (batch, sequence_length, hidden_size) to the same shape."""
        return self.fc2(self.activation(self.fc1(hidden)))
