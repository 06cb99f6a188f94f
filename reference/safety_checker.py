"""The safety checker of Stable Diffusion: how near pictures come to concepts that are not safe for work.

Rando et al. 2022 (arXiv:2210.04610) describe it. The concepts are embeddings of CLIP; a checkpoint does not have the
words that they were made from.
"""

# torch gives the call of a module no type
# mypy: no-warn-return-any

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from .configuration import NetworkConfig
from .network import Network
from .vision_encoder import PARTS, CLIPVisionConfig, CLIPVisionModel

#: how many there are; constants of the architecture, in no configuration
CONCEPTS, SPECIAL_CARE_CONCEPTS = 17, 3
#: what a special care concept that is found adds to the other concepts' scores
_ADJUSTMENT = 0.01
#: scores are rounded to thousandths before they are compared with 0
_ROUNDING = 1000


@dataclass(frozen=True, kw_only=True)
class SafetyCheckerConfig(NetworkConfig):
    """The keys of a safety checker's `config.json` that change its output; defaults are transformers'."""

    network: ClassVar[str] = "StableDiffusionSafetyChecker"
    refuses_unknown_keys: ClassVar[bool] = False  # it is all of CLIP's, text model included

    vision_config: CLIPVisionConfig
    projection_dim: int = 512

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that a `config.json` describes; see `NetworkConfig`."""
        vision = values.get("vision_config_dict")  # of old files: it counts, and not what stands beside it
        vision = values.get("vision_config") if vision is None else vision
        if vision is None or isinstance(vision, Mapping):
            values = {**values, "vision_config": CLIPVisionConfig.from_dict(vision or {})}
        return super().from_dict(values)

    @classmethod
    def _check_network(cls, values: Mapping[str, Any]) -> None:
        super()._check_network(values)
        if (model_type := values.get("model_type", "clip")) != "clip":
            raise ValueError(f"expected the configuration of {cls.network}, got model_type {model_type!r}")


@dataclass(frozen=True)
class SafetyCheckerOutput:
    """What a safety checker gives.

    Attributes:
        has_nsfw_concepts: (batch,), bool.
        special_scores: (batch, 3), float32: cosine of the angle to each special care concept, less its threshold.
        concept_scores: (batch, 17), float32: the same of the other concepts, before special care is added to them.
    """

    has_nsfw_concepts: Tensor
    special_scores: Tensor
    concept_scores: Tensor


class StableDiffusionSafetyChecker(Network):
    """From pictures to whether they show what is not safe for work."""

    config_class = SafetyCheckerConfig
    renames = ((rf"^vision_model\.{PARTS}", r"vision_model.vision_model.\1."),)
    ignored = frozenset({"vision_model.vision_model.embeddings.position_ids"})

    def __init__(self, config: SafetyCheckerConfig) -> None:
        super().__init__(config)
        self.config = config
        self.vision_model = CLIPVisionModel(config.vision_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.concept_embeds = nn.Parameter(torch.ones(CONCEPTS, config.projection_dim))
        self.special_care_embeds = nn.Parameter(torch.ones(SPECIAL_CARE_CONCEPTS, config.projection_dim))
        self.concept_embeds_weights = nn.Parameter(torch.ones(CONCEPTS))
        self.special_care_embeds_weights = nn.Parameter(torch.ones(SPECIAL_CARE_CONCEPTS))

    def forward(self, clip_input: Tensor) -> SafetyCheckerOutput:
        """Decides as `StableDiffusionSafetyChecker.forward` of diffusers does, and not as its `forward_onnx`.

        Args:
            clip_input: (batch, num_channels, image_size, image_size), normalized as `CLIPImageProcessor` does.
        """
        embeds = self.visual_projection(self.vision_model(clip_input).pooler_output)
        special_scores = _scores(embeds, self.special_care_embeds, self.special_care_embeds_weights)
        concept_scores = _scores(embeds, self.concept_embeds, self.concept_embeds_weights)
        adjustment = _ADJUSTMENT * _any_found(special_scores)[:, None].float()
        return SafetyCheckerOutput(_any_found(concept_scores + adjustment), special_scores, concept_scores)


def _scores(embeds: Tensor, concepts: Tensor, thresholds: Tensor) -> Tensor:
    """How far the cosines of (batch, projection_dim) and (concepts, projection_dim) lie above thresholds, float32."""
    cosines = functional.normalize(embeds.float()) @ functional.normalize(concepts.float()).T
    return cosines - thresholds.float()


def _any_found(scores: Tensor) -> Tensor:
    """Which of (batch, concepts) have a score that is above 0 when it is rounded, (batch,)."""
    return (torch.round(scores * _ROUNDING) > 0).any(dim=1)
