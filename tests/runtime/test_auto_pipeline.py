"""Which pipeline a folder and a task give, and what pipelines share."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pairs import PROMPT, photograph

from safelight.runtime import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DDPMPipeline,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    bundled_model,
)

TASKS: dict[Any, Any] = {
    AutoPipelineForText2Image: StableDiffusionPipeline,
    AutoPipelineForImage2Image: StableDiffusionImg2ImgPipeline,
    AutoPipelineForInpainting: StableDiffusionInpaintPipeline,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder to be written into: without a manifest, which would say that it was."""
    return Path(shutil.copytree(bundled_model(), tmp_path / "model", ignore=shutil.ignore_patterns("safelight.json")))


def name_class(folder: Path, name: str) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": name}))


@pytest.mark.parametrize(("auto", "expected"), TASKS.items())
def test_a_task_gives_its_pipeline(auto: Any, expected: Any) -> None:
    assert type(auto.from_pretrained(bundled_model())) is expected


@pytest.mark.parametrize("prefix", ["", "ORT", "Onnx"])
@pytest.mark.parametrize("named", [StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline])
def test_the_folder_names_the_class(folder: Path, named: Any, prefix: str) -> None:
    name_class(folder, prefix + named.__name__)
    assert type(DiffusionPipeline.from_pretrained(folder)) is named
    assert type(AutoPipelineForText2Image.from_pretrained(folder)) is StableDiffusionPipeline


@pytest.mark.parametrize(("auto", "expected"), TASKS.items())
def test_networks_are_shared(auto: Any, expected: Any) -> None:
    pipeline = DiffusionPipeline.from_pretrained(bundled_model())
    pipeline.set_progress_bar_config(disable=True)
    other = auto.from_pipe(pipeline)
    assert type(other) is expected
    for name, component in pipeline.components.items():
        assert other.components[name] is component
    again = expected.from_pipe(other, scheduler=EulerDiscreteScheduler())
    assert type(again.scheduler) is EulerDiscreteScheduler
    assert other.scheduler is pipeline.scheduler
    found = AutoPipelineForText2Image.from_pipe(again)
    found.scheduler = pipeline.scheduler
    options: dict[str, Any] = {"num_inference_steps": 2, "seed": 0, "output_type": "np"}
    np.testing.assert_array_equal(found(PROMPT, **options).images, pipeline(PROMPT, **options).images)


def test_the_progress_bar_stays_off(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = DiffusionPipeline.from_pretrained(bundled_model())
    pipeline.set_progress_bar_config(disable=True)
    other = AutoPipelineForImage2Image.from_pipe(pipeline)
    other(PROMPT, image=photograph("coffee", (32, 32)), num_inference_steps=3, seed=0)
    assert capsys.readouterr().err == ""


def test_a_model_of_another_task_is_refused(folder: Path) -> None:
    name_class(folder, "DDPMPipeline")
    with pytest.raises(ValueError, match="is for a DDPMPipeline, which has no inpainting beside it"):
        AutoPipelineForInpainting.from_pretrained(folder)
    name_class(folder, "os")
    with pytest.raises(ValueError, match="is for a os, which is not known here; known: "):
        AutoPipelineForInpainting.from_pretrained(folder)
    pipeline = DiffusionPipeline.from_pretrained(bundled_model())
    with pytest.raises(ValueError, match=r"has no depth_estimator, feature_extractor, which .*Depth2ImgPipeline needs"):
        StableDiffusionDepth2ImgPipeline.from_pipe(pipeline)
    with pytest.raises(TypeError, match=r"^DDPMPipeline has no component vae$"):
        DDPMPipeline.from_pipe(pipeline, vae=None)


def test_there_is_nothing_to_construct() -> None:
    with pytest.raises(TypeError, match=r"makes pipelines by from_pretrained and from_pipe$"):
        AutoPipelineForInpainting()
