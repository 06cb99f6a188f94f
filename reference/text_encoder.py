"""The text encoders of Stable Diffusion: CLIP's, of Radford et al. 2021 (arXiv:2103.00020), OpenAI's and OpenCLIP's."""

# torch gives the call of a module no type
# mypy: no-warn-return-any

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .clip import CLIPEncoder, CLIPEncoderConfig
from .network import Network

#: the end-of-text token of configurations written before transformers 4.31, which is not the one that the tokenizer has
_MISTAKEN_EOS_TOKEN_ID = 2


@dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(CLIPEncoderConfig):
    """The keys of a text encoder's `config.json` that change its output; defaults are transformers'."""

    network: ClassVar[str] = "CLIPTextModel"
    model_type: ClassVar[str] = "clip_text_model"

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    eos_token_id: int = 49407
    projection_dim: int = 512


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
        self.encoder = CLIPEncoder(config, is_causal=True)
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
