"""A picture made by optimum-onnx, by the Python of its own environment: `python optimum_pipeline.py FOLDER`.

FOLDER holds `job.json` (the model, the pipeline's class, the seed, the call, where to save the model again) and, under
the names of the call's arguments, arrays (`latents.npy`) and pictures (`image.png`). `pictures.npy` is left there.
"""

import json
import sys
from pathlib import Path

import numpy as np
import optimum.onnxruntime
import torch
from PIL import Image


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    pipeline = getattr(optimum.onnxruntime, job["pipeline"]).from_pretrained(job["model"])
    pipeline.set_progress_bar_config(disable=True)
    arrays = {file.stem: torch.from_numpy(np.load(file)) for file in folder.glob("*.npy")}
    pictures = {file.stem: Image.open(file) for file in folder.glob("*.png")}
    generator = torch.Generator().manual_seed(job["seed"])
    images = pipeline(**job["call"], **arrays, **pictures, generator=generator, output_type="np").images
    np.save(folder / "pictures.npy", images)
    if job["save_to"] is not None:
        pipeline.save_pretrained(job["save_to"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
