"""What a model folder's UNet gives for random inputs: `python -m safelight.benchmarks.unet_output FOLDER FILE`.

In a process of its own: of the largest UNets one at a time fits into memory. FILE gets the array, in NumPy's format.
"""

import sys
from pathlib import Path

import numpy as np

from safelight.runtime.model_folder import open_model_folder
from safelight.runtime.networks import Engine, open_unet

_SIDE = 16  # of the latents
_LENGTH = 77  # of the text
_TIMESTEP = 500


def main(folder: Path, file: Path) -> None:
    """Runs the UNet once, on a batch of 2, and saves its output."""
    unet = open_unet(open_model_folder(folder), Engine())
    generator = np.random.default_rng(0)
    sample = generator.standard_normal((2, unet.config["in_channels"], _SIDE, _SIDE), dtype=np.float32)
    text = generator.standard_normal((2, _LENGTH, unet.config["cross_attention_dim"]), dtype=np.float32)
    added = {}
    if unet.config["addition_embed_type"] is not None:
        side = 8.0 * _SIDE
        time_ids = np.array([[side, side, 0, 0, side, side]] * 2, dtype=np.float32)
        sizes = time_ids.shape[1] * unet.config["addition_time_embed_dim"]
        pooled = (2, unet.config["projection_class_embeddings_input_dim"] - sizes)
        added = {"text_embeds": generator.standard_normal(pooled, dtype=np.float32), "time_ids": time_ids}
    np.save(file, unet(sample, _TIMESTEP, text, added_cond_kwargs=added).sample)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
