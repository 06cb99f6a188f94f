"""Other tools: the workers' protocol, the table of them, why one cannot take part, and their pictures."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import ROOT
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

from safelight.benchmarks.peers import diffusers, job, openvino_genai, optimum_onnx, registry, stable_diffusion_cpp
from safelight.benchmarks.peers.job import Generate, Job, Picture
from safelight.benchmarks.peers.registry import PEERS, Peer
from safelight.benchmarks.published import SHAPES, write_checkpoint
from safelight.runtime import Generator

#: diffusers 0.42 beside NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

PEERS_FOLDER = ROOT / "benchmarks" / "peers"
PROMPT = "a red apple"


def a_job(output: Path, **changes: Any) -> Job:
    fields: dict[str, Any] = {
        "model": "somewhere",
        "prompts": [PROMPT],
        "height": 32,
        "width": 32,
        "num_inference_steps": 3,
        "guidance_scale": 5.0,
        "seed": 7,
        "latents": None,
        "precision": "fp32",
        "threads": None,
        "pictures": 2,
        "warm_up_steps": 1,
        "output": str(output),
    }
    return Job(**fields | changes)


def noise(folder: Path, seeds: list[int], shape: tuple[int, int, int]) -> str:
    file = folder / "latents.npy"
    np.save(file, np.concatenate([Generator(seed).randn((1, *shape)) for seed in seeds]))
    return str(file)


# the protocol


def a_tool(calls: list[int]) -> Callable[[Job], Generate]:
    def open_tool(asked: Job) -> Generate:
        def generate(steps: int) -> Picture:
            calls.append(steps)
            image = np.full((len(asked.prompts), asked.height, asked.width, 3), 0.5, np.float64)
            return Picture(images=image, text=None, steps=[0.5] * steps, decode=0.25, eight_bits=True, note="grey")

        return generate

    return open_tool


def test_a_job_survives_its_file(tmp_path: Path) -> None:
    asked = a_job(tmp_path, prompts=['naïve "café"\n🐱', ""], latents="noise.npy", threads=2, options={"compile": True})
    asked.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == asked


def test_what_a_worker_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, calls = a_job(tmp_path), []
    asked.write(tmp_path / "job.json")
    monkeypatch.setattr(sys, "argv", ["worker", str(tmp_path / "job.json")])
    job.main(a_tool(calls), ["numpy"])
    assert calls == [1, 3, 3]  # the warm-up, and the pictures
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["versions"] == {"numpy": np.__version__}
    assert result["note"] == "grey"
    assert result["eight_bits"] is True
    assert result["peak_memory"] > 2**20
    assert [picture["steps"] for picture in result["pictures"]] == [[0.5] * 3] * 2
    assert all(picture["total"] >= 0 and picture["text"] is None for picture in result["pictures"])
    image = np.load(tmp_path / "image.npy")
    assert image.shape == (1, 32, 32, 3)
    assert image.dtype == np.float32
    assert not (tmp_path / "picture.png").exists()


def test_a_cold_start_makes_one_picture_and_saves_it(tmp_path: Path) -> None:
    calls: list[int] = []
    job.work(a_job(tmp_path, pictures=0), a_tool(calls), {})
    assert calls == [3]
    assert (tmp_path / "picture.png").is_file()


def test_workers_need_nothing_of_safelight() -> None:
    """They run in environments that do not have it."""
    for peer in PEERS.values():
        for module in (peer.module, peer.export):
            assert module is None or "safelight" not in (ROOT / f"{module.replace('.', '/')}.py").read_text()
    workers = sorted({peer.module for peer in PEERS.values()})
    code = f"import sys, importlib; [importlib.import_module(name) for name in {workers}]; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    loaded = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd="/", stdout=subprocess.PIPE, text=True, check=True
    ).stdout.split()
    assert "numpy" in loaded
    assert not {"safelight", "torch", "onnxruntime", "openvino", "diffusers"} & set(loaded)


# the table


def test_every_worker_and_every_environment_is_in_the_table() -> None:
    others = {"__init__", "job", "registry", "diffusers_call", "reference", "safelight"}
    modules = {file.stem for file in PEERS_FOLDER.glob("*.py")} - others
    named = {module.rsplit(".", 1)[1] for peer in PEERS.values() for module in (peer.module, peer.export) if module}
    assert named == modules
    makefile = (ROOT / "Makefile").read_text()
    for peer in PEERS.values():
        assert (peer.environment is None) == (peer.target is None)
        if peer.target is not None:
            assert f"\n{peer.target}: " in makefile
            assert f":= {peer.environment}\n" in makefile
    assert all(name == peer.name for name, peer in PEERS.items())


@pytest.mark.parametrize("name", PEERS)
def test_a_tool_refuses_a_precision_that_it_lacks(name: str, tmp_path: Path) -> None:
    tools = (diffusers, optimum_onnx, openvino_genai, stable_diffusion_cpp)
    module = next(tool for tool in tools if tool.__name__.endswith(PEERS[name].module))
    with pytest.raises(ValueError, match=r"is asked for .*, got int3"):
        module.open_tool(a_job(tmp_path, precision="int3"))


# why one takes no part


def test_an_environment_that_is_not_there_names_its_target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry, "_ROOT", tmp_path)
    outside = [peer for peer in PEERS.values() if peer.environment is not None]
    assert len({peer.environment for peer in outside}) == 3
    for peer in outside:
        assert peer.missing() == f"{peer.environment} is not there: make {peer.target}"
    there = outside[0]
    (tmp_path / str(there.environment)).mkdir()
    (tmp_path / str(there.environment) / ".installed").touch()
    assert there.missing() is None
    assert there.python == tmp_path / str(there.environment) / "bin" / "python"


def test_packages_that_are_not_installed_are_named() -> None:
    peer = replace(PEERS["diffusers"], packages=("torch", "nosuchpackage"))
    assert peer.missing() == "nosuchpackage not installed: pip install 'safelight[export,bench]'"
    assert PEERS["diffusers"].missing() is None


def test_torch_compile_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "nosuchcompiler")
    reason = PEERS["diffusers, torch.compile"].missing()
    assert reason is not None
    assert "nosuchcompiler is not there" in reason
    assert PEERS["diffusers"].missing() is None


def test_a_tool_that_knows_the_published_shapes_refuses_others(tmp_path: Path) -> None:
    peer = Peer(name="x", tool="x", precision="fp32", module="x", published_shapes=True)
    config = tmp_path / "unet" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"block_out_channels": [32, 64]}))
    reason = peer.missing(tmp_path)
    assert reason == "it knows the published shapes alone, and the UNet's channels are [32, 64]"
    config.write_text(json.dumps({"block_out_channels": [320, 640, 1280]}))
    assert peer.missing(tmp_path) is None
    assert peer.missing() is None


# what is made with one here


def expected_picture(checkpoint: Path, asked: Job) -> np.ndarray:
    """diffusers' own."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(checkpoint, dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    latents = None if asked.latents is None else torch.from_numpy(np.load(asked.latents))
    images = pipeline(
        asked.prompts,
        negative_prompt=[asked.negative_prompt] * len(asked.prompts),
        height=asked.height,
        width=asked.width,
        num_inference_steps=asked.num_inference_steps,
        guidance_scale=asked.guidance_scale,
        latents=latents,
        output_type="np",
    ).images
    return np.asarray(images)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_diffusers_makes_its_picture(precision: str, emoji_checkpoint: Path, tmp_path: Path) -> None:
    latents = noise(tmp_path, [7, 8], (4, 16, 16))
    asked = a_job(
        tmp_path,
        model=str(emoji_checkpoint),
        prompts=[PROMPT, "a cat"],
        negative_prompt="blue",
        height=64,
        width=64,
        latents=latents,
        precision=precision,
        options={"channels_last": precision == "bf16"},
    )
    expected = expected_picture(emoji_checkpoint, asked)
    generate = diffusers.open_tool(asked)
    for steps in (1, 3):  # the second call is as the first
        picture = generate(steps)
    assert picture.images.dtype == np.float32
    assert picture.images.shape == expected.shape
    difference = np.abs(picture.images - expected)
    if precision == "fp32":
        assert difference.max() < 1e-4
    else:
        assert difference.max() > 1e-4, "that is float32"
        assert difference.mean() < 0.02
    assert len(picture.steps) == 3
    assert picture.text is not None
    assert picture.decode is not None
    assert min(picture.text, picture.decode, *picture.steps) > 0


def test_diffusers_draws_the_noise_that_the_jobs_latents_are(emoji_checkpoint: Path, tmp_path: Path) -> None:
    given = noise(tmp_path, [7, 8], (4, 16, 16))
    asked = a_job(tmp_path, model=str(emoji_checkpoint), prompts=[PROMPT] * 2, height=64, width=64)
    drawn = diffusers.open_tool(asked)(2).images
    assert np.abs(drawn - diffusers.open_tool(replace(asked, latents=given))(2).images).max() < 1e-4


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_noise_levels_are_diffusers(steps: int) -> None:
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    scheduler: Any = EulerDiscreteScheduler(**config)
    scheduler.set_timesteps(steps)
    levels = stable_diffusion_cpp.sigmas({**config, "_class_name": "EulerDiscreteScheduler"}, steps)
    np.testing.assert_allclose(levels, scheduler.sigmas.numpy(), rtol=1e-4)  # float32 there


@pytest.mark.parametrize(
    ("name", "value"),
    [("_class_name", "PNDMScheduler"), ("timestep_spacing", "trailing"), ("prediction_type", "v_prediction")],
)
def test_a_schedule_that_stable_diffusion_cpp_is_not_asked_for(name: str, value: str) -> None:
    config = {
        "_class_name": "EulerDiscreteScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
    }
    with pytest.raises(ValueError, match=f"whose {name} is .*, got {value}"):
        stable_diffusion_cpp.sigmas({**config, name: value}, 4)


# the others, in their environments


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layers of Stable Diffusion 1.5, a tenth as wide."""
    folder = tmp_path_factory.mktemp("peers") / "small"
    write_checkpoint(folder, SHAPES["small"])
    return folder


def worked(peer: Peer, asked: Job) -> dict[str, Any]:
    """What its worker, a process in its own environment, leaves."""
    output = Path(asked.output)
    asked.write(output / "job.json")
    run([str(peer.python), "-m", peer.module, str(output / "job.json")])
    found: dict[str, Any] = json.loads((output / "result.json").read_text())
    return found


def run(command: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.peers
@pytest.mark.parametrize(
    ("names", "largest"),
    [
        (("optimum-onnx",), (1e-4,)),
        # a picture in 8 bits, which cuts off where it might round
        (("OpenVINO GenAI", "OpenVINO GenAI bf16"), (1.5 / 255, 0.25)),
    ],
)
def test_another_tool_makes_diffusers_picture(
    names: tuple[str, ...], largest: tuple[float, ...], small: Path, tmp_path: Path
) -> None:
    peers = [PEERS[name] for name in names]
    if (reason := peers[0].missing(small)) is not None:
        pytest.skip(reason)
    exported = tmp_path / "exported"
    run(peers[0].export_command(small, exported))
    latents = noise(tmp_path, [7, 8], (4, 16, 16))
    for prompts in ([PROMPT] * 2, [PROMPT, "a cat"]):
        asked = a_job(tmp_path, model=str(exported), prompts=prompts, height=128, width=128, latents=latents, threads=1)
        expected = expected_picture(small, asked)
        assert expected.std() > 0.02, "a flat picture would hide a difference"
        for peer, limit in zip(peers, largest, strict=True):
            result = worked(peer, replace(asked, precision=peer.precision, options=dict(peer.options)))
            assert np.abs(np.load(tmp_path / "image.npy") - expected).max() < limit
            assert [len(picture["steps"]) for picture in result["pictures"]] == [3, 3]
            for picture in result["pictures"]:
                parts = [picture["text"], *picture["steps"], picture["decode"]]
                assert min(parts) > 0
                assert sum(parts) < picture["total"]


@pytest.mark.peers
@pytest.mark.full_shape
def test_stable_diffusion_cpp_makes_diffusers_picture(tmp_path: Path) -> None:
    """At the shape of Stable Diffusion 1.5, the smallest that it knows: 2 GB on the disk, 6 GB of memory."""
    peer = PEERS["stable-diffusion.cpp"]
    if (reason := peer.missing()) is not None:
        pytest.skip(reason)
    checkpoint = tmp_path / "sd15"
    write_checkpoint(checkpoint, SHAPES["sd15"])
    asked = a_job(tmp_path, model=str(checkpoint), height=128, width=128, num_inference_steps=2, pictures=1)
    result = worked(peer, asked)
    expected = expected_picture(checkpoint, replace(asked, latents=noise(tmp_path, [7], (4, 16, 16))))
    difference = np.abs(np.load(tmp_path / "image.npy") - expected)
    assert difference.max() < 3 / 255  # convolutions have weights in float16
    assert difference.mean() < 0.6 / 255
    assert len(result["pictures"][0]["steps"]) == 2
