"""A pipeline's safety checker: where it comes from, how it is left out, and what is said of that."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from pairs import PROMPT

from safelight.runtime import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    DiffusionPipeline,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionPipeline,
    bundled_model,
)
from safelight.runtime.cli import main
from safelight.runtime.image import to_pil
from safelight.runtime.image_processor import CLIPImageProcessor
from safelight.runtime.networks import StableDiffusionSafetyChecker
from safelight.runtime.safety_checker import run_safety_checker

WARNING = "StableDiffusionPipeline runs without the safety checker that its model asks for"


@pytest.fixture
def folder(checked_export: Path, tmp_path: Path) -> Path:
    """A model folder with a safety checker, to break, as an exporter without a manifest leaves it."""
    copy = Path(shutil.copytree(checked_export, tmp_path / "model"))
    (copy / "safelight.json").unlink()
    return copy


def edit_index(folder: Path, **changes: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def opened(folder: Path, **options: Any) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def found(pipeline: Any, **options: Any) -> Any:
    return pipeline(PROMPT, num_inference_steps=1, height=32, width=32, seed=0, **options).nsfw_content_detected


def shown(pipeline: Any) -> dict[str, Any]:
    return dict(json.loads(repr(pipeline).removeprefix("StableDiffusionPipeline ")))


# the folder's own


def test_it_is_on_where_the_folder_has_one(
    checked_export: Path, checked_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(checked_checkpoint)
    with opened(checked_export) as pipeline:
        assert type(pipeline.safety_checker) is StableDiffusionSafetyChecker
        assert type(pipeline.feature_extractor) is CLIPImageProcessor
        assert pipeline.components.keys() == theirs.components.keys() - {"image_encoder"}
        assert shown(pipeline)["safety_checker"] == ["stable_diffusion", "StableDiffusionSafetyChecker"]
        assert "network" not in pipeline.safety_checker.__dict__, "it is opened when it is used"
        assert found(pipeline, output_type="latent") is None
        assert "network" not in pipeline.safety_checker.__dict__
        assert found(pipeline) in ([True], [False])
        checker = pipeline.safety_checker
    assert caplog.text.count("without the safety checker") == 0
    with pytest.raises(RuntimeError, match="safety_checker is closed"):
        checker(images=np.zeros((1, 4, 4, 3)), clip_input=np.zeros((1, 3, 32, 32)))


def test_tasks_share_it(checked_export: Path) -> None:
    pipeline = opened(checked_export)
    for auto in (AutoPipelineForImage2Image, AutoPipelineForInpainting):
        other: Any = auto.from_pipe(pipeline)
        assert other.safety_checker is pipeline.safety_checker
        assert other.feature_extractor is pipeline.feature_extractor
    with pytest.raises(ValueError, match="has no depth_estimator, which StableDiffusionDepth2ImgPipeline needs"):
        StableDiffusionDepth2ImgPipeline.from_pipe(pipeline)


def test_it_moves_with_the_networks(checked_export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Onto a device that is the CPU by another name, for want of another."""
    from safelight.runtime.backends import onnxruntime

    place = onnxruntime.place("cpu")
    monkeypatch.setattr(onnxruntime, "place", lambda *_: place)
    with opened(checked_export) as pipeline:
        expected, before = found(pipeline), pipeline.safety_checker
        pipeline.to("cpu:1")
        assert pipeline.safety_checker is not before
        assert found(pipeline) == expected
        for other in (lambda images, **_: (images, [False]), None):
            pipeline.safety_checker = other
            pipeline.to("cpu:2" if other else "cpu:3")
            assert pipeline.safety_checker is other


# without one


def test_none_turns_it_off_and_is_said_once(checked_export: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(checked_export, safety_checker=None) as pipeline:
        assert pipeline.safety_checker is None
        assert shown(pipeline)["safety_checker"] == [None, None]
        assert found(pipeline) is None
        other: Any = AutoPipelineForImage2Image.from_pipe(pipeline)
        assert other.safety_checker is None
    assert caplog.text.count("without the safety checker") == caplog.text.count(WARNING) == 1


def test_it_is_taken_away_at_run_time(checked_export: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipeline = opened(checked_export)
    without: Any = StableDiffusionPipeline.from_pipe(pipeline, safety_checker=None)
    assert without.safety_checker is None
    assert without.unet is pipeline.unet
    pipeline.safety_checker = None
    assert found(pipeline) is None
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("required", "options", "is_said"),
    [
        (True, {}, True),
        (False, {}, False),
        (None, {}, True),  # as in diffusers: models need one unless they say otherwise
        (True, {"requires_safety_checker": False}, False),
        (False, {"requires_safety_checker": True}, True),
    ],
)
def test_a_folder_that_lacks_what_it_requires_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture, required: bool | None, options: dict[str, bool], is_said: bool
) -> None:
    edit_index(folder, safety_checker=[None, None], feature_extractor=[None, None], requires_safety_checker=required)
    if required is None:
        index = json.loads((folder / "model_index.json").read_text())
        del index["requires_safety_checker"]
        (folder / "model_index.json").write_text(json.dumps(index))
    pipeline = opened(folder, **options)
    assert pipeline.safety_checker is None
    assert caplog.text.count(WARNING) == is_said
    if options:
        assert shown(pipeline)["requires_safety_checker"] is options["requires_safety_checker"]


def test_the_bundled_model_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert opened(bundled_model()).safety_checker is None
    assert opened(bundled_model(), safety_checker=None).feature_extractor is None
    assert caplog.text == ""


def test_a_folder_of_optimum_names_one_that_it_does_not_have(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(folder / "safety_checker")
    assert opened(folder).safety_checker is None
    assert WARNING in caplog.text


def test_a_checker_that_the_manifest_names_must_be_there(checked_export: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checked_export, tmp_path / "model"))
    shutil.rmtree(copy / "safety_checker")
    with pytest.raises(
        FileNotFoundError, match=r"is not whole: safety_checker/config\.json is missing; export it again$"
    ):
        opened(copy)
    assert opened(copy, safety_checker=None).safety_checker is None


def test_it_needs_a_feature_extractor(checked_export: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"has a safety_checker and no feature_extractor .*, or safety_checker=None$"):
        opened(checked_export, feature_extractor=None)
    edit_index(folder, feature_extractor=[None, None])
    with pytest.raises(ValueError, match="has a safety_checker and no feature_extractor"):
        opened(folder)
    pipeline = opened(folder, feature_extractor=CLIPImageProcessor(size=(32,), crop_size=(32, 32)))
    assert len(found(pipeline)) == 1
    pipeline.feature_extractor = None
    with pytest.raises(ValueError, match="has a safety_checker and no feature_extractor"):
        found(pipeline)


def test_a_feature_extractor_of_another_model_is_named(folder: Path) -> None:
    edit_index(folder, feature_extractor=["transformers", "BlipImageProcessor"])
    with pytest.raises(ValueError, match="component feature_extractor is a BlipImageProcessor, which is not known"):
        opened(folder)


# someone else's


def test_a_function_may_stand_in(checked_export: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What users of diffusers put in its place."""
    with opened(checked_export, safety_checker=lambda images, **_: (images, [False] * len(images))) as pipeline:
        assert found(pipeline) == [False]
        assert caplog.text == ""
        seen = {}

        def black(images: np.ndarray, clip_input: np.ndarray) -> tuple[np.ndarray, list[bool]]:
            seen.update(images=images, clip_input=clip_input)
            return np.zeros_like(images), [True] * len(images)

        pipeline.safety_checker = black
        (image,) = pipeline(PROMPT, num_inference_steps=1, height=32, width=40, seed=0).images
        assert not np.asarray(image).any()
    assert seen["images"].shape == (1, 32, 40, 3)
    expected = pipeline.feature_extractor(to_pil(seen["images"]))["pixel_values"]
    np.testing.assert_array_equal(seen["clip_input"], expected)
    assert "1 of 1 pictures may be not safe for work" in caplog.text


def test_images_are_left_as_they_were() -> None:
    class Network:
        inputs = outputs = ()

        def __call__(self, _inputs: Any, _outputs: Any) -> dict[str, np.ndarray]:
            return {"has_nsfw_concepts": np.array([False, True])}

        def close(self) -> None:
            pass

    checker = StableDiffusionSafetyChecker({}, lambda: Network())  # type: ignore[arg-type]
    images = np.random.default_rng(0).random((2, 40, 30, 3), dtype=np.float32)
    before = images.copy()
    result, nsfw = run_safety_checker(images, checker, CLIPImageProcessor())
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(result, np.stack([before[0], np.zeros_like(before[0])]))
    assert result.dtype == np.float32
    assert nsfw == [False, True]


# on the command line


@pytest.fixture
def generate(
    checked_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Runs `generate` with eight seeds; gives the lines that it printed."""

    def run(*options: str) -> list[str]:
        monkeypatch.chdir(tmp_path)
        arguments = ["--model", str(checked_export), PROMPT, "--seed", "0", "--num-images-per-prompt", "8"]
        assert main(["generate", *arguments, "--num-inference-steps", "2", "--no-progress", *options]) == 0
        return capsys.readouterr().out.splitlines()

    return run


def test_the_command_says_which_pictures_are_black(
    generate: Callable[..., list[str]], checked_export: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, *lines = generate()
    with opened(checked_export) as pipeline:
        options: dict[str, Any] = {"num_inference_steps": 2, "num_images_per_prompt": 8, "seed": list(range(8))}
        output = pipeline(PROMPT, **options)
    black = [seed for seed, is_black in enumerate(output.nsfw_content_detected) if is_black]
    assert 0 < len(black) < 8
    assert lines[8:] == [
        f"seed {seed}: black, because the safety checker takes it for not safe for work" for seed in black
    ]
    assert WARNING not in caplog.text
    assert len(generate("--no-safety-checker")) == 9
    assert caplog.text.count(WARNING) == 1
