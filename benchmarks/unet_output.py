"""What a model folder's UNet gives for random inputs: `python -m safelight.benchmarks.unet_output FOLDER FILE`.

In a process of its own: of the largest UNets one at a time fits into memory. FILE gets the array, in NumPy's format.
"""

import sys
from pathlib import Path

import numpy as np

from safelight.runtime.model_folder import open_model_folder
from safelight.runtime.networks import Engine, open_unet

from .inputs import unet_inputs

_SIDE = 16  # of the latents
_LENGTH = 77  # of the text


def main(folder: Path, file: Path) -> None:
    """Runs the UNet once, on a batch of 2, and saves its output."""
    unet = open_unet(open_model_folder(folder), Engine())
    inputs = unet_inputs(unet.config, height=_SIDE, width=_SIDE, length=_LENGTH)
    sample, timestep, text = (inputs.pop(name) for name in ("sample", "timestep", "encoder_hidden_states"))
    np.save(file, unet(sample, timestep, text, added_cond_kwargs=inputs).sample)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
