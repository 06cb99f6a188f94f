"""The `safelight` command: `generate`, `doctor`, the help, and the one sentence that an error is."""

import argparse
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pairs import photograph
from PIL import Image
from safetensors.numpy import save_file

from safelight.runtime import (
    DDPMPipeline,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    Generator,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    bundled_model,
    doctor,
)
from safelight.runtime.backends import BACKENDS, COMPILED, ON_GPU
from safelight.runtime.cli import main
from safelight.runtime.generate import open_pipeline
from safelight.runtime.image import read_parameters, save_png

PROMPT = "cat face on a blue background"
SMALL = ("--num-inference-steps", "2", "--height", "32", "--width", "32", "--no-progress")

Run = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is an empty one: where `output` appears."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def generate(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `generate` with options that make it quick; gives the lines that it printed."""

    def run(*options: object) -> list[str]:
        assert main(["generate", *SMALL, *map(str, options)]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out.splitlines()

    return run


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail; gives the one sentence that it ends with."""

    def run(*arguments: object) -> str:
        assert main([*map(str, arguments)]) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        (sentence,) = printed.err.splitlines()
        assert sentence.startswith("safelight: ")
        return sentence.removeprefix("safelight: ")

    return run


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# what is written and printed


def test_a_picture_is_written_with_what_made_it(generate: Run) -> None:
    summary, path = generate(PROMPT, "--seed", 7, "--guidance-scale", 5, "--negative-prompt", "dog")
    stages = re.fullmatch(
        r"seed 7: open \d+\.\d\d s, text \d+\.\d\d s, denoise \d+\.\d\d s, decode \d+\.\d\d s, save \d+\.\d\d s",
        summary,
    )
    assert stages, summary
    assert path == "output/7-cat-face-on-a-blue-background.png"
    assert pixels(path).shape == (32, 32, 3)
    parameters = read_parameters(path)
    assert re.fullmatch("[0-9a-f]{64}", parameters.pop("model_sha256"))
    assert parameters == {
        "model": "emoji",
        "prompt": PROMPT,
        "negative_prompt": "dog",
        "seed": 7,
        "num_inference_steps": 2,
        "guidance_scale": 5.0,
        "height": 32,
        "width": 32,
        "num_images_per_prompt": 1,
        "grid": False,
    }
    with Image.open(path) as image:
        text = image.info["parameters"]
        assert text.splitlines()[:2] == [PROMPT, "Negative prompt: dog"]
        assert "Steps: 2, CFG scale: 5.0, Seed: 7, Size: 32x32, Model: emoji" in text
        assert "digitalsourcetype/trainedAlgorithmicMedia" in image.info["XML:com.adobe.xmp"]


def test_the_picture_is_the_pipelines(generate: Run) -> None:
    _, path = generate(PROMPT, "--seed", 3)
    with DiffusionPipeline.from_pretrained(bundled_model()) as pipeline:
        pipeline.set_progress_bar_config(disable=True)
        (expected,) = pipeline(PROMPT, num_inference_steps=2, height=32, width=32, seed=3).images
    np.testing.assert_array_equal(pixels(path), np.asarray(expected))


def test_a_chosen_seed_is_printed_and_kept(generate: Run) -> None:
    runs = [generate(PROMPT), generate(PROMPT)]
    seeds = [int(summary.removeprefix("seed ").partition(":")[0]) for summary, _ in runs]
    assert seeds[0] != seeds[1]
    assert [read_parameters(path)["seed"] for _, path in runs] == seeds


def test_seeds_count_up_and_each_picture_is_made_again_from_its_own_file(generate: Run) -> None:
    summary, *paths = generate("cat face", "pizza", "--num-images-per-prompt", 2, "--seed", 5)
    assert summary.startswith("seed 5: ")
    assert paths == ["output/5-cat-face.png", "output/6-cat-face.png", "output/7-pizza.png", "output/8-pizza.png"]
    assert len({pixels(path).tobytes() for path in paths}) == 4
    for path, seed, prompt in zip(paths, (5, 6, 7, 8), ("cat face", "cat face", "pizza", "pizza"), strict=True):
        parameters = read_parameters(path)
        assert (parameters["seed"], parameters["prompt"]) == (seed, prompt)
        assert parameters["num_images_per_prompt"] == 1
        _, again = generate("--from-image", path, "--output", "again.png")
        # a batch and a single picture differ in the last bits, which may turn a pixel by one
        assert np.abs(pixels(again).astype(int) - pixels(path)).max() <= 1


def test_a_grid_is_one_picture_of_all_and_made_again_whole(generate: Run) -> None:
    options = ("cat face", "pizza", "red apple", "--num-images-per-prompt", 2, "--seed", 5)
    _, path = generate(*options, "--grid")
    assert path == "output/5-cat-face-grid.png"
    assert pixels(path).shape == (96, 64, 3)  # a row a prompt
    assert read_parameters(path)["prompt"] == ["cat face", "pizza", "red apple"]
    _, again = generate("--from-image", path, "--output", "again.png")
    np.testing.assert_array_equal(pixels(again), pixels(path))
    _, *singles = generate(*options)
    rows = [np.concatenate([pixels(single) for single in singles[row : row + 2]], axis=1) for row in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate(rows), pixels(path))


def test_a_grid_of_one_prompt_carries_its_text(generate: Run) -> None:
    _, path = generate(PROMPT, "--num-images-per-prompt", 2, "--seed", 5, "--grid", "--output", "grid.png")
    assert path == "grid.png"
    with Image.open(path) as image:
        assert image.info["parameters"].splitlines()[0] == PROMPT


# where it is written


def test_a_folder_never_loses_a_picture(generate: Run) -> None:
    paths = [generate(PROMPT, "--seed", 1, "--output", "deep/er")[1] for _ in range(3)]
    name = "deep/er/1-cat-face-on-a-blue-background"
    assert paths == [f"{name}.png", f"{name}-2.png", f"{name}-3.png"]
    assert len(list(Path("deep/er").iterdir())) == 3


def test_a_file_that_is_named_is_written_and_replaced(generate: Run) -> None:
    assert generate(PROMPT, "--seed", 1, "--output", "new/one.png")[1:] == ["new/one.png"]
    assert generate(PROMPT, "--seed", 2, "--output", "new/one.png")[1:] == ["new/one.png"]
    assert read_parameters("new/one.png")["seed"] == 2
    assert [path.name for path in Path("new").iterdir()] == ["one.png"]


@pytest.mark.parametrize("suffix", [".png", ".PNG"])
def test_several_pictures_are_numbered(generate: Run, suffix: str) -> None:
    _, *paths = generate(PROMPT, "--num-images-per-prompt", 2, "--seed", 1, "--output", f"cat{suffix}")
    assert paths == [f"cat-0{suffix}", f"cat-1{suffix}"]
    assert [read_parameters(path)["seed"] for path in paths] == [1, 2]


def test_names_of_files_are_short_and_plain(generate: Run) -> None:
    for prompt, name in (
        ("../../etc/passwd", "etc-passwd"),
        ("", "picture"),
        ("?!", "picture-2"),
        ("Café 日本", "café-日本"),
        ("cat face " * 8, "cat-face-" * 5 + "cat"),
    ):
        assert generate(prompt, "--seed", 0)[1:] == [f"output/0-{name}.png"]


@pytest.mark.parametrize(
    ("output_type", "shape"), [("np", (2, 32, 32, 3)), ("latent", (2, 4, 8, 8))], ids=["np", "latent"]
)
def test_arrays_are_written_as_npy(generate: Run, output_type: str, shape: tuple[int, ...]) -> None:
    options = (PROMPT, "--num-images-per-prompt", 2, "--seed", 4, "--output-type", output_type)
    assert generate(*options)[1:] == ["output/4-cat-face-on-a-blue-background.npy"]
    assert generate(*options, "--output", "a/b.npy")[1:] == ["a/b.npy"]
    array = np.load("a/b.npy")
    assert (array.shape, array.dtype) == (shape, np.float32)
    if output_type == "np":
        _, *paths = generate(PROMPT, "--num-images-per-prompt", 2, "--seed", 4)
        for image, path in zip(array, paths, strict=True):
            np.testing.assert_array_equal((image * 255).round().astype(np.uint8), pixels(path))


# a picture made again


def test_a_picture_is_made_again_to_the_byte(generate: Run) -> None:
    options = ("--seed", 11, "--scheduler", "DDPMScheduler", "--guidance-rescale", 0.7, "--clip-skip", 1)
    _, path = generate(PROMPT, *options, "--negative-prompt", "dog", "--height", 40, "--num-inference-steps", 3)
    # nothing but the picture: the defaults of the test would take precedence
    assert main(["generate", "--from-image", path, "--output", "again.png", "--no-progress"]) == 0
    np.testing.assert_array_equal(pixels("again.png"), pixels(path))
    assert read_parameters("again.png") == read_parameters(path)
    assert Path("again.png").read_bytes() == Path(path).read_bytes()


@pytest.mark.parametrize(
    "given",
    [
        {"seed": 12},
        {"num_inference_steps": 4},
        {"guidance_scale": 2.0},
        {"height": 48},
        {"negative_prompt": "pizza"},
        {"scheduler": "DDIMScheduler"},
        {"prompt": "red apple"},
    ],
    ids=lambda given: next(iter(given)),
)
def test_options_take_precedence_over_the_pictures(given: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", *SMALL, PROMPT, "--seed", "11", "--negative-prompt", "dog", "--output", "one.png"]) == 0
    ((name, value),) = given.items()
    options = [value] if name == "prompt" else [f"--{name.replace('_', '-')}", str(value)]
    assert main(["generate", *options, "--from-image", "one.png", "--output", "two.png", "--no-progress"]) == 0
    assert read_parameters("two.png") == {**read_parameters("one.png"), **given}
    assert not np.array_equal(pixels("two.png"), pixels("one.png"))


def test_a_picture_of_other_weights_is_said_to_be_one(generate: Run, caplog: pytest.LogCaptureFixture) -> None:
    _, path = generate(PROMPT, "--seed", 0)
    generate("--from-image", path)
    assert caplog.records == []
    with Image.open(path) as image:
        save_png(image, "other.png", {**read_parameters(path), "model_sha256": "0" * 64})
    generate("--from-image", "other.png")
    assert "expect another picture" in caplog.text


# options


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What pipelines are opened and called with."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    opened, called = DiffusionPipeline.from_pretrained.__func__, StableDiffusionPipeline.__call__  # type: ignore[attr-defined]

    def from_pretrained(cls: Any, *arguments: Any, **options: Any) -> Any:
        seen.append((arguments, options))
        return opened(cls, *arguments)  # on the CPU, whatever was asked for

    @functools.wraps(called)
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        seen.append((arguments, options))
        return called(self, *arguments, **options)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(from_pretrained))
    monkeypatch.setattr(StableDiffusionPipeline, "__call__", call)
    return seen


def test_every_option_reaches_the_pipeline(generate: Run, calls: list[Any]) -> None:
    rng = np.random.default_rng(0)
    given = {
        "latents": rng.standard_normal((2, 4, 10, 12), dtype=np.float32),
        "prompt_embeds": rng.standard_normal((1, 32, 96), dtype=np.float32),
        "negative_prompt_embeds": rng.standard_normal((1, 32, 96), dtype=np.float32),
    }
    for name, array in given.items():
        np.save(name, array)
    options = {
        "--height": 40,
        "--width": 48,
        "--num-inference-steps": 3,
        "--guidance-scale": 4.5,
        "--guidance-rescale": 0.25,
        "--num-images-per-prompt": 2,
        "--eta": 0.5,
        "--clip-skip": 1,
        "--seed": 9,
        "--scheduler": "DDIMScheduler",
        "--backend": "onnxruntime",
        "--device": "cuda:3",
        "--model": bundled_model(),
        "--output-type": "np",
        **{f"--{name.replace('_', '-')}": f"{name}.npy" for name in given},
    }
    _, path = generate(*(part for pair in options.items() for part in pair))
    assert path == "output/9-embeddings.npy"
    opened, (prompts, called) = calls
    engine = {"backend": "onnxruntime", "device": "cuda:3", "engines": None, "precision": None, "threads": None}
    assert opened == ((str(bundled_model()),), {**engine, "engine_options": {}, "low_memory": False})
    assert prompts == (None,)
    for name, array in given.items():
        np.testing.assert_array_equal(called.pop(name), array)
    assert called == {
        "height": 40,
        "width": 48,
        "num_inference_steps": 3,
        "guidance_scale": 4.5,
        "guidance_rescale": 0.25,
        "num_images_per_prompt": 2,
        "eta": 0.5,
        "clip_skip": 1,
        "seed": [9, 10],
        "output_type": "np",
    }


def test_every_argument_of_the_call_that_a_command_can_have_is_an_option() -> None:
    from safelight.runtime import generate as module

    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    options = {action.dest for action in parser._actions}
    arguments = set(StableDiffusionPipeline.__call__.__annotations__) - {"return"}
    without = {"timesteps", "sigmas", "generator", "return_dict"}
    assert arguments - options == {*without, "callback_on_step_end", "callback_on_step_end_tensor_inputs"}


def test_what_is_not_given_is_left_to_the_pipeline(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["generate", PROMPT, "--num-inference-steps", "1", "--no-progress"]) == 0
    _, (prompts, called) = calls
    assert prompts == ([PROMPT],)
    assert called.pop("seed")[0] >= 0
    assert called == {"num_images_per_prompt": 1, "num_inference_steps": 1, "output_type": "pil"}


def test_a_scheduler_is_made_from_the_models_configuration(generate: Run) -> None:
    _, path = generate(PROMPT, "--seed", 0, "--scheduler", "DDIMScheduler")
    assert read_parameters(path)["scheduler"] == "DDIMScheduler"
    assert not np.array_equal(pixels(path), pixels(generate(PROMPT, "--seed", 0)[1]))
    with Image.open(path) as image:
        assert "Sampler: DDIM" in image.info["parameters"]


def test_a_scheduler_is_made_with_options(generate: Run) -> None:
    karras = ("--scheduler-option", "use_karras_sigmas=true")
    options = ("--scheduler", "DPMSolverMultistepScheduler", *karras, "--scheduler-option", "solver_type=heun")
    _, path = generate(PROMPT, "--seed", 0, *options)
    assert read_parameters(path)["scheduler_options"] == {"use_karras_sigmas": True, "solver_type": "heun"}
    pipeline = DiffusionPipeline.from_pretrained(bundled_model())
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, use_karras_sigmas=True, solver_type="heun"
    )
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(PROMPT, seed=0, num_inference_steps=2, height=32, width=32).images[0]
    np.testing.assert_array_equal(pixels(path), np.asarray(expected))
    _, again = generate("--from-image", path)
    np.testing.assert_array_equal(pixels(again), pixels(path))
    _, other = generate("--from-image", path, "--scheduler", "DDIMScheduler")
    assert "scheduler_options" not in read_parameters(other)
    _, own = generate(PROMPT, "--seed", 0, "--scheduler-option", "timestep_spacing=trailing")
    assert not np.array_equal(pixels(own), pixels(generate(PROMPT, "--seed", 0)[1]))


def test_a_seeds_noise_may_be_given_as_latents(generate: Run) -> None:
    np.save("noise", Generator(6).randn((1, 4, 8, 8)))
    given, own = generate(PROMPT, "--latents", "noise.npy")[1], generate(PROMPT, "--seed", 6)[1]
    np.testing.assert_array_equal(pixels(given), pixels(own))
    assert read_parameters(given)["latents"] == "noise.npy"


def test_a_folder_named_like_the_bundled_model_is_that_folder(generate: Run, calls: list[Any]) -> None:
    generate(PROMPT, "--model", "emoji")
    assert calls[0][0] == (bundled_model(),)
    Path("emoji").symlink_to(bundled_model())
    _, path = generate(PROMPT, "--model", "emoji")
    assert calls[2][0] == ("./emoji",)
    assert read_parameters(path)["model"] == "./emoji"


def test_the_progress_bar_is_shown_unless_turned_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", PROMPT, "--num-inference-steps", "2"]) == 0
    assert "2/2" in capsys.readouterr().err


# errors


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], 'give a prompt, such as: safelight generate "cat face on a blue background"'),
        (["cat", "--prompt-embeds", "x.npy"], "give a prompt or --prompt-embeds, not both"),
        (["cat", "--scheduler", "Nothing"], "unknown scheduler 'Nothing'; known: CMStochasticIterativeScheduler, "),
        (["cat", "--scheduler-option", "x"], "--scheduler-option must be NAME=VALUE, got 'x'"),
        (["cat", "--scheduler-option", "=1"], "--scheduler-option must be NAME=VALUE, got '=1'"),
        (
            ["cat", "--scheduler", "DDIMScheduler", "--scheduler-option", "use_karras_sigmas=true"],
            "DDIMScheduler has no option use_karras_sigmas; it has: num_train_timesteps, beta_start, ",
        ),
        (
            ["cat", "--scheduler", "DDIMScheduler", "--scheduler-option", "timestep_spacing=wide"],
            "DDIMScheduler: unknown timestep_spacing 'wide'; known: ",
        ),
        (["cat", "--model", "none"], "none does not exist, and is no hub id either (owner/name)"),
        (["cat", "--model", "."], ". is no model folder: it has no model_index.json"),
        (["cat", "--height", "30"], "height must be a multiple of 4, got 30; nearest are 28 and 32"),
        (["cat", "--width", "0"], "width must be a multiple of 4, got 0; the nearest is 4"),
        (["cat", "--num-images-per-prompt", "0"], "num_images_per_prompt must be at least 1, got 0"),
        (["cat", "--seed", "99999999999999999999"], "seed must lie in [-2**63, 2**64), got 99999999999999999999"),
        (["cat", "--backend", "none"], "unknown backend 'none'; known: "),
        (["cat", "--device", "tpu"], "unknown device 'tpu' for the onnxruntime backend"),
        (["cat", "--latents", "none.npy"], "No such file or directory: none.npy"),
        (["--prompt-embeds", "none.npy"], "No such file or directory: none.npy"),
        (["cat", "--from-image", "none.png"], "No such file or directory: none.png"),
        (["cat", "--output", "cat.jpg"], "--output must be a .png file or a folder, got cat.jpg"),
        (["cat", "--output", "cat.npy"], "--output must be a .png file or a folder, got cat.npy"),
        (
            ["cat", "--output-type", "np", "--output", "cat.png"],
            "--output must be a .npy file or a folder, got cat.png",
        ),
        (["cat", "--clip-skip", "50"], "clip_skip must lie between 0 and "),
    ],
)
def test_a_wrong_option_is_one_sentence(
    fails: Callable[..., str], elsewhere: Path, arguments: list[str], sentence: str
) -> None:
    assert fails("generate", "--no-progress", *arguments).startswith(sentence)
    assert list(elsewhere.iterdir()) == []


def test_pictures_without_parameters_are_refused(fails: Callable[..., str]) -> None:
    Image.new("RGB", (8, 8)).save("plain.png")
    Image.new("RGB", (8, 8)).save("plain.jpg")
    assert fails("generate", "--from-image", "plain.png").startswith(
        "cannot read the parameters of plain.png: it carries no parameters: "
    )
    assert fails("generate", "--from-image", "plain.jpg") == "plain.jpg is no PNG file"


def test_a_pickle_is_no_array(fails: Callable[..., str]) -> None:
    np.save("pickled", np.array([object()]), allow_pickle=True)
    assert "allow_pickle=False" in fails("generate", "cat", "--latents", "pickled.npy")


def test_a_destination_that_is_a_file_is_named(fails: Callable[..., str]) -> None:
    Path("file").write_text("precious")
    assert fails("generate", "cat", "--output", "file", *SMALL) == "File exists: file"
    assert Path("file").read_text() == "precious"


def test_an_interrupt_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @functools.wraps(StableDiffusionPipeline.__call__)
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StableDiffusionPipeline, "__call__", interrupted)
    assert main(["generate", PROMPT]) == 130
    assert capsys.readouterr().err == "safelight: interrupted\n"


@pytest.mark.parametrize("verb", ["export", "bench"])
def test_the_verb_of_an_absent_extra_says_what_to_install(verb: str, tmp_path: Path, emoji_checkpoint: Path) -> None:
    """In a process in which neither torch nor diffusers can be imported."""
    arguments = {
        "export": ["export", str(emoji_checkpoint), str(tmp_path / "out")],
        "bench": ["bench", "--contender", "reference (PyTorch)", "--contender", "diffusers"],
    }[verb]
    program = f"""
import sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "diffusers"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("torch", "diffusers") else find(name, *rest)
sys.meta_path.insert(0, Absent())
from safelight.runtime.cli import main
sys.exit(main({arguments!r}))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr
    if verb == "export":
        assert result.returncode == 1
        assert result.stderr.startswith(
            "safelight: export needs: pip install 'safelight[export]' (No module named 'torc"
        )
    else:
        assert result.returncode == 0
        assert "torch not installed: pip install 'safelight[export,bench]'" in result.stdout


# help, version, doctor


def exits(*arguments: str) -> object:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits("--version") == 0
    assert capsys.readouterr().out == f"safelight {importlib.metadata.version('safelight')}\n"


def test_the_help_lists_every_verb_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits("--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    commands = importlib.metadata.entry_points(group="safelight.commands")
    assert {command.name for command in commands} >= {"bench", "doctor", "export", "generate"}
    for command in commands:
        assert f"{command.name} {command.load().SUMMARY}" in shown


@pytest.mark.parametrize(
    "verb", sorted({command.name for command in importlib.metadata.entry_points(group="safelight.commands")})
)
def test_the_help_of_a_verb_shows_its_options(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exits(verb, "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith(f"usage: safelight {verb} ")
    if verb == "generate":
        assert "how many times the noise is lowered (default: 4 or 50 or 100 or 1000, as the pipeline has it)" in shown
        assert "1 is no guidance (default: 5.0 or 7.5 or 8.5, as the pipeline has it)" in shown


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["generate", "--nothing"], ["generate", "x", "--seed", "one"]])
def test_what_the_parser_does_not_know_exits_with_its_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exits(*arguments) == 2
    assert capsys.readouterr().err.startswith("usage: safelight ")


def findings(capsys: pytest.CaptureFixture[str], status: int) -> dict[str, str]:
    """Subject -> the mark, what was found, and the fix where there is one."""
    assert main(["doctor"]) == status
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"safelight {importlib.metadata.version('safelight')}, Python 3.")
    found: dict[str, str] = {}
    for line in lines:
        if line.startswith(("ok  ", "--  ")):
            subject, _, detail = line[4:].partition(": ")
            found[subject] = f"{line[:2]} {detail}"
        else:
            found[subject] += f" | {line.strip()}"
    return found


def test_doctor_shows_packages_and_runs_every_backend(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path / "new" / "cache"))
    found = findings(capsys, 0)
    assert f"numpy {np.__version__}" in found["packages"]
    for backend in BACKENDS.keys() - {*COMPILED, *ON_GPU}:
        assert re.fullmatch(rf"ok {backend} [\d.]+ \(.*CPU.*\); runs the bundled model", found[f"backend {backend}"])
    assert found["extra export"] == found["extra bench"] == "ok installed"
    assert re.fullmatch(r"ok .+, with .+; --precision auto is (fp32|bf16)", found["processor"])
    assert found["auto"].startswith("ok from 500 MB of weights on openvino: its steps are faster; below onnxruntime: ")
    assert found["cache"] == f"ok {tmp_path / 'new' / 'cache'}"
    assert not (tmp_path / "new").exists()


def test_doctor_says_what_the_backends_of_a_gpu_lack(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    monkeypatch.setattr("safelight.runtime.backends.onnxruntime.cuda.is_gpu_build", lambda: True)
    monkeypatch.setattr("safelight.runtime.backends.onnxruntime.cuda.has_driver", lambda: False)
    found = findings(capsys, 0)
    for subject in ("device cuda", "backend onnxruntime-tensorrt"):
        assert re.match(r"-- onnxruntime [\d.]+ .* \| device 'cuda' is not usable: this machine has no", found[subject])
    assert "pip install 'safelight[onnxruntime-tensorrt-rtx]'" in found["backend onnxruntime-tensorrt-rtx"]


def test_doctor_names_the_fix_of_a_missing_engine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for engine in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, engine, None)  # importing it fails
        for name in [name for name in sys.modules if name.startswith(f"safelight.runtime.backends.{engine}")]:
            monkeypatch.delitem(sys.modules, name)
    found = findings(capsys, 1)
    assert found["backend openvino"] == (
        "-- not installed | the openvino backend needs: pip install 'safelight[openvino]'"
    )
    needs = "-- not installed | the onnxruntime backend needs: pip install 'safelight[cpu]', or 'safelight[gpu]' with"
    assert found["backend onnxruntime"].startswith(needs)
    assert found["backend onnxruntime-tensorrt"].startswith(needs)
    assert found["device cuda"] == "-- onnxruntime is not installed | pip install 'safelight[gpu]'"


def test_doctor_names_the_fixes_of_packages(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find, version = importlib.util.find_spec, importlib.metadata.version
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "1.0" if name == "onnxruntime-gpu" else version(name)
    )
    found = findings(capsys, 0)
    assert found["extra export"] == "-- lacks torch | pip install 'safelight[export]'"
    assert found["extra bench"] == "-- lacks torch | pip install 'safelight[bench]'"
    assert "both installed and overwrite each other | pip uninstall onnxruntime onnxrun" in found["onnxruntime"]


def test_doctor_says_when_the_bundled_model_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("a broken graph")

    monkeypatch.setattr(doctor, "open_unet", broken)
    found = findings(capsys, 1)
    assert "fails on the bundled model: a broken graph" in found["backend onnxruntime"]


def test_the_installed_command_makes_a_picture_without_torch(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("safelight")
    program = f"""
import json, runpy, sys
sys.argv = ["safelight", "generate", {PROMPT!r}, "--seed", "0", "--num-inference-steps", "2", "--output", "cat.png"]
try:
    runpy.run_path({str(script)!r}, run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert read_parameters(tmp_path / "cat.png")["seed"] == 0
    loaded = set(json.loads(result.stdout.splitlines()[-1]))
    assert "onnxruntime" in loaded
    heavy = {"torch", "transformers", "diffusers", "onnx", "onnxscript", "scipy", "huggingface_hub"}
    assert not loaded & {*heavy, "safelight.export", "safelight.reference", "safelight.benchmarks"}


# prompts


def test_prompts_weigh_and_may_be_long(generate: Run, tmp_path: Path) -> None:
    save_file({"<thing>": np.random.default_rng(0).standard_normal(96).astype(np.float32)}, "thing.safetensors")
    long = ", ".join(f"cat face number {index}" for index in range(12))
    cases = {
        "a (red:1.5) apple": ("--prompt-weights",),
        long: ("--long-prompts",),
        "a <thing>": ("--textual-inversion", "thing.safetensors"),
    }
    for prompt, options in cases.items():
        plain = pixels(generate(prompt, "--seed", 0)[1]) if "--long-prompts" not in options else None
        _, path = generate(prompt, "--seed", 0, *options)
        assert plain is None or not np.array_equal(pixels(path), plain)
        _, again = generate("--from-image", path)
        np.testing.assert_array_equal(pixels(again), pixels(path))


# from a picture


@pytest.fixture
def photo(elsewhere: Path) -> str:
    photograph("chelsea").save("cat.png")
    return "cat.png"


@pytest.fixture
def mask(elsewhere: Path) -> str:
    Image.fromarray(np.pad(np.full((100, 150), 255, np.uint8), ((100, 100), (150, 151)))).save("mask.png")
    return "mask.png"


def test_a_picture_to_start_from(generate: Run, photo: str) -> None:
    _, path = generate(PROMPT, "--image", photo, "--strength", 0.5, "--seed", 3)
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(bundled_model())
    pipeline.set_progress_bar_config(disable=True)
    image = Image.open(photo).resize((32, 32), Image.Resampling.LANCZOS)
    expected = pipeline(PROMPT, image, strength=0.5, seed=3, num_inference_steps=2).images[0]
    np.testing.assert_array_equal(pixels(path), np.asarray(expected))
    assert read_parameters(path)["image"] == "cat.png"
    _, again = generate("--from-image", path)
    np.testing.assert_array_equal(pixels(again), pixels(path))


def test_a_picture_keeps_its_size_unless_another_is_asked_for(generate: Run, photo: str) -> None:
    options = ("--image", photo, "--seed", 3, "--num-inference-steps", 1, "--strength", 1, "--no-progress")
    for sides, shape in (((), (300, 448, 3)), (("--height", 40), (40, 448, 3)), (("--width", 24), (300, 24, 3))):
        assert main(["generate", PROMPT, *map(str, (*options, *sides)), "--output", "one.png"]) == 0
        assert pixels("one.png").shape == shape  # 451 is no multiple of 4


@pytest.fixture
def inputs(photo: str, mask: str) -> dict[str, str]:
    """Every kind of file that a picture can be made from: option -> path."""
    rng = np.random.default_rng(0)
    np.save("noise.npy", rng.standard_normal((1, 4, 8, 8), dtype=np.float32))
    for folder in ("learned", "other"):
        Path(folder).mkdir()
        save_file({"<thing>": rng.standard_normal(96).astype(np.float32)}, f"{folder}/learned_embeds.safetensors")
    return {"--image": photo, "--mask": mask, "--latents": "noise.npy", "--textual-inversion": "learned"}


def made_from(generate: Run, inputs: dict[str, str]) -> str:
    return generate("a <thing>", "--seed", 3, "--strength", 1, *(part for pair in inputs.items() for part in pair))[1]


def test_the_files_of_a_picture_are_known_again(
    generate: Run, inputs: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    path = made_from(generate, inputs)
    learned = "learned/learned_embeds.safetensors"
    files = {**dict.fromkeys(inputs.values()), learned: None}
    expected = {name: hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in files if name != "learned"}
    expected["learned"] = expected.pop(learned)
    assert read_parameters(path)["input_sha256"] == expected
    _, again = generate("--from-image", path)
    np.testing.assert_array_equal(pixels(again), pixels(path))
    assert read_parameters(again) == read_parameters(path)
    assert caplog.messages == []

    photograph("coffee", (451, 300)).save("cat.png")
    shutil.copyfile("other/learned_embeds.safetensors", learned)
    _, other = generate("--from-image", path)
    assert caplog.messages == [
        f"{name} is not what it was when {path} was made: expect another picture" for name in ("cat.png", "learned")
    ]
    assert not np.array_equal(pixels(other), pixels(path))
    caplog.clear()
    _, again = generate("--from-image", other)
    np.testing.assert_array_equal(pixels(again), pixels(other))
    assert caplog.messages == [], "the new picture records the new files"


@pytest.mark.parametrize("option", ["--image", "--mask", "--latents", "--textual-inversion"])
def test_a_file_that_is_gone_is_named_and_may_be_replaced(
    generate: Run, fails: Callable[..., str], inputs: dict[str, str], option: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = made_from(generate, inputs)
    gone = Path(inputs[option])
    gone.rename("elsewhere")
    assert fails("generate", "--from-image", path, "--no-progress") == (
        f"{path} was made from {gone}, which is not there: give it with {option}"
    )
    assert "was made from" not in fails("generate", "--from-image", path, option, "nowhere", "--no-progress")
    _, again = generate("--from-image", path, option, "elsewhere")
    np.testing.assert_array_equal(pixels(again), pixels(path))
    assert caplog.messages == []


def test_a_picture_that_does_not_know_its_files_is_made_again(generate: Run, photo: str) -> None:
    _, path = generate(PROMPT, "--image", photo, "--seed", 3)
    with Image.open(path) as image:
        parameters = read_parameters(path)
        assert list(parameters.pop("input_sha256")) == ["cat.png"]
        save_png(image, "old.png", parameters)
    _, again = generate("--from-image", "old.png")
    np.testing.assert_array_equal(pixels(again), pixels(path))


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("image", 5, "--image must name a file, got 5"),
        ("mask_image", ["cat.png"], "--mask must name a file, got ['cat.png']"),
        ("textual_inversions", [None], "--textual-inversion must name a file, got None"),
    ],
)
def test_parameters_that_name_no_file_are_refused(
    fails: Callable[..., str], name: str, value: Any, sentence: str
) -> None:
    save_png(Image.new("RGB", (8, 8)), "strange.png", {"prompt": "cat", name: value})
    assert fails("generate", "--from-image", "strange.png") == sentence


def test_a_mask_of_what_is_made_anew(generate: Run, photo: str, mask: str) -> None:
    options = ("--image", photo, "--mask", mask, "--seed", 3, "--padding-mask-crop", 8)
    _, path = generate(PROMPT, *options)
    assert pixels(path).shape == (300, 451, 3)
    np.testing.assert_array_equal(pixels(path)[:60], pixels(photo)[:60])
    assert not np.array_equal(pixels(path), pixels(photo))


@pytest.mark.parametrize("given", [False, True], ids=["estimated", "given"])
def test_depth_to_image(generate: Run, photo: str, depth_export: Path, given: bool) -> None:
    depth_map = np.random.default_rng(0).random((1, 24, 24))
    np.save("depth.npy", depth_map)
    options = ("--image", photo, "--strength", 1, "--seed", 3, *(("--depth-map", "depth.npy") if given else ()))
    _, path = generate(PROMPT, "--model", depth_export, *options)
    pipeline = StableDiffusionDepth2ImgPipeline.from_pretrained(depth_export)
    pipeline.set_progress_bar_config(disable=True)
    image = Image.open(photo).resize((32, 32), Image.Resampling.LANCZOS)
    depth: dict[str, Any] = {"depth_map": depth_map} if given else {}
    expected = pipeline(PROMPT, image, strength=1.0, seed=3, num_inference_steps=2, **depth).images[0]
    np.testing.assert_array_equal(pixels(path), np.asarray(expected))
    _, again = generate("--from-image", path)
    np.testing.assert_array_equal(pixels(again), pixels(path))


def test_pictures_from_noise_alone(
    unconditional_export: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., str]
) -> None:
    made = ("generate", "--model", str(unconditional_export), "--num-inference-steps", "2", "--no-progress")
    assert main([*made, "--num-images-per-prompt", "2", "--seed", "5"]) == 0
    _, *paths = capsys.readouterr().out.splitlines()
    assert paths == ["output/5-picture.png", "output/6-picture.png"]
    pipeline = DDPMPipeline.from_pretrained(unconditional_export)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(batch_size=2, seed=[5, 6], num_inference_steps=2).images
    np.testing.assert_array_equal([pixels(path) for path in paths], [np.asarray(each) for each in expected])
    assert main(["generate", "--from-image", paths[1], "--output", "again.png", "--no-progress"]) == 0
    assert np.abs(pixels("again.png").astype(int) - pixels(paths[1])).max() <= 1
    capsys.readouterr()
    assert fails(*made, "cat") == "DDPMPipeline takes no prompt"
    assert fails(*made, "--height", "32", "--mask", "x.png") == (
        "DDPMPipeline is for a DDPMPipeline, which has no inpainting beside it"
    )
    assert fails(*made, "--height", "32", "--strength", "1") == "DDPMPipeline takes no --height, --strength"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--strength", "0.5"], "StableDiffusionPipeline takes no --strength"),
        (["--mask", "mask.png"], "give an image"),
        (["--image", "cat.png", "--strength", "2"], "strength must lie in [0, 1], got 2.0"),
        (["--image", "none.png"], "there is no picture at none.png"),
        (["--image", "cat.png", "--depth-map", "d.npy"], "StableDiffusionImg2ImgPipeline takes no --depth-map"),
        (
            ["--image", "cat.png", "--padding-mask-crop", "3"],
            "StableDiffusionImg2ImgPipeline takes no --padding-mask-c",
        ),
        (["--image", "cat.png", "--mask", "small.png"], "image and mask must be of one size, got (451, 300) and (64, "),
        (["--image", "cat.png", "--height", "30"], "height must be a multiple of 4, got 30; nearest are 28 and 32"),
        (["--image", "cat.png", "--width", "0"], "width must be a multiple of 4, got 0; the nearest is 4"),
        (
            ["--image", "cat.png", "--height", "400000", "--width", "400000"],
            "the resized picture must have at most 89478485 pixels, got 400000 times 400000",
        ),
        (["--image", "bomb.png"], "bomb.png has too many pixels: "),
        (["--latents", "cat.png"], "cat.png cannot be read as a .npy file of numbers: the magic string is not correct"),
        (["--latents", "half.npy"], "half.npy cannot be read as a .npy file of numbers: "),
        (["--latents", "promise.npy"], "promise.npy cannot be read as a .npy file of numbers: "),
        (["--image", "cat.png", "--guidance-rescale", "0.5"], "StableDiffusionImg2ImgPipeline takes no --guidance-re"),
    ],
)
def test_wrong_pictures_are_one_sentence(
    fails: Callable[..., str], photo: str, mask: str, arguments: list[str], sentence: str
) -> None:
    np.save("d.npy", np.zeros((1, 8, 8)))
    Path("half.npy").write_bytes(Path("d.npy").read_bytes()[:-8])
    with Path("promise.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (1 << 50,)})
    Image.new("L", (64, 48)).save("small.png")
    Image.new("1", (10_000, 9_000)).save("bomb.png")
    assert fails("generate", "cat", "--no-progress", *arguments).startswith(sentence)


def test_speed_is_printed_recorded_and_made_again(generate: Run) -> None:
    options = (PROMPT, "--seed", 3, "--num-inference-steps", 12)
    _, exact = generate(*options, "--output", "exact.png")
    assert "speed" not in read_parameters(exact)
    _, said, path = generate(*options, "--guidance-interval", "0:0.5", "--reuse-threshold", 0.2)
    assert said == "speed: guidance from 0 to 0.5 of the way, predictions reused below a threshold of 0.2"
    assert read_parameters(path)["speed"] == {
        "guidance_interval": [0.0, 0.5], "deep_cache_interval": 1, "reuse_threshold": 0.2, "reuse_limit": None,
    }  # fmt: skip
    assert not np.array_equal(pixels(path), pixels(exact))
    steps = ("--num-inference-steps", 12)
    _, _, again = generate("--from-image", path, *steps, "--output", "again.png")
    np.testing.assert_array_equal(pixels(again), pixels(path))
    _, whole = generate("--from-image", path, *steps, "--speed", "exact", "--output", "whole.png")
    np.testing.assert_array_equal(pixels(whole), pixels(exact))


def test_a_balanced_picture_has_the_fastest_precision_unless_one_is_named(
    generate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def noted(*arguments: Any, **options: Any) -> Any:
        asked.append(options["precision"])
        return open_pipeline(*arguments, **options)

    monkeypatch.setattr(sys.modules[open_pipeline.__module__], "open_pipeline", noted)
    _, engine, said, path = generate(PROMPT, "--seed", 3, "--speed", "balanced", "--backend", "onnxruntime")
    assert engine == "onnxruntime on cpu: as exported"  # what "auto" is there
    assert said == "speed: predictions reused below a threshold of 0.05"
    assert read_parameters(path)["speed"]["preset"] == "balanced"
    generate("--from-image", path, "--backend", "onnxruntime", "--precision", "fp32")
    generate("--from-image", path, "--backend", "onnxruntime")
    assert asked == ["auto", "fp32", "auto"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--guidance-interval", "0.5"], "--guidance-interval must be START:STOP, such as 0:0.6, got '0.5'"),
        (["--guidance-interval", "0:all"], "--guidance-interval must be START:STOP, such as 0:0.6, got '0:all'"),
        (["--guidance-interval", "0.6:0.2"],
         "guidance_interval must be parts of the way with 0 <= start <= stop <= 1, got 0.6 and 0.2"),
        (["--reuse-threshold", "-1"], "reuse_threshold must be a number from 0, which is off, on, got -1.0"),
        (["--deep-cache", "0"], "deep_cache_interval must be a whole number from 1 on, got 0"),
    ],
)  # fmt: skip
def test_a_speed_that_is_none_is_one_sentence(fails: Callable[..., str], options: list[str], sentence: str) -> None:
    assert fails("generate", "cat", *options) == sentence
