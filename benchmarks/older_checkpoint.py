"""A checkpoint as tools with an older transformers read it: `python -m safelight.benchmarks.older_checkpoint FROM TO`.

Since its version 5, transformers writes a text encoder's weights without the `text_model.` before their names. Older
versions load such a file without an error, and compute with random weights.
"""

import shutil
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import load_file, save_file

_PREFIX = "text_model."
_WEIGHTS = "model.safetensors"


def is_new(checkpoint: Path) -> bool:
    """Whether one of a checkpoint's text encoders has weights that an older transformers does not find."""
    return any(_is_new(file) for file in _text_encoders(checkpoint))


def main(checkpoint: str, folder: str) -> None:
    """Writes the checkpoint to a folder that is not there yet."""
    target = Path(folder)
    shutil.copytree(checkpoint, target)
    for file in filter(_is_new, _text_encoders(target)):
        weights = load_file(file)
        own = {name if "projection" in name else f"{_PREFIX}{name}": array for name, array in weights.items()}
        save_file(own, file, {"format": "pt"})


def _text_encoders(checkpoint: Path) -> list[Path]:
    return sorted(checkpoint.glob(f"text_encoder*/{_WEIGHTS}"))


def _is_new(file: Path) -> bool:
    with safe_open(file, framework="numpy") as opened:
        return not any(name.startswith(_PREFIX) for name in opened.keys())  # noqa: SIM118  # no mapping


if __name__ == "__main__":
    main(*sys.argv[1:])
