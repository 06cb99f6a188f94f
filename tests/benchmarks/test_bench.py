"""The benchmark: who takes part, what it measures, how it tells pictures apart, and what it leaves behind."""

import json
import math
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from safelight.benchmarks import cli, contenders, measure, older_checkpoint, room, suite
from safelight.benchmarks.cases import Case, bundled_checkpoint, cases, model_of, named_model
from safelight.benchmarks.contender import Contender
from safelight.benchmarks.contenders import BASELINES, CONTENDERS, QUICK, REFERENCE
from safelight.benchmarks.measure import Entrant, Plan
from safelight.benchmarks.peers import safelight as worker
from safelight.benchmarks.peers.job import Job, work
from safelight.benchmarks.peers.registry import Peer
from safelight.benchmarks.report import report, table, tables
from safelight.benchmarks.room import memory_needed
from safelight.benchmarks.rows import (
    SAME_IN_8_BITS,
    SAME_PICTURE,
    Row,
    Spread,
    image_psnr,
    largest_difference,
    wrong_images,
)
from safelight.benchmarks.suite import run_case
from safelight.benchmarks.torch_reference import reference_pipeline
from safelight.benchmarks.work import case_work, picture_flops
from safelight.benchmarks.workspace import Workspace
from safelight.export import available_memory as memory
from safelight.runtime import DiffusionPipeline, Generator, bundled_model
from safelight.runtime.cli import main

SAFELIGHT = "safelight onnxruntime"
EMOJI = named_model("emoji")
(CASE,) = cases([EMOJI], sizes=[(32, 48)], steps=2)
PLAN = Plan(rounds=1, pictures=1, cold_runs=0, timeout=60, threads=1)
GB = 10**9


# what a worker is, without a tool


def scripted(body: str) -> str:
    return f"""
import sys
from pathlib import Path
import numpy as np
from safelight.benchmarks.peers.job import Job, Picture, work
job = Job.read(Path(sys.argv[1]))
def images(value):
    return np.full((len(job.prompts), job.height, job.width, 3), value, np.float32)
def make(value, **other):
    picture = Picture(images=images(value), text=0.25, steps=[0.5] * job.num_inference_steps, decode=0.125)
    work(job, lambda job: lambda steps: picture, {{"fake": "1.0"}})
{body}
"""


@dataclass(frozen=True, kw_only=True)
class Scripted(Contender):
    """A contender whose worker is a few lines."""

    script: str

    def command(self, job: Path) -> list[str]:
        return [sys.executable, "-c", self.script, str(job)]


def fake(name: str, body: str, **fields: Any) -> Scripted:
    values = {"tool": "fake", "precision": "fp32", "module": "none", "prepare": lambda case, _: Path(case.model.folder)}
    return Scripted(name=name, script=scripted(body), **{**values, **fields})


@pytest.fixture(autouse=True)
def enough_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else runs on this machine meanwhile."""
    monkeypatch.setattr(room, "available_memory", lambda: None)


def workspace(tmp_path: Path) -> Workspace:
    return Workspace(folder=tmp_path / "work", progress=lambda _: None)


def rows_of(contenders: list[Contender], tmp_path: Path, plan: Plan = PLAN, case: Case = CASE) -> dict[str, Row]:
    return {row.contender: row for row in run_case(case, contenders, workspace(tmp_path), plan).rows}


# cases


def test_a_case_is_every_model_size_and_batch() -> None:
    found = list(cases([EMOJI, named_model("sd15")], sizes=[(512, 512), (1024, 768)], batches=[1, 4], steps=3))
    assert [case.name for case in found[:4]] == [
        "emoji 512x512, 3 steps",
        "emoji 512x512, 4 at once, 3 steps",
        "emoji 1024x768, 3 steps",
        "emoji 1024x768, 4 at once, 3 steps",
    ]
    assert found[3].latent_shape == (4, 4, 192, 256)
    assert found[7].latent_shape == (4, 4, 96, 128)
    assert {case.guidance_scale for case in found} == {5.0, 7.5}


def test_models_have_sizes_of_their_own() -> None:
    sides = {name: named_model(name).side for name in ("emoji", "sd15", "sd21", "sdxl")}
    assert sides == {"emoji": 64, "sd15": 512, "sd21": 768, "sdxl": 1024}
    (own,) = cases([EMOJI])
    assert (own.height, own.width, own.batch, own.num_inference_steps) == (64, 64, 1, 25)
    assert own.branches == 2
    assert replace(own, guidance_scale=1.0).branches == 1


def test_the_bundled_models_numbers_are_its_weights(emoji_checkpoint: Path) -> None:
    unet = reference_pipeline(emoji_checkpoint).unet.network._part.parameters()
    assert EMOJI.parameters["unet"] == sum(parameter.numel() for parameter in unet)
    assert bundled_checkpoint() == emoji_checkpoint


def test_a_report_of_a_case_names_no_path() -> None:
    record = CASE.to_dict()
    assert "/" not in json.dumps(record)
    assert record["model"]["folder"] is record["model"]["checkpoint"] is True
    assert record["name"] == CASE.name


def test_a_model_without_an_autoencoder_makes_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="makes no pictures from text: it has no vae_decoder"):
        model_of(tmp_path, None)


def test_every_picture_of_a_batch_has_the_noise_of_a_seed_of_its_own(tmp_path: Path) -> None:
    file = workspace(tmp_path).latents(replace(CASE, batch=3, seed=7))
    noise = np.load(file)
    assert noise.shape == (3, 4, 12, 8)
    for index in range(3):
        np.testing.assert_array_equal(noise[index], Generator(7 + index).randn((1, *noise.shape[1:]))[0])


# rows


def test_a_spread_is_median_least_and_most() -> None:
    assert Spread.of([3.0, 1.0, 2.0, 10.0]) == Spread(median=2.5, least=1.0, most=10.0)
    assert Spread.of([4.0]) == Spread(median=4.0, least=4.0, most=4.0)


def test_a_row_in_float32_is_comparable_when_its_picture_is_the_references() -> None:
    assert Row(contender="x").comparable
    assert Row(contender="x", difference=SAME_PICTURE).comparable
    assert not Row(contender="x", difference=SAME_PICTURE * 1.01).comparable
    assert Row(contender="x", difference=SAME_PICTURE * 3, psnr=SAME_IN_8_BITS, eight_bits=True).comparable
    assert not Row(contender="x", difference=SAME_PICTURE, psnr=SAME_IN_8_BITS - 0.01, eight_bits=True).comparable
    assert Row(contender="x", difference=30.0, precision="bf16").comparable
    assert Row(contender="x", difference=30.0, partial=True).comparable
    for reason in ("missing", "failure", "wrong"):
        assert not Row(contender="x", precision="bf16", **{reason: "because"}).comparable
    assert Row(contender="x", wrong="because").differs
    assert not Row(contender="x", failure="because").differs


def test_images_are_compared_before_they_are_rounded() -> None:
    expected = np.full((1, 2, 2, 3), 0.5, np.float32)
    other = expected + np.float32(0.25 / 255)
    assert largest_difference(other, expected) == pytest.approx(0.25, rel=1e-4)
    assert image_psnr(other, expected) == pytest.approx(-20 * math.log10(0.25 / 255), rel=1e-4)
    assert image_psnr(expected, expected) == 200
    assert wrong_images(expected, (1, 2, 2, 3)) is None
    assert wrong_images(expected, (1, 2, 4, 3)) == "its images are of shape (1, 2, 2, 3), not (1, 2, 4, 3)"
    assert wrong_images(expected * np.nan, (1, 2, 2, 3)) == "its images have values that are not finite"


def spread(median: float) -> Spread:
    return Spread(median=median, least=median - 0.5, most=median + 0.5)


ROWS = [
    Row(
        contender="slow",
        difference=0.0,
        psnr=200.0,
        cold_seconds=spread(8.0),
        peak_memory=400 * 2**20,
        warm_seconds={"total": spread(4.0), "text": spread(1.0), "denoise": spread(3.0)},
        ceiling_share=0.625,
    ),
    Row(
        contender="quick",
        precision="bf16",
        difference=6.25,
        psnr=44.44,
        cold_seconds=spread(2.0),
        peak_memory=100 * 2**20,
        warm_seconds={"total": spread(3.0), "text": spread(0.75)},
        left_out="the time was used up after 1 of 2 rounds",
        note="it rounds",
        eight_bits=True,
    ),
    Row(
        contender="wrong",
        difference=7.5,
        psnr=30.0,
        warm_seconds={"total": spread(0.625)},
        peak_memory=1,
        cold_seconds=spread(1),
    ),
    Row(contender="black", wrong="its images have values that are not finite", warm_seconds={"total": spread(0.625)}),
    Row(contender="broken", failure="failed after 1 s: ValueError: no", warm_seconds={"total": spread(0.625)}),
    Row(contender="absent", missing="it is not installed"),
]


def cells(text: str) -> dict[str, list[str]]:
    """The rows of a table's first part by contender, without the empty cells."""
    lines = text.split("\n\n")[0].splitlines()[2:]
    split = ([part.strip() for part in line.split("  ") if part.strip()] for line in lines)
    return {parts[0]: parts[1:] for parts in split}


def test_the_table_has_ratios_to_the_one_that_it_is_against() -> None:
    rows = cells(table(ROWS, "slow"))
    slow = "fp32|0.0000 / 255|equal|4.000 s (3.500..4.500)|1.00|8.000 s (7.500..8.500)|1.00|400 MiB|1.00|62%"
    assert rows["slow"] == slow.split("|")
    quick = "bf16|6.2500 / 255|44.4 dB|3.000 s (2.500..3.500)|0.75|2.000 s (1.500..2.500)|0.25|100 MiB|0.25|-"
    assert rows["quick"] == quick.split("|")
    assert cells(table(ROWS, "quick"))["slow"][4] == "1.33"


def test_what_differs_or_failed_has_no_times() -> None:
    text = table(ROWS, "slow")
    assert cells(text)["wrong"] == ["fp32", "7.5000 / 255 DIFFERS", "30.0 dB", "-", "-", "-", "-"]
    assert cells(text)["black"] == ["fp32", "DIFFERS", "-", "-", "-", "-", "-"]
    assert cells(text)["broken"] == ["fp32", "FAILED", "-", "-", "-", "-"]
    assert "0.625" not in text
    lines = text.splitlines()
    assert "black: DIFFERS: its images have values that are not finite" in lines
    assert "broken: failed after 1 s: ValueError: no" in lines


def test_every_row_says_what_it_has_to() -> None:
    lines = table(ROWS, "slow").splitlines()
    assert "absent: not measured: it is not installed" in lines
    assert "quick: not everything: the time was used up after 1 of 2 rounds" in lines
    assert "quick: note: it rounds" in lines
    assert "quick: in 8 bits: its tool cuts off or rounds" in lines
    assert not any(line.startswith("slow: in 8 bits") for line in lines)
    assert lines[-1] == "x: ratio to slow"


def test_cutting_off_to_8_bits_is_no_other_picture() -> None:
    exact = np.random.default_rng(0).random((1, 8, 8, 3))
    cut = np.floor(exact * 255) / 255
    assert image_psnr(cut, exact) > SAME_IN_8_BITS
    assert image_psnr(exact - 1 / 255, exact) == pytest.approx(SAME_IN_8_BITS)
    assert image_psnr(np.roll(cut, 1, axis=1), exact) < SAME_IN_8_BITS


def test_nothing_is_a_ratio_to_what_differs_or_is_missing() -> None:
    for against in ("wrong", "absent", "broken", "nothing"):
        text = table(ROWS, against)
        assert text.endswith(f"x: no ratios, because {against} took no part or differs")
        assert "0.75" not in cells(text)["quick"]


def test_the_second_table_tells_the_stages_apart() -> None:
    lines = table(ROWS, "slow").split("\n\n")[1].splitlines()
    assert lines[0].split() == ["contender", "open", "text", "step", "denoise", "decode"]
    assert "1.000 s (0.500..1.500)" in lines[2]
    assert [line.split()[0] for line in lines[2:]] == ["slow", "quick"]


def test_a_report_has_machine_versions_and_rows_that_can_be_read_again() -> None:
    measured = suite.Measured(case=CASE, rows=ROWS, compared_with="slow")
    content = json.loads(json.dumps(report([measured.to_dict()], PLAN, against="slow"), allow_nan=False))
    assert set(content) == {"date", "machine", "versions", "plan", "against", "ceiling", "cases", "scaling"}
    assert {"processor", "flags", "processors", "usable", "memory", "governor", "system", "python"} == set(
        content["machine"]
    )
    assert content["versions"]["numpy"] == np.__version__
    assert content["plan"] == {"rounds": 1, "pictures": 1, "cold_runs": 0, "timeout": 60, "threads": 1}
    (case,) = content["cases"]
    assert [Row.from_dict(row) for row in case["rows"]] == ROWS
    assert tables(content).startswith(f"== {CASE.name}\n{table(ROWS, 'slow')}")
    assert tables(content).endswith("pictures are compared with that of slow")


# contenders


def test_contenders_without_a_checkpoint_or_an_engine_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = replace(CASE, model=replace(EMOJI, checkpoint=None))
    assert CONTENDERS[REFERENCE].missing(alone) == CONTENDERS["diffusers"].missing(alone) == "needs --checkpoint"
    assert CONTENDERS[SAFELIGHT].missing(alone) is None
    assert CONTENDERS["diffusers"].missing(CASE) is None
    assert "--preset gpu" in str(CONTENDERS["safelight tensorrt"].missing(CASE))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert CONTENDERS["diffusers"].missing(CASE) == (
        "torch, diffusers, transformers not installed: pip install 'safelight[export,bench]'"
    )
    assert CONTENDERS["safelight openvino bf16, balanced"].missing(CASE) == "this safelight has no --speed"

    def absent(_: str) -> None:
        raise ModuleNotFoundError("the engine needs: pip install it")

    monkeypatch.setattr(contenders, "backend_module", absent)
    assert CONTENDERS[SAFELIGHT].missing(CASE) == "the engine needs: pip install it"


def test_whom_the_others_are_compared_with_and_who_is_quick_take_part() -> None:
    assert {*BASELINES, *QUICK} <= CONTENDERS.keys()
    assert all(CONTENDERS[name].row().exact for name in BASELINES)
    assert not CONTENDERS["safelight openvino bf16, balanced"].row().exact


def test_a_worker_in_another_environment_finds_the_job_and_nothing_else_of_safelight(tmp_path: Path) -> None:
    other = Contender(
        name="x", tool="x", precision="fp32", module="safelight.benchmarks.peers.x", python=Path("/e/bin/python")
    )
    assert other.command(Path("job.json")) == ["/e/bin/python", "-m", "benchmarks.peers.x", "job.json"]
    program = "import benchmarks.peers.job, sys; print(any(name.startswith('safelight') for name in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=other.environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "False\n"
    own = replace(other, python=None)
    assert own.command(Path("job.json")) == [sys.executable, "-m", "safelight.benchmarks.peers.x", "job.json"]
    assert other.environment()["HF_HUB_OFFLINE"] == "1"


def test_another_tools_model_is_made_of_the_checkpoint_in_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, Any] = {}

    def note(_place: Workspace, name: str, _key: str, command: Any, environment: Any = None) -> Path:
        made[name] = (command(tmp_path / "folder"), environment)
        return tmp_path / name

    monkeypatch.setattr(Workspace, "made", note)
    peer = Peer(
        name="x", tool="x", precision="fp32", module="benchmarks.peers.x", environment=".venv-x", export="a.b.x_export"
    )
    other = contenders._peer(peer)
    assert other.prepare(CASE, workspace(tmp_path)) == tmp_path / "emoji-x-export"
    older = tmp_path / "emoji-older-checkpoint"  # which its transformers can read
    assert made["emoji-older-checkpoint"][0][1:] == [
        "-m",
        "safelight.benchmarks.older_checkpoint",
        str(bundled_checkpoint()),
        str(tmp_path / "folder"),
    ]
    command = [str(peer.python), "-m", "a.b.x_export", str(older), str(tmp_path / "folder")]
    assert made["emoji-x-export"] == (command, other.environment())
    assert other.command(Path("j")) == [str(peer.python), "-m", "benchmarks.peers.x", "j"]
    own = contenders._peer(replace(peer, environment=None, export=None))
    assert own.prepare(CASE, workspace(tmp_path)) == bundled_checkpoint()
    assert own.command(Path("j")) == [sys.executable, "-m", "safelight.benchmarks.peers.x", "j"]


@pytest.mark.parametrize("options", [{}, {"clip_skip": 1, "height": 40, "width": 72, "guidance_scale": 1.0}])
def test_the_reference_pipelines_picture_is_the_exports(
    linear_checkpoint: Path, linear_export: Path, options: dict[str, Any]
) -> None:
    options = {"num_inference_steps": 3, "seed": 0, "output_type": "np", "negative_prompt": "dog", **options}
    images = []
    for pipeline in (reference_pipeline(linear_checkpoint), DiffusionPipeline.from_pretrained(linear_export)):
        pipeline.set_progress_bar_config(disable=True)
        images.append(pipeline("cat face", **options).images)
    assert images[0].std() > 0.02
    np.testing.assert_allclose(*images, atol=1e-4)
    encoded = [
        pipeline.vae.encode(images[0].transpose(0, 3, 1, 2) * 2 - 1).mean
        for pipeline in (reference_pipeline(linear_checkpoint), DiffusionPipeline.from_pretrained(linear_export))
    ]
    np.testing.assert_allclose(*encoded, atol=1e-4)


def test_safelights_worker_makes_the_pictures_of_the_noise_that_it_is_given(tmp_path: Path) -> None:
    case = replace(CASE, batch=2, num_inference_steps=3)
    latents = workspace(tmp_path).latents(case)
    entrant = Entrant(contender=CONTENDERS[SAFELIGHT], model=bundled_model())
    job = measure._job(case, entrant, latents, PLAN, 2, tmp_path)
    work(job, worker.open_safelight, {"safelight": "0"})
    pipeline = DiffusionPipeline.from_pretrained(bundled_model(), backend="onnxruntime")
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        [case.prompt] * 2,
        height=case.height,
        width=case.width,
        num_inference_steps=3,
        guidance_scale=case.guidance_scale,
        generator=[Generator(0), Generator(1)],
        output_type="np",
    ).images
    np.testing.assert_allclose(np.load(Path(job.output, "image.npy")), expected, atol=1e-5)
    result = json.loads(Path(job.output, "result.json").read_text())
    assert len(result["pictures"]) == 2
    for picture in result["pictures"]:
        assert len(picture["steps"]) == 3
        assert min(picture["steps"]) > 0
        assert picture["text"] + sum(picture["steps"]) + picture["decode"] <= picture["total"]
    assert not Path(job.output, "picture.png").exists()


# the measurements


def test_a_worker_that_fails_says_so_and_the_others_go_on(tmp_path: Path) -> None:
    fakes = [
        fake(SAFELIGHT, "make(0.5)"),
        fake("same", "make(0.5 + 0.5 / 255)"),
        fake("other", "make(0.5 + 2 / 255)"),
        fake("low", "make(0.5 + 2 / 255)", precision="bf16"),
        fake("nan", "make(np.nan)"),
        fake("small", "job.__dict__['height'] = 8; make(0.5)"),
        fake("crash", "print('a line'); raise RuntimeError('of this and that')"),
        fake("silent", "sys.exit(3)"),
        fake("nothing", "pass"),
        fake("nowhere", "make(0.5)", missing=lambda _: "not installed: make peer-setup"),
    ]
    broken = Contender(
        name="no python",
        tool="x",
        precision="fp32",
        module="x",
        python=tmp_path / "none" / "python",
        prepare=fakes[0].prepare,
    )
    rows = rows_of([*fakes, broken], tmp_path, replace(PLAN, rounds=2, pictures=3, cold_runs=1))
    assert list(rows) == [each.name for each in (*fakes, broken)]
    first = rows[SAFELIGHT]
    assert first.warm_seconds["text"] == Spread.of([0.25])
    assert first.warm_seconds["denoise"] == Spread.of([1.0])
    assert first.warm_seconds["step"] == Spread.of([0.5])
    assert first.warm_seconds["decode"] == Spread.of([0.125])
    assert first.versions == {"fake": "1.0"}
    assert first.cold_seconds is not None
    assert 0 < first.cold_seconds.median < 60
    assert first.peak_memory is not None
    assert 10 * 2**20 < first.peak_memory < 400 * 2**20
    assert (first.difference, first.psnr, first.left_out) == (0, 200, None)
    assert rows["same"].difference == pytest.approx(0.5, rel=1e-3)
    assert rows["same"].comparable
    assert rows["other"].differs
    assert rows["low"].difference == pytest.approx(2, rel=1e-3)
    assert rows["low"].comparable
    assert rows["nan"].wrong == "its images have values that are not finite"
    assert rows["small"].wrong == "its images are of shape (1, 8, 32, 3), not (1, 48, 32, 3)"
    assert str(rows["crash"].failure).endswith("s: RuntimeError: of this and that")
    assert str(rows["silent"].failure).endswith("s: it said nothing")
    assert str(rows["nothing"].failure).startswith("left no result that can be read: ")
    assert rows["nowhere"].missing == "not installed: make peer-setup"
    assert str(rows["no python"].failure).startswith("cannot be started: ")


def test_a_worker_that_hangs_is_stopped_and_the_others_go_on(tmp_path: Path) -> None:
    hangs = fake("hangs", "import time; time.sleep(600)")
    started = perf_counter()
    rows = rows_of([hangs, fake("quick", "make(0.5)")], tmp_path, replace(PLAN, timeout=5, rounds=2))
    assert perf_counter() - started < 60
    assert str(rows["hangs"].failure).startswith("stopped after 5 s, which was its limit")
    assert rows["quick"].comparable


def test_rounds_take_turns(tmp_path: Path) -> None:
    said: list[str] = []
    two = [fake("A", "make(0.5)"), fake("B", "make(0.5)")]
    run_case(CASE, two, workspace(tmp_path), replace(PLAN, rounds=2, cold_runs=1), said.append)
    assert said == [
        f"{CASE.name}: {name}: {what}"
        for what in ("round 1 of 2", "round 2 of 2", "cold start 1 of 1")
        for name in ("A", "B")
    ]


def test_what_there_is_no_time_for_is_said(tmp_path: Path) -> None:
    plan = replace(PLAN, rounds=2, cold_runs=1, deadline=perf_counter() + 5)
    rows = rows_of([fake("hangs", "import time; time.sleep(600)"), fake("quick", "make(0.5)")], tmp_path, plan)
    for row in rows.values():
        assert row.failure is None
        assert row.left_out == "the time was used up after 0 of 2 rounds and 0 of 1 cold starts"
    late = rows_of([fake("late", "make(0.5)")], tmp_path, replace(PLAN, deadline=perf_counter() - 1))
    assert late["late"].missing == "the time was used up before its turn"


def test_a_machine_that_is_too_small_is_seen_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       24000000 kB\nMemAvailable:   5000000 kB\n")
    monkeypatch.setattr(room, "available_memory", memory.available_memory)
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_CGROUP_LIMIT", tmp_path / "none")
    monkeypatch.setattr(measure, "run", lambda *_, **__: pytest.fail("it started"))
    monkeypatch.setattr(Workspace, "made", lambda *_: pytest.fail("it was made"))
    (sd15,) = cases([named_model("sd15")])
    names = (SAFELIGHT, "diffusers")
    rows = rows_of([CONTENDERS[name] for name in names], tmp_path, case=sd15)
    for name in names:
        found = str(rows[name].missing)
        assert found == "too large for this machine: needs about 5.6 GB of memory, 5.1 GB are free"
    low = CONTENDERS["safelight onnxruntime, low memory"]
    assert memory_needed(sd15, low) < memory_needed(sd15, CONTENDERS[SAFELIGHT]) - 0.8 * GB
    assert memory_needed(sd15, CONTENDERS["diffusers bf16"]) < 0.6 * memory_needed(sd15, CONTENDERS["diffusers"])


def test_a_disk_that_is_too_small_is_seen_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: usage(10 * GB, 9 * GB, GB))
    monkeypatch.setattr(Workspace, "made", lambda *_: pytest.fail("it was made"))
    (sd15,) = cases([named_model("sd15")])
    rows = rows_of([CONTENDERS[SAFELIGHT]], tmp_path, case=sd15)
    assert rows[SAFELIGHT].missing == (
        f"sd15 needs 6.7 GB of disk for its checkpoint and export, {tmp_path} has 1.0 GB free"
    )
    for what in ("checkpoint", "export"):
        (tmp_path / "work" / f"sd15-{what}-0123456789ab").mkdir(parents=True)
    assert room.too_little_disk(sd15, workspace(tmp_path)) is None


def test_what_cannot_be_made_is_tried_once(tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    script = f"open({str(tries)!r}, 'a').write('x'); raise SystemExit('there is no such thing')"
    place = workspace(tmp_path)

    def prepare(_: Case, place: Workspace) -> Path:
        return place.made("thing", "0123456789ab", lambda _: [sys.executable, "-c", script])

    two = [fake(name, "make(0.5)", prepare=prepare) for name in ("A", "B")]
    for row in run_case(CASE, two, place, PLAN).rows:
        assert str(row.failure).startswith("its model cannot be made: thing: failed after ")
        assert str(row.failure).endswith("s: there is no such thing; see thing-0123456789ab.log")
    assert tries.read_text() == "x"
    assert not place.has("thing")


def test_what_was_made_is_made_once(tmp_path: Path) -> None:
    command = "import sys, pathlib; pathlib.Path(sys.argv[1]).mkdir(); print('made')"
    said: list[str] = []
    place = replace(workspace(tmp_path), progress=said.append)
    for _ in range(2):
        folder = place.made("thing", "0123456789ab", lambda path: [sys.executable, "-c", command, str(path)])
    assert folder.is_dir()
    assert said == ["thing-0123456789ab is made, once"]
    assert place.has("thing")


def test_work_is_proportional_to_batch_and_guidance() -> None:
    one = case_work(CASE, bundled_model())
    two = case_work(replace(CASE, batch=2), bundled_model())
    alone = case_work(replace(CASE, guidance_scale=1.0), bundled_model())
    for stage in ("text", "step", "decode"):
        assert two[stage].flops == 2 * one[stage].flops
        assert one[stage].numbers < two[stage].numbers < 2 * one[stage].numbers
    assert 2 * alone["step"].flops == one["step"].flops
    assert picture_flops(one, 3) - picture_flops(one, 2) == one["step"].flops


def test_a_row_has_a_share_of_the_ceiling_of_its_precision() -> None:
    rows = [
        Row(contender="a", warm_seconds={"total": spread(2.0), "step": spread(0.75)}),
        Row(contender="b", precision="bf16", warm_seconds={"total": spread(2.0)}),
        Row(contender="c", partial=True, warm_seconds={"total": spread(2.0)}),
    ]
    work = case_work(CASE, bundled_model())
    measured = suite.Measured(case=CASE, rows=rows, compared_with=None, work=work)
    measured.add_rates({"fp32": picture_flops(work, 2)})
    assert rows[0].ceiling_share == 0.5
    assert rows[0].flops_per_second["step"] == work["step"].flops / 0.75
    assert rows[1].ceiling_share is None
    assert rows[2].flops_per_second == {}


# the command


def test_everybody_makes_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command on the bundled model, in processes of its own."""
    names = (REFERENCE, SAFELIGHT, "safelight openvino bf16", "safelight tensorrt")
    options = ["--runs", "1", "--rounds", "1", "--cold-runs", "1", "--num-inference-steps", "2", "--threads", "1"]
    options += [option for name in names for option in ("--contender", name)]
    files = {"--json": tmp_path / "new" / "report.json", "--html": tmp_path / "new" / "report.html"}
    options += [str(word) for option in files.items() for word in option]
    assert main(["bench", *options, "--workspace", str(tmp_path / "work"), "--no-ceiling"]) == 0
    printed = capsys.readouterr().out
    content = json.loads(files["--json"].read_text())
    (case,) = content["cases"]
    rows = {row["contender"]: Row.from_dict(row) for row in case["rows"]}
    assert tuple(rows) == names
    assert case["compared_with"] == REFERENCE
    assert rows[REFERENCE].difference == 0
    assert rows["safelight tensorrt"].missing is not None
    for name in names[:3]:
        row = rows[name]
        assert row.missing is row.failure is row.left_out is None
        assert row.difference is not None
        assert row.difference < (0.1 if row.exact else 60)
        assert row.cold_seconds is not None
        assert row.open_seconds is not None
        assert row.cold_seconds.median > row.open_seconds.median > 0
        assert row.peak_memory is not None
        assert row.peak_memory > 50 * 2**20
        assert set(row.flops_per_second) >= {"step", "decode", "total"}
        assert f"... {case['case']['name']}: {name}: cold start 1 of 1" in printed
    assert rows[SAFELIGHT].difference != 0, "two implementations do not agree to the last bit"
    assert rows["safelight openvino bf16"].difference != rows[SAFELIGHT].difference
    memory_of = {name: rows[name].peak_memory or 0 for name in names}
    assert 0 < memory_of[SAFELIGHT] < memory_of[REFERENCE]
    assert "DIFFERS" not in printed
    assert files["--html"].read_text().count("<svg") == 3


Fakes = Callable[..., None]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """Contenders that are these alone."""

    def replace_by(*fakes: Contender) -> None:
        monkeypatch.setattr(cli, "CONTENDERS", {each.name: each for each in fakes})

    return replace_by


COMMAND = ["bench", "--rounds", "1", "--runs", "1", "--cold-runs", "0", "--no-ceiling"]


def test_a_picture_that_differs_or_a_failure_is_exit_status_1(
    known: Fakes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*COMMAND, "--workspace", str(tmp_path), "--against", SAFELIGHT]
    good, other = fake(SAFELIGHT, "make(0.5)"), fake("other", "make(0.75)")
    known(good)
    assert main(command) == 0
    known(good, other)
    assert main(command) == 1
    assert "DIFFERS" in capsys.readouterr().out
    known(good, fake("crash", "raise ValueError('no')"))
    assert main(command) == 1
    known(good, fake("absent", "", missing=lambda _: "not there"))
    assert main(command) == 0


def test_without_a_baseline_nothing_is_compared(
    known: Fakes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known(fake("one", "make(0.1)"), fake("two", "make(0.9)"))
    assert main([*COMMAND, "--workspace", str(tmp_path), "--against", "one"]) == 0
    printed = capsys.readouterr().out
    assert "DIFFERS" not in printed
    assert "compared with" not in printed


def test_a_report_is_shown_again(known: Fakes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known(fake("one", "make(0.1)"))
    file = tmp_path / "report.json"
    command = [*COMMAND, "--workspace", str(tmp_path), "--against", "one"]
    assert main([*command, "--json", str(file)]) == 0
    first = capsys.readouterr().out
    assert main(["bench", "--from-json", str(file)]) == 0
    again = capsys.readouterr().out
    assert first.endswith(again)
    assert again.startswith("== emoji")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--runs", "0"], "--runs must be at least 1, got 0"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--cold-runs", "-1"], "--cold-runs must be at least 0, got -1"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--timeout", "0"], "--timeout must be above 0 seconds, got 0.0"),
        (["--budget", "nan"], "--budget must be above 0 seconds, got nan"),
        (["--size", "66"], "sizes of emoji are multiples of 4, got 66x66"),
        (["--batch", "0"], "batch and steps must be at least 1, got 0 and 25"),
        (["--checkpoint", "none"], "--checkpoint is what MODEL was exported from, and there is no MODEL"),
        (["model", "--case", "sd15"], "MODEL or --case, not both: got model and sd15"),
        (["model", "--checkpoint", "none"], "none does not exist"),
        (["none"], "none does not exist, and is no hub id either (owner/name)"),
    ],
)
def test_wrong_options_are_one_sentence(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *options]) == 1
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"safelight: {sentence}\n")


def test_whom_nobody_knows_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["bench", "--against", "nobody"]) == 1
    assert capsys.readouterr().err.startswith("safelight: --against: unknown 'nobody'; known: reference (PyTorch), ")
    other = tmp_path / "other.json"
    other.write_text("{}")
    assert main(["bench", "--from-json", str(other)]) == 1
    assert capsys.readouterr().err == f"safelight: {other} is no report of safelight bench: it has no cases\n"


@pytest.mark.parametrize(("option", "value"), [("--size", "wide"), ("--size", "1x2x3"), ("--scale-steps", "1,two")])
def test_what_is_no_size_or_number_is_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", option, value])
    assert f"got {value!r}" in capsys.readouterr().err


def test_quick_has_a_budget_and_few_contenders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def note(case: Case, contenders: list[Contender], _place: Workspace, plan: Plan, _say: object) -> suite.Measured:
        seen.update(case=case, names=tuple(each.name for each in contenders), plan=plan)
        return suite.Measured(case=case, rows=[], compared_with=None)

    monkeypatch.setattr(cli, "run_case", note)
    before = perf_counter()
    assert main(["bench", "--quick", "--workspace", str(tmp_path)]) == 0
    assert seen["names"] == QUICK
    assert seen["case"].model.name == "emoji"
    assert before + 90 < seen["plan"].deadline < before + 120
    assert (seen["plan"].rounds, seen["plan"].cold_runs) == (1, 1)
    assert main(["bench", "--quick", "--cold-runs", "0", "--workspace", str(tmp_path)]) == 0
    assert seen["plan"].cold_runs == 0


def test_a_job_survives_its_file(tmp_path: Path) -> None:
    entrant = Entrant(contender=CONTENDERS[SAFELIGHT], model=bundled_model())
    case = replace(CASE, prompt='naïve "café"\n🐱', seed=2**40)
    job = measure._job(case, entrant, tmp_path / "latents.npy", PLAN, 1, tmp_path)
    job.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == job
    assert job.prompts == [case.prompt]
    assert job.warm_up_steps == 2


def test_tools_with_an_older_transformers_get_names_that_they_find(tmp_path: Path) -> None:
    checkpoint = Path(bundled_checkpoint())
    assert older_checkpoint.is_new(checkpoint)
    target = tmp_path / "older"
    older_checkpoint.main(str(checkpoint), str(target))
    assert not older_checkpoint.is_new(target)
    before = load_file(checkpoint / "text_encoder" / "model.safetensors")
    after = load_file(target / "text_encoder" / "model.safetensors")
    assert after.keys() == {f"text_model.{name}" for name in before}
    for name, array in before.items():
        np.testing.assert_array_equal(after[f"text_model.{name}"], array)
    for file in ("model_index.json", "unet/diffusion_pytorch_model.safetensors", "text_encoder/config.json"):
        assert (target / file).read_bytes() == (checkpoint / file).read_bytes()
