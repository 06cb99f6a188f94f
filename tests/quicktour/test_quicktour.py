"""diffusers' quicktour, block by block: what its reader types works here, with only the import lines changed.

`quicktour.md` is diffusers' own page, as data. Hub ids are mapped to folders here; where the page uses torch on arrays,
NumPy takes its place (`TORCH`), and the CPU that of the GPU.
"""

import doctest
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import checkpoints
import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import safelight.reference
import safelight.runtime
from safelight.runtime import bundled_model, source

PAGE = (Path(__file__).parent / "quicktour.md").read_text(encoding="utf-8")
BLOCKS = [code for kind, code in re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL) if kind in ("py", "python")]

#: of torch on the page -> of NumPy
TORCH = {
    "import torch\n": "from safelight.runtime import Generator\n",
    "torch.manual_seed(0)": "generator = Generator(0)",
    "torch.randn(1, model.config.in_channels, model.config.sample_size, model.config.sample_size)": (
        "generator.randn((1, model.config.in_channels, model.config.sample_size, model.config.sample_size))"
    ),
    "with torch.no_grad():": "if True:",
    "sample.cpu().permute(0, 2, 3, 1)": "sample.transpose(0, 2, 3, 1)",
    "image_processed.numpy().astype": "image_processed.astype",
    'noisy_sample = noisy_sample.to("cuda")': "noisy_sample = noisy_sample.copy()",
}
IMPORTS = {"from diffusers import": "from safelight.runtime import"}
CPU = {'.to("cuda")': '.to("cpu")'}

UNCONDITIONAL = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 8,
}


class Reader:
    """Types the page's code into one session."""

    def __init__(self, replacements: dict[str, str]) -> None:
        self.replacements = replacements
        self.shown: list[Any] = []
        self.names: dict[str, Any] = {"display": self.shown.append}

    def types(self, block: str) -> list[Any]:
        """Runs a block; gives what its expressions are worth."""
        worth: list[Any] = []
        for example in doctest.DocTestParser().get_examples(block.replace("\n\n...", "\n...")):  # one statement
            code = example.source
            for old, new in self.replacements.items():
                code = code.replace(old, new)
            hook, sys.displayhook = sys.displayhook, worth.append
            try:
                exec(compile(code, "quicktour.md", "single"), self.names)
            finally:
                sys.displayhook = hook
        return worth


def blocks(start: str, end: str | None = None) -> list[str]:
    """The page's blocks from the first that holds a text to before the first that holds another."""
    first = next(index for index, block in enumerate(BLOCKS) if start in block)
    last = next((index for index, block in enumerate(BLOCKS) if end and end in block), len(BLOCKS))
    return BLOCKS[first:last]


@pytest.fixture(params=["bundled", "tiny"])
def stable_diffusion(request: pytest.FixtureRequest) -> Path:
    return bundled_model() if request.param == "bundled" else Path(request.getfixturevalue("linear_checkpoint"))


@pytest.fixture(scope="module")
def unconditional() -> Path:
    return checkpoints.make_unconditional_checkpoint("quicktour", UNCONDITIONAL, flat=True)


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAFELIGHT_CACHE", str(checkpoints.CACHE / "quicktour"))


def on_the_hub(monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]) -> None:
    def file(name: str, candidates: Sequence[str]) -> Path:
        return next(path for path in (folders[name] / candidate for candidate in candidates) if path.is_file())

    monkeypatch.setattr(source, "download", lambda name, *_, **options: folders[name])
    monkeypatch.setattr(source, "download_file", file)


def test_the_page_is_all_there() -> None:
    assert len(BLOCKS) == 17
    assert sum("torch" in block for block in BLOCKS) == 3


def test_a_pipeline(stable_diffusion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_the_hub(monkeypatch, {"runwayml/stable-diffusion-v1-5": stable_diffusion})
    shutil.copytree(stable_diffusion, "stable-diffusion-v1-5")
    reader = Reader(IMPORTS | CPU)
    typed = blocks("import DiffusionPipeline", "UNet2DModel.from_pretrained")
    worth = [value for block in typed for value in reader.types(block)]
    pipeline = reader.names["pipeline"]
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    assert type(pipeline.scheduler).__name__ == "EulerDiscreteScheduler"
    shown = repr(worth[0])
    for line in re.findall(r'^  "(?:scheduler|unet|vae)": \[$', PAGE, re.MULTILINE):
        assert line in shown
    assert shown.startswith('StableDiffusionPipeline {\n  "_class_name": "StableDiffusionPipeline"')
    image = reader.names["image"]
    assert isinstance(image, Image.Image)
    assert image in worth
    np.testing.assert_array_equal(np.asarray(Image.open("image_of_squirrel_painting.png")), np.asarray(image))
    assert np.asarray(image).std() > 5


def test_model_and_scheduler_by_hand(
    unconditional: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_the_hub(monkeypatch, {"google/ddpm-cat-256": unconditional})
    reader = Reader(IMPORTS | TORCH | CPU)
    typed = blocks("UNet2DModel.from_pretrained")
    for block in typed[:-1]:
        reader.types(block)
    assert reader.names["model"].config.sample_size == 16
    with pytest.raises(AttributeError, match="frozen"):
        reader.names["model"].config.sample_size = 8
    assert repr(reader.names["scheduler"]).startswith('DDPMScheduler {\n  "_class_name": "DDPMScheduler"')
    assert reader.names["less_noisy_sample"].shape == (1, 3, 16, 16)
    reader.names["scheduler"].set_timesteps(50)  # the page's loop has a thousand
    reader.types(typed[-1])
    (title, picture) = reader.shown
    assert title == "Image at step 50"
    assert np.asarray(picture).std() > 5

    # diffusers' own model, of the same noise
    theirs = diffusers.UNet2DModel.from_pretrained(unconditional)
    sample = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(reader.names["noisy_sample"], sample.numpy(), atol=1e-6)
    with torch.no_grad():
        residual = theirs(sample, 2).sample
    tolerance = 1e-4 * float(residual.abs().max())
    np.testing.assert_allclose(reader.names["noisy_residual"], residual.numpy(), rtol=0, atol=tolerance)


@pytest.mark.filterwarnings("ignore:It is deprecated to pass a pretrained model name or path:FutureWarning")
def test_the_loop_with_torch_and_the_reference(unconditional: Path) -> None:
    """The same page through the reference: torch's lines stay, the model is `safelight.reference`'s."""
    model = safelight.reference.UNet2DModel.from_pretrained(unconditional).eval()
    reader = Reader(CPU)
    reader.names |= {"repo_id": str(unconditional), "model": model}
    torch.manual_seed(0)
    for block in blocks("model.config\n")[:-1]:
        reader.types(block)
    reader.names["scheduler"].set_timesteps(4)
    torch.manual_seed(1)
    reader.types(BLOCKS[-1])
    found = reader.names["sample"]

    theirs = diffusers.UNet2DModel.from_pretrained(unconditional)
    sample = reader.names["noisy_sample"]
    torch.manual_seed(1)
    with torch.no_grad():
        for timestep in reader.names["scheduler"].timesteps:
            sample = reader.names["scheduler"].step(theirs(sample, timestep).sample, timestep, sample).prev_sample
    torch.testing.assert_close(found, sample, rtol=1e-4, atol=1e-4)
