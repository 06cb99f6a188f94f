"""Whether the networks of a checkpoint fit together: seen from their configurations, before any work."""

from collections.abc import Mapping, Sequence
from typing import Any

from .networks import REFINER_TIME_IDS, TIME_IDS

Config = Mapping[str, Any]

_TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")


def check_fit(components: Sequence[tuple[str, str, Config]], pipeline: Config) -> None:
    """Refuses text encoders whose embeddings a UNet cannot take.

    Args:
        components: name, class and configuration, complete with defaults, of each network.
        pipeline: model_index.json.

    Raises:
        ValueError: names both, and their widths.
    """
    unets = [config for _, class_name, config in components if class_name == "UNet2DConditionModel"]
    encoders = {name: config for name, class_name, config in components if class_name in _TEXT_ENCODERS}
    if len(unets) != 1 or not encoders:
        return
    (unet,) = unets
    widths = {name: config["hidden_size"] for name, config in encoders.items()}
    if sum(widths.values()) != unet["cross_attention_dim"]:
        shown = " and ".join(f"{name} {width}" for name, width in widths.items())
        raise ValueError(
            f"the text encoder does not fit the UNet: embeddings are {sum(widths.values())} wide ({shown}), "
            f"cross_attention_dim is {unet['cross_attention_dim']}; they are of different models"
        )
    if unet["addition_embed_type"] is None:
        return
    projections = [
        config["projection_dim"] for _, class_name, config in components if class_name == "CLIPTextModelWithProjection"
    ]
    if not projections:
        raise ValueError(
            f"the UNet is told pooled text ({unet['addition_embed_type']}), and no text encoder has a projection "
            "(CLIPTextModelWithProjection)"
        )
    count = REFINER_TIME_IDS if pipeline.get("requires_aesthetics_score") else TIME_IDS
    sizes = count * unet["addition_time_embed_dim"]
    if projections[-1] + sizes != unet["projection_class_embeddings_input_dim"]:
        raise ValueError(
            "the text encoder does not fit the UNet: "
            f"pooled text is {projections[-1]} wide, {count} sizes are {sizes}, "
            f"projection_class_embeddings_input_dim is {unet['projection_class_embeddings_input_dim']}; "
            "they are of different models, or requires_aesthetics_score in model_index.json is wrong"
        )
