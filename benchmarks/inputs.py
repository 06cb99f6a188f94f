"""Random inputs of a UNet, of the size of real ones."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from safelight.runtime.backends import Array

TIMESTEP = 500.0


def unet_inputs(config: Mapping[str, Any], *, height: int, width: int, length: int, batch: int = 2) -> dict[str, Array]:
    """What a UNet's graph takes, by name: float32, the same each time.

    Args:
        config: of the UNet, as its `config.json` has it.
        height: of the latents.
        width: of the latents.
        length: of the text, in tokens.
        batch: a guided picture is two.
    """
    generator = np.random.default_rng(0)
    inputs = {
        "sample": generator.standard_normal((batch, config.get("in_channels", 4), height, width), dtype=np.float32),
        "timestep": np.full((batch,), TIMESTEP, dtype=np.float32),
        "encoder_hidden_states": generator.standard_normal(
            (batch, length, config.get("cross_attention_dim", 1280)), dtype=np.float32
        ),
    }
    if config.get("addition_embed_type") is not None:
        sizes = np.array([[8.0 * height, 8.0 * width, 0, 0, 8.0 * height, 8.0 * width]] * batch, dtype=np.float32)
        embedded = sizes.shape[1] * config["addition_time_embed_dim"]
        pooled = (batch, config["projection_class_embeddings_input_dim"] - embedded)
        inputs["text_embeds"] = generator.standard_normal(pooled, dtype=np.float32)
        inputs["time_ids"] = sizes
    return inputs
