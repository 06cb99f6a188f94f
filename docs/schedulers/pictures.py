"""The picture of the schedulers' page: rows are schedulers, columns numbers of steps, all of one seed.

python docs/schedulers/pictures.py [MODEL] [PROMPT] [FILE]
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from safelight.runtime import DiffusionPipeline, bundled_model
from safelight.runtime.schedulers import scheduler_class

#: label, class, options; those that a model of noise predictions can use
ROWS = (
    ("DDPM", "DDPMScheduler", {}),
    ("DDIM", "DDIMScheduler", {}),
    ("PNDM", "PNDMScheduler", {"skip_prk_steps": True}),
    ("IPNDM", "IPNDMScheduler", {}),
    ("Euler", "EulerDiscreteScheduler", {}),
    ("Euler, Karras", "EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("Euler ancestral", "EulerAncestralDiscreteScheduler", {}),
    ("Heun", "HeunDiscreteScheduler", {}),
    ("KDPM2", "KDPM2DiscreteScheduler", {}),
    ("KDPM2 ancestral", "KDPM2AncestralDiscreteScheduler", {}),
    ("LMS", "LMSDiscreteScheduler", {}),
    ("DPM++ 2M", "DPMSolverMultistepScheduler", {}),
    ("DPM++ 2M, Karras", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("DPM++ 2M SDE", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPM++ 2S", "DPMSolverSinglestepScheduler", {}),
    ("DPM++ SDE", "DPMSolverSDEScheduler", {}),
    ("DEIS", "DEISMultistepScheduler", {}),
    ("UniPC", "UniPCMultistepScheduler", {}),
    ("SA-Solver", "SASolverScheduler", {}),
)
STEPS = (4, 8, 15, 30)
LABELS = 110  # pixels
HEADER = 14


def main(model: str | Path, prompt: str, file: Path) -> None:
    """Makes the pictures and writes the grid."""
    pipeline = DiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.scheduler.config
    pictures = []
    for _, name, options in ROWS:
        row = []
        for steps in STEPS:
            pipeline.scheduler = scheduler_class(name).from_config(config, **options)
            row.append(pipeline(prompt, num_inference_steps=steps, guidance_scale=5, seed=0).images[0])
        pictures.append(row)
    width, height = pictures[0][0].size
    grid = Image.new("RGB", (LABELS + width * len(STEPS), HEADER + height * len(ROWS)), "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(size=11)
    for column, steps in enumerate(STEPS):
        draw.text((LABELS + width * column + 4, 0), f"{steps} steps", "black", font)
    for index, ((label, _, _), row) in enumerate(zip(ROWS, pictures, strict=True)):
        draw.text((4, HEADER + height * index + height // 2 - 6), label, "black", font)
        for column, picture in enumerate(row):
            grid.paste(picture, (LABELS + width * column, HEADER + height * index))
    grid.save(file, optimize=True)


if __name__ == "__main__":
    defaults = [str(bundled_model()), "cat face on a blue background", "docs/images/schedulers.png"]
    given = sys.argv[1:] + defaults[len(sys.argv) - 1 :]
    main(given[0], given[1], Path(given[2]))
