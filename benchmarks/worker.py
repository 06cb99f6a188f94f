"""One contender in a process of its own: `python -m safelight.benchmarks.worker NAME CASE RUNS FOLDER`.

RUNS 0 is a cold start: one picture, saved as PNG, and no more. Otherwise one warm-up and then RUNS measured pictures.
The picture and the seconds are left in FOLDER.
"""

import json
import sys
from pathlib import Path

import numpy as np

from safelight.export.peak_memory import peak_memory

from .case import Case
from .contenders import CONTENDERS


def main(name: str, case_json: str, runs: int, folder: Path) -> None:
    """Makes the pictures and writes `image.npy` and `seconds.json`, or `picture.png` and `memory.json`."""
    generate = CONTENDERS[name].open(Case.from_json(case_json))
    picture = generate()  # the only one, or the warm-up
    if runs == 0:
        from PIL import Image

        Image.fromarray((picture.image * 255).round().astype(np.uint8)).save(folder / "picture.png")
        (folder / "memory.json").write_text(json.dumps(peak_memory()))
        return
    seconds = [generate().seconds for _ in range(runs)]
    np.save(folder / "image.npy", picture.image)
    (folder / "seconds.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
