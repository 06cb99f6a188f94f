"""Draws docs/images/gallery.png, the bundled model's tasks: `python docs/gallery.py`; the photo is scikit-image's."""

from pathlib import Path

from PIL import Image, ImageDraw
from skimage import data

from safelight.runtime import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    bundled_model,
)

SIDE, MARGIN, LABEL = 128, 8, 14


def main() -> None:
    """Makes the pictures and puts them side by side."""
    text = AutoPipelineForText2Image.from_pretrained(bundled_model())
    image_to_image = AutoPipelineForImage2Image.from_pipe(text)
    inpainting = AutoPipelineForInpainting.from_pipe(text)
    common = {"guidance_scale": 5, "num_inference_steps": 30}

    made = text("cat face on a blue background", seed=0, **common).images[0]
    photo = Image.fromarray(data.chelsea()).crop((90, 0, 390, 300)).resize((64, 64))
    drawn = image_to_image("cat face", photo, strength=0.4, seed=0, **common).images[0]
    mask = Image.new("L", (64, 64))
    ImageDraw.Draw(mask).rectangle([8, 22, 56, 62], fill=255)
    painted = inpainting("cat face with heart eyes", made, mask, seed=0, **common).images[0]

    pictures = {
        "text to image": made, "a photo": photo, "image to image": drawn, "a mask": mask.convert("RGB"),
        "inpainting": painted,
    }  # fmt: skip
    sheet = Image.new("RGB", (len(pictures) * (SIDE + MARGIN) + MARGIN, SIDE + LABEL + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (label, picture) in enumerate(pictures.items()):
        left = MARGIN + index * (SIDE + MARGIN)
        draw.text((left, MARGIN // 2), label, fill="black")
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, MARGIN + LABEL))
    sheet.save(Path(__file__).parent / "images" / "gallery.png")


if __name__ == "__main__":
    main()
