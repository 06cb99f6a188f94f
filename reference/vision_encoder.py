"""CLIP's model of pictures: the vision transformer of Radford et al. 2021 (arXiv:2103.00020)."""

# torch gives the call of a module no type
# mypy: no-warn-return-any

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .clip import CLIPEncoder, CLIPEncoderConfig
from .network import Network

#: as transformers 5 spells the names of a vision model's parts; 4 has a prefix before them
PARTS = r"(embeddings|pre_layrnorm|encoder|post_layernorm)\."


@dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig(CLIPEncoderConfig):
    """The keys of a vision model's `config.json` that change its output; defaults are transformers'."""

    network: ClassVar[str] = "CLIPVisionModel"
    model_type: ClassVar[str] = "clip_vision_model"

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    projection_dim: int = 512


@dataclass(frozen=True)
class CLIPVisionOutput:
    """What a vision model gives.

    Attributes:
        last_hidden_state: (batch, 1 + patches, hidden_size), before the final layer norm.
        pooler_output: (batch, hidden_size), the first of them, of the whole picture, after it.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor


class CLIPVisionModel(Network):
    """A transformer over the patches of a picture."""

    config_class = CLIPVisionConfig
    renames = ((rf"^{PARTS}", r"vision_model.\1."),)
    ignored = frozenset({"vision_model.embeddings.position_ids"})  # 0, 1, 2 ..., written before transformers 4.31

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(config)
        self.config = config
        self.vision_model = CLIPVisionTransformer(config)

    def forward(self, pixel_values: Tensor) -> CLIPVisionOutput:
        """Looks at pictures.

        Args:
            pixel_values: (batch, num_channels, image_size, image_size), normalized as `CLIPImageProcessor` does.
        """
        return self.vision_model(pixel_values)


class CLIPVisionModelWithProjection(Network):
    """A vision model whose result lies in the space that texts are projected into, too."""

    config_class = CLIPVisionConfig
    ignored = CLIPVisionModel.ignored

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(config)
        self.config = config
        self.vision_model = CLIPVisionTransformer(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Maps (batch, num_channels, image_size, image_size) to the image's embeddings, (batch, projection_dim)."""
        return self.visual_projection(self.vision_model(pixel_values).pooler_output)


class CLIPVisionTransformer(nn.Module):
    """Embeddings, a norm, layers, final norm: what a checkpoint calls `vision_model`."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # so spelled in checkpoints
        self.encoder = CLIPEncoder(config, is_causal=False)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> CLIPVisionOutput:
        """Maps (batch, num_channels, image_size, image_size) to the output."""
        last_hidden_state = self.encoder(self.pre_layrnorm(self.embeddings(pixel_values)))[-1]
        return CLIPVisionOutput(last_hidden_state, self.post_layernorm(last_hidden_state[:, 0]))


class CLIPVisionEmbeddings(nn.Module):
    """A token for the whole picture and, after it, one for each patch; and where each stands."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        size, patch = config.image_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(config.hidden_size))
        self.patch_embedding = nn.Conv2d(config.num_channels, config.hidden_size, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(1 + (size // patch) ** 2, config.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Maps (batch, num_channels, image_size, image_size) to (batch, 1 + patches, hidden_size)."""
        patches: Tensor = self.patch_embedding(pixel_values)
        whole = self.class_embedding.expand(patches.shape[0], 1, -1)
        hidden = torch.cat([whole, patches.flatten(2).transpose(1, 2)], dim=1)
        return hidden + self.position_embedding.weight
