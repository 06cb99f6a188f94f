"""The GPU's benchmark: on the CPU the whole of it, and each part for itself."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import alone

from safelight.benchmarks import published
from safelight.benchmarks.gpu import answers, benchmark, ceiling, cli, inventory, worker
from safelight.benchmarks.gpu.benchmark import Benchmark
from safelight.benchmarks.gpu.budget import Budget
from safelight.benchmarks.gpu.case import Picture
from safelight.benchmarks.gpu.cases import CASES, Target
from safelight.benchmarks.gpu.ceiling import DTYPES, flops, onnxruntime_product, torch_product
from safelight.benchmarks.gpu.compare import picture_limit, picture_psnr, relative_error, unet_limit
from safelight.benchmarks.gpu.contenders import CONTENDERS, Task
from safelight.benchmarks.gpu.findings import Findings, Options
from safelight.benchmarks.gpu.inventory import Inventory
from safelight.benchmarks.gpu.jobs import Job, make, read_report, run_tests
from safelight.benchmarks.gpu.memory import PeakMemory
from safelight.benchmarks.gpu.preparation import Preparation, task
from safelight.benchmarks.gpu.rows import GpuRow, Pictures, collect
from safelight.benchmarks.gpu.table import table, targets
from safelight.benchmarks.gpu.workspace import Workspace, build_command, export_command
from safelight.benchmarks.inputs import unet_inputs
from safelight.benchmarks.rows import Spread
from safelight.runtime.cli import main as safelight

ROOT = Path(__file__).parents[2]
STEPS = 2


@pytest.fixture(scope="session")
def workspace(linear_checkpoint: Path, linear_export: Path) -> Workspace:
    """What a first command leaves, for the case that is tried on a CPU."""
    work = Workspace(linear_export.parent.parent / "gpu" / "small", CASES["small"], STEPS, 4)
    with alone(work.folder):
        for link, target in ((work.checkpoint, linear_checkpoint), (work.export, linear_export)):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(target)
        work.write_inputs()
        if not (work.answers / "halves.json").is_file():
            partial = work.folder / "answers"
            partial.mkdir(exist_ok=True)
            file = partial / "task.json"
            file.write_text(json.dumps(task(work, "reference", "cpu", partial, seconds=0.0).to_json()))
            answers.main(file)
            partial.rename(work.answers)
    return work


def work_of(workspace: Workspace, contender: str, folder: Path, **options: Any) -> Task:
    options = {"seconds": 60.0, "started": time.time(), "batches": (1,), **options}
    return task(workspace, contender, "cpu", folder, **options)


# the whole command


def test_the_whole_of_it_on_the_cpu(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second command, which goes on with what the first one left."""
    names = ["onnxruntime", "reference-compile", "tensorrt", "onnxruntime-plain", "onnxruntime-tensorrt"]
    file = tmp_path / "new" / "report.json"
    options = ["--device", "cpu", "--cases", "small", "--steps", str(STEPS), "--json", str(file), "--no-tests"]
    options += ["--contenders", ",".join(names), "--work", str(workspace.folder.parent), "--budget", "300"]
    assert cli.main(options) == 0
    printed = capsys.readouterr().out
    content = json.loads(file.read_text())
    rows = {row["contender"]: row for row in content["rows"]}
    assert list(rows) == names
    for name in ("onnxruntime", "onnxruntime-plain"):
        row = rows[name]
        assert row["missing"] is row["differs"] is None
        assert 0 < row["unet_error"] < 1e-5 < row["unet_limit"]
        assert row["psnr"] > 60 > row["psnr_limit"] > 20
        assert row["cold_seconds"] > row["pictures"]["1"]["total"]["median"] > row["step"]["median"] > 0
        assert row["pictures"]["4"]["denoise"] > row["pictures"]["1"]["text"] > 0
        assert row["pictures"]["4"]["steps"] == STEPS
    assert rows["reference-compile"]["missing"] == "torch.compile is measured on a GPU only"
    assert {rows[name]["missing"] for name in ("tensorrt", "onnxruntime-tensorrt")} <= {
        "this safelight has no such backend",
        "needs a GPU",
    }
    assert content["flops"]["small"]["graph"] == content["flops"]["small"]["torch"] > 10**8
    assert content["ceiling"]["side"] == 256
    assert content["ceiling"]["teraflops"].keys() == {"fp16", "bf16", "fp32"}
    assert {name: job["seconds"] for name, job in content["jobs"]["small"].items()} == {
        "checkpoint": 0,
        "export": 0,
        "answers": 0,
    }
    assert content["versions"]["numpy"] == np.__version__
    lines = printed.splitlines()
    last = lines.index(next(line for line in lines if line.startswith("== small: 2 steps")))
    assert [line.split()[0] for line in lines[last + 1 : last + 4]] == ["contender", "onnxruntime", "onnxruntime-plain"]
    assert len(printed) - printed.index("== small") < 4000
    assert str(tmp_path) not in json.dumps(content["rows"])


def found_without_gpu(reason: str) -> Inventory:
    return Inventory(gpu_missing=reason, versions={"torch": "2"}, providers=["CPUExecutionProvider"])


def test_without_a_gpu_every_row_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Inventory, "take", lambda: found_without_gpu("the driver is too old"))
    assert cli.main(["--work", str(tmp_path / "work"), "--json", str(tmp_path / "report.json")]) == 1
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [(row["contender"], row["case"]) for row in rows] == [(n, c) for n in CONTENDERS for c in ("sd15", "sdxl")]
    assert {row["missing"] for row in rows} == {"no GPU: the driver is too old"}
    printed = capsys.readouterr().out
    assert "GPU: none: the driver is too old" in printed
    assert "target, sdxl: no contender of ours was measured" in printed
    assert list((tmp_path / "work").iterdir()) == [], "nothing is prepared for nobody"


def test_a_row_that_fails_or_has_no_time_leaves_the_rest(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are written one after the other: a run that is killed leaves those that it had."""
    saved: list[int] = []
    monkeypatch.setattr(Findings, "save", lambda found: saved.append(len(found.rows)))
    monkeypatch.setattr(Inventory, "take", lambda: replace(found_without_gpu("none"), missing={"triton": "no"}))
    monkeypatch.setattr(Benchmark, "_ceiling", lambda _: {})
    broken = [sys.executable, "-c", "raise SystemExit('out of memory')"]
    monkeypatch.setattr(benchmark, "worker_command", lambda *_: broken)
    names = ("onnxruntime", "onnxruntime-plain")
    options = Options(
        device="cpu", cases=("small",), contenders=names, steps=STEPS, work=workspace.folder.parent, tests=False
    )
    run = Benchmark(options, lambda _: None)
    monkeypatch.setattr(run, "_workspaces", {"small": workspace})
    found = run.run()
    assert [row.missing for row in found.rows] == ["failed after 0 s: out of memory"] * 2
    assert saved == [0, 0, 1, 2]
    assert not found.succeeded
    spent = Benchmark(replace(options, seconds=5.0), lambda _: None)
    assert [row.missing for row in spent.run().rows] == ["the budget of 5 s was used up"] * 2


def test_a_checkpoint_that_cannot_be_made_is_why_there_are_no_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Inventory, "take", lambda: found_without_gpu("none"))
    monkeypatch.setattr(Benchmark, "_ceiling", lambda _: {})
    monkeypatch.setattr(
        "safelight.benchmarks.gpu.preparation.checkpoint_command",
        lambda *_: [sys.executable, "-c", "raise SystemExit('the disk is full')"],
    )
    options = Options(device="cpu", cases=("small",), contenders=("onnxruntime",), work=tmp_path, tests=False)
    (row,) = Benchmark(options, lambda _: None).run().rows
    assert row.missing == "there is no checkpoint: failed after 0 s: the disk is full"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--cases", "sd15,sd3"], "--cases: unknown sd3; known: sd15, sdxl, small"),
        (["--contenders", "xformers"], "--contenders: unknown xformers; known: onnxruntime, "),
        (["--budget", "0"], "--budget must be above 0, --steps and --batches at least 1, got 0.0, 50 and (1, 4)"),
        (["--steps", "0"], "got 460.0, 0 and (1, 4)"),
        (["--batches", "0,2"], "got 460.0, 50 and (0, 2)"),
    ],
)
def test_wrong_arguments(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert sentence in capsys.readouterr().err


def test_it_is_a_preset_of_the_bench_command(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(cli, "main", lambda argv: calls.append(argv) or 7)
    assert safelight(["bench", "--preset", "gpu", "--json", "x.json"]) == 7
    assert safelight(["bench", "--preset", "gpu"]) == 7
    assert calls == [["--json", "x.json"], []]


# one contender


@pytest.mark.parametrize("name", ["reference", "diffusers"])
def test_pytorch_in_half_precision_gives_the_references_answers(
    name: str, workspace: Workspace, tmp_path: Path
) -> None:
    work = work_of(workspace, name, tmp_path)
    opened = CONTENDERS[name].open(work)
    with np.load(workspace.inputs) as arrays, np.load(workspace.answers / "answers.npz") as expected:
        inputs = {key: arrays[key] for key in arrays.files if key != "latents"}
        picture = opened.pictures(arrays["latents"][:1], STEPS)
        assert 0 < relative_error(opened.unet(inputs), expected["unet"]) < 5e-3
        halves = json.loads((workspace.answers / "halves.json").read_text())
        limit = picture_limit(halves["psnr"])
        assert limit is not None
        assert 45 < limit < picture_psnr(picture.image[0], expected["picture"][0]) < 80
    opened.step(inputs)()
    stages = [picture.seconds[stage] for stage in ("text", "denoise", "decode")]
    assert min(stages) > 0
    assert sum(stages) <= picture.seconds["total"]


def test_a_worker_leaves_what_it_measured(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "task.json"
    work = work_of(workspace, "onnxruntime-plain", tmp_path, started=time.time() - 5)
    file.write_text(json.dumps(work.to_json()))
    assert Task.from_json(json.loads(file.read_text())) == work
    worker.main(file)
    measured = json.loads((tmp_path / "measured.json").read_text())
    assert measured["cold_seconds"] > 5
    assert len(measured["step"]) >= 5
    assert [run.keys() for run in measured["pictures"]["1"]["seconds"]] == [{"total", "text", "denoise", "decode"}] * 2
    row = GpuRow(case="small", contender="onnxruntime-plain")
    collect(row, tmp_path, workspace.answers, STEPS)
    assert row.counts
    assert row.step == Spread.of(measured["step"])
    collect(row, tmp_path, tmp_path / "nowhere", STEPS)
    assert row.notes == ["not compared: the reference gave no answers"]


def test_a_pytorch_without_cuda_answers_on_the_cpu_and_makes_no_picture(workspace: Workspace, tmp_path: Path) -> None:
    preparation = Preparation(
        device="cuda",
        torch_device="cpu",
        contenders=("onnxruntime",),
        budget=Budget(60.0),
        share=0.5,
        export_share=0.6,
        environment={},
        progress=print,
    )
    command = preparation._answers_command(workspace, tmp_path / "answers")
    answers.main(Path(command[-1]))
    with (
        np.load(tmp_path / "answers" / "answers.npz") as found,
        np.load(workspace.answers / "answers.npz") as truth,
    ):
        assert found.files == ["unet"]
        np.testing.assert_allclose(found["unet"], truth["unet"], atol=1e-5)
    assert json.loads((tmp_path / "answers" / "halves.json").read_text()).keys() == {"flops"}
    worker.measure(work_of(workspace, "onnxruntime", tmp_path), Fake(), {}, LATENTS, recompiles=False)
    np.save(tmp_path / "unet.npy", np.load(tmp_path / "answers" / "answers.npz")["unet"] * np.float32(1.02))
    compared = GpuRow(case="small", contender="onnxruntime")
    collect(compared, tmp_path, tmp_path / "answers", STEPS)
    assert compared.unet_error == pytest.approx(0.02, abs=1e-6)
    assert (compared.counts, compared.unet_limit, compared.psnr) == (True, pytest.approx(0.03), None)


class Fake:
    """A pipeline of known speed."""

    def __init__(self, broken_at: int = 99) -> None:
        self.calls: list[tuple[int, int]] = []
        self._broken_at = broken_at

    def unet(self, inputs: Mapping[str, Any]) -> Any:
        return np.ones((2, 4, 2, 2), np.float32)

    def step(self, inputs: Mapping[str, Any]) -> Any:
        return lambda: time.sleep(0.01)

    def pictures(self, latents: Any, num_inference_steps: int) -> Picture:
        self.calls.append((len(latents), num_inference_steps))
        if len(latents) >= self._broken_at:
            raise MemoryError("too large")
        image = np.zeros((len(latents), 4, 4, 3), np.float32)
        return Picture(image, {"total": 2.0, "text": 0.5, "denoise": 1.0, "decode": 0.5})


LATENTS = np.zeros((4, 4, 2, 2), np.float32)


def test_what_was_measured_before_an_error_is_there(workspace: Workspace, tmp_path: Path) -> None:
    fake = Fake(broken_at=4)
    work = work_of(workspace, "onnxruntime", tmp_path, batches=(1, 4), seconds=1000.0)
    with pytest.raises(MemoryError):
        worker.measure(work, fake, {}, LATENTS, recompiles=False)
    assert fake.calls == [(1, STEPS), (1, STEPS), (1, STEPS), (4, 2)]
    row = GpuRow(case="small", contender="onnxruntime", missing="failed: too large")
    collect(row, tmp_path, tmp_path / "nowhere", STEPS)
    assert row.pictures.keys() == {1}
    assert row.counts
    lines = table("small", [row], steps=STEPS, flops=None, teraflops=None)
    assert "onnxruntime: not all measured: failed: too large" in lines


def test_another_batch_is_not_compiled_for_without_time(workspace: Workspace, tmp_path: Path) -> None:
    work = work_of(workspace, "reference-compile", tmp_path, batches=(1, 4), seconds=60.0)
    fake = Fake()
    found = worker.measure(work, fake, {}, LATENTS, recompiles=True)
    assert found["notes"] == ["no time to compile for 4 pictures at once"]
    assert {batch for batch, _ in fake.calls} == {1}
    fake = Fake()
    worker.measure(replace(work, seconds=1000.0), fake, {}, LATENTS, recompiles=True)
    assert fake.calls[-3:] == [(4, 2), (4, STEPS), (4, STEPS)]


def test_pictures_have_as_many_steps_as_there_is_time_for() -> None:
    assert worker.affordable_steps(1000.0, [0.1], 1, 50) == 50
    assert worker.affordable_steps(20.0, [0.1, 0.1, 9.0], 1, 50) == 30  # 0.3 * 20 s / (2 pictures * 0.1 s)
    assert worker.affordable_steps(20.0, [0.1], 4, 50) == 7
    assert worker.affordable_steps(-5.0, [0.1], 1, 50) == 2
    assert worker.affordable_steps(-5.0, [0.1], 1, 1) == 1


def test_fewer_steps_count_as_many() -> None:
    run = {"total": 3.0, "text": 0.5, "denoise": 2.0, "decode": 0.5}
    pictures = Pictures.of({"steps": 10, "seconds": [run, run]}, 50)
    assert (pictures.steps, pictures.denoise, pictures.total.median) == (10, 10.0, 11.0)
    assert Pictures.of({"steps": 50, "seconds": [run]}, 50).total == Spread.of([3.0])


# the rows


def row(contender: str, seconds: float = 1.0, **fields: Any) -> GpuRow:
    one = Pictures(steps=50, total=Spread.of([seconds]), text=0.005, denoise=seconds - 0.1, decode=0.095)
    four = replace(one, total=Spread.of([3 * seconds]))
    known = {"unet_error": 1e-3, "unet_limit": 3e-3, "psnr": 50.0, "psnr_limit": 45.0, "cold_seconds": 9.0}
    known |= {"step": Spread.of([0.009, 0.01, 0.012]), "pictures": {1: one, 4: four}, "gpu_memory": 3 * 2**30}
    return GpuRow(case="sd15", contender=contender, **{**known, **fields})


def cells(lines: list[str], contender: str) -> list[str]:
    return next(line.split() for line in lines if line.split()[0] == contender)


def test_the_tables_numbers() -> None:
    rows = [row("onnxruntime", 0.5), row("diffusers-compile"), row("reference", 2.0), row("tensorrt", 1, step=None)]
    lines = table("sd15", rows, steps=50, flops=1_600_000_000_000, teraflops=800.0)
    assert lines[0] == "== sd15: 50 steps, 1.6 TFLOP a guided step; x: times as fast as diffusers-compile"
    assert cells(lines, "onnxruntime") == [
        *["onnxruntime", "1.0e-03", "50.0", "10.00", "(9.00..12.00)", "20", "5.0", "95.0"],
        *["0.500", "2.00", "2.00", "2.67", "125.0", "9.0", "3.0"],
    ]
    assert cells(lines, "diffusers-compile")[9] == "1.00"
    assert cells(lines, "reference")[9] == "0.50"
    assert cells(lines, "tensorrt")[3:] == ["-"] * 11


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"unet_error": 4e-3}, "the UNet's output differs by 4.0e-03, the limit is 3.0e-03"),
        ({"unet_error": math.inf}, "the UNet's output differs by inf, the limit is 3.0e-03"),
        ({"unet_error": math.nan}, "the UNet's output differs by nan, the limit is 3.0e-03"),
        ({"psnr": 44.0}, "the picture has a PSNR of 44.0 dB, the limit is 45.0 dB"),
    ],
)
def test_results_that_differ_have_no_times(wrong: dict[str, float], reason: str) -> None:
    rows = [row("onnxruntime", 0.123, **wrong), row("diffusers-compile", 0.456, **wrong), row("reference")]
    lines = table("sd15", rows, steps=50, flops=None, teraflops=None)
    assert f"onnxruntime: DIFFERS: {reason}" in lines
    assert cells(lines, "onnxruntime")[3:] == ["-"] * 11
    assert "0.123" not in "".join(lines)
    assert "times as fast as reference" in lines[0], "what differs is no peer"


def test_the_targets() -> None:
    target = Target(seconds=0.572)
    assert targets("sd15", [row("onnxruntime", 0.5), row("diffusers-compile", 0.6)], target, steps=50) == [
        "target, sd15: 50 steps in under 572 ms: REACHED: 500 ms (onnxruntime)",
        "target, sd15: at least 1.3 times as fast as diffusers with torch.compile: missed: 1.20 times "
        "diffusers-compile (onnxruntime)",
    ]
    rows = [row("onnxruntime", 0.7), row("tensorrt", 0.6), row("reference-compile", 0.9), row("diffusers", 0.1)]
    assert targets("sd15", rows, target, steps=50) == [
        "target, sd15: 50 steps in under 572 ms: missed: 600 ms (tensorrt)",
        "target, sd15: at least 1.3 times as fast as diffusers with torch.compile: REACHED: 1.50 times "
        "reference-compile (tensorrt)",
    ]
    faster = targets("sdxl", [row("onnxruntime", 2.1)], Target(steps_per_second=21.6), steps=50)
    assert faster == [
        "target, sdxl: at least 21.6 guided steps/s: REACHED: 25.0 (onnxruntime)",
        "target, sdxl: at least 1.3 times as fast as diffusers with torch.compile: not known, torch.compile was not "
        "measured",
    ]
    assert "missed: 20.0" in targets("sdxl", [row("tensorrt", 2.6)], Target(steps_per_second=21.6), steps=50)[0]
    wrong = [row("onnxruntime", 0.1, psnr=3.0), row("diffusers-compile", 0.6)]
    assert targets("sd15", wrong, target, steps=50) == ["target, sd15: no contender of ours was measured"]


def test_what_is_not_finite_differs_though_there_is_no_reference(tmp_path: Path) -> None:
    measured = {"cold_seconds": 1.0, "notes": [], "step": [0.1], "pictures": {}}
    (tmp_path / "measured.json").write_text(json.dumps(measured))
    np.save(tmp_path / "unet.npy", np.ones(3, np.float32))
    np.save(tmp_path / "picture.npy", np.array([[0.5, np.nan]], np.float32))
    found = GpuRow(case="small", contender="onnxruntime")
    collect(found, tmp_path, tmp_path / "nowhere", 50)
    assert found.differs
    assert not found.counts


def test_errors_and_their_limits() -> None:
    expected = np.array([3.0, 4.0], np.float32)
    assert relative_error(np.array([3.0, 4.5], np.float32), expected) == pytest.approx(0.1)
    assert relative_error(np.array([np.nan, 4.0], np.float32), expected) == math.inf
    assert relative_error(np.zeros((1, 2), np.float32), expected) == math.inf
    picture = np.full((4, 4, 3), 0.5, np.float32)
    assert picture_psnr(picture + 2 / 255, picture) == pytest.approx(20 * math.log10(255 / 2))
    assert picture_psnr(picture * np.nan, picture) == -math.inf
    assert picture_psnr(picture, picture) == 100
    assert unet_limit(1e-3) == pytest.approx(3e-3), "three times the reference's own spread in half precision"
    assert unet_limit(1.0) == 0.5
    assert unet_limit(None) == pytest.approx(0.03)
    assert (picture_limit(55.0), picture_limit(70.0), picture_limit(None)) == (49.0, 50.0, None)


# what is there


def test_contenders_say_why_they_cannot() -> None:
    everything = Inventory(
        versions={"torch": "2.13", "onnxruntime": "1.32"},
        torch_cuda="13.0",
        providers=["CUDAExecutionProvider", "CPUExecutionProvider"],
        backends={"onnxruntime": None, "tensorrt": None, "tensorrt-rtx": "pip install it"},
    )
    assert {name: c.missing(everything, "cuda") for name, c in CONTENDERS.items()} == {
        "onnxruntime": None,
        "diffusers-compile": None,
        "reference-compile": "it would stand in for diffusers, which is here",
        "tensorrt-rtx": "pip install it",
        "tensorrt": None,
        "diffusers": None,
        "reference": "it would stand in for diffusers, which is here",
        "onnxruntime-plain": None,
        "onnxruntime-tensorrt": "this safelight has no such backend",
        "onnxruntime-tensorrt-rtx": "this safelight has no such backend",
    }
    alone = replace(everything, missing={"diffusers": "not installed"}, providers=["CPUExecutionProvider"])
    found = {name: c.missing(alone, "cuda") for name, c in CONTENDERS.items()}
    assert found["reference"] is found["reference-compile"] is None
    assert found["diffusers"] == found["diffusers-compile"] == "diffusers: not installed"
    assert found["onnxruntime"] == (
        "onnxruntime 1.32 has no CUDAExecutionProvider: pip uninstall onnxruntime && pip install 'safelight[gpu]'"
    )
    assert CONTENDERS["onnxruntime"].missing(alone, "cpu") is None
    blind = replace(alone, torch_cuda=None)
    assert CONTENDERS["reference"].missing(blind, "cuda") == "torch 2.13 cannot use a GPU here"
    bare = Inventory(missing={"torch": "No module named 'torch'", "onnxruntime": "libcudart.so.13 is not there"})
    assert CONTENDERS["reference"].missing(bare, "cuda") == "torch: No module named 'torch'"
    assert CONTENDERS["onnxruntime"].missing(bare, "cuda") == (
        "onnxruntime: libcudart.so.13 is not there: pip install 'safelight[gpu]'"
    )


def test_a_folder_of_stubs_is_no_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setattr(inventory, "_IMPORTED", {"tensorrt": ("tensorrt",), "numpy": ("numpy",)})
    monkeypatch.setattr(inventory, "_FOUND", {"no_such_module": ("none",)})
    found = inventory.look()
    assert found["versions"] == {"numpy": np.__version__}
    assert found["missing"] == {
        "tensorrt": "an empty folder of that name, as a package of type stubs leaves it",
        "no_such_module": "not installed",
    }
    assert found["backends"]["onnxruntime"] is None


@pytest.mark.parametrize(
    ("script", "gpu", "reason"),
    [
        (
            "echo 'NVIDIA H100 80GB HBM3, 580.159.04, 81559 MiB, 9.0, 1980 MHz, 700.00 W'",
            {"name": "NVIDIA H100 80GB HBM3", "compute_cap": "9.0", "memory.total": "81559 MiB"},
            None,
        ),
        ("echo 'NVIDIA-SMI has failed'; exit 9", {}, "NVIDIA-SMI has failed"),
        (None, {}, "there is no nvidia-smi, which NVIDIA's driver brings"),
    ],
)
def test_the_gpu_as_nvidia_smi_has_it(
    script: str | None, gpu: dict[str, str], reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    found, why = inventory._gpu()
    assert gpu.items() <= found.items()
    assert bool(found) == bool(gpu)
    assert why == reason


# time, memory, jobs


def test_a_budget_is_spent() -> None:
    now = [100.0]
    budget = Budget(60.0, lambda: now[0])
    now[0] = 110.0
    assert (budget.spent, budget.left, budget.until(0.5)) == (10.0, 50.0, 20.0)
    now[0] = 170.0
    assert (budget.left, budget.until(0.5)) == (0.0, 0.0)
    with pytest.raises(ValueError, match="must be above 0 seconds, got -1"):
        Budget(-1)


def test_memory_is_the_most_less_what_was_there() -> None:
    readings = iter([1000, 1500, 4000, 2000])
    with PeakMemory(lambda: next(readings, 1200)) as memory:
        time.sleep(0.5)
    assert memory.peak == 3000
    with PeakMemory(lambda: None) as memory:
        pass
    assert memory.peak is None


def test_what_a_job_makes_is_whole_or_not_there(tmp_path: Path) -> None:
    def command(end: str) -> Any:
        code = f"import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir(); (p / 'x').touch(); {end}"
        return lambda folder: [sys.executable, "-c", code, str(folder)]

    def made(end: str, seconds: float = 60.0) -> Job:
        return make("job", tmp_path / "new" / "made", command(end), seconds=seconds, environment={})

    assert (made("raise SystemExit('no')").failure or "").endswith(" s: no")
    assert not (tmp_path / "new" / "made").exists()
    assert (made("import time; time.sleep(60)", 0.5).failure or "").endswith("which was its limit")
    assert made("", 0.0).failure == "the budget was used up"
    assert not (tmp_path / "new" / "made").exists()
    job = made("")
    assert job.failure is None
    assert job.seconds > 0
    assert (tmp_path / "new" / "made" / "x").is_file()
    assert made("raise SystemExit('is not run again')") == Job(name="job")


def test_the_gpu_tests_are_counted(tmp_path: Path) -> None:
    (tmp_path / "tests" / "gpu").mkdir(parents=True)
    marked = "import pytest\n\n@pytest.mark.gpu\n@pytest.mark.parametrize('n', [1, 2, 3, 4])\ndef test_it(n):\n"
    body = "    if n == 3: pytest.skip('no')\n    assert n != 2\n\ndef test_unmarked(): assert False\n"
    (tmp_path / "tests" / "gpu" / "test_it.py").write_text(marked + body)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    found = run_tests(tmp_path, tmp_path, seconds=60.0, environment={"PATH": ""})
    assert (found.passed, found.failed, found.skipped, found.failures) == (2, 1, 1, ("test_it[2]",))
    assert found.line() == "GPU tests: 2 passed, 1 failed, 1 skipped (test_it[2])"
    assert read_report(tmp_path / "tests.xml") == found


def test_gpu_tests_that_cannot_run_say_why(tmp_path: Path) -> None:
    assert run_tests(tmp_path, tmp_path, seconds=60.0, environment={}).missing == "not run: there is no tests/gpu here"
    (tmp_path / "tests" / "gpu").mkdir(parents=True)
    found = run_tests(tmp_path, tmp_path, seconds=0.0, environment={})
    assert found.missing is not None
    assert found.missing.startswith("not run: stopped after ")


@pytest.mark.parametrize(("product", "unknown"), [(torch_product, {"tf32"}), (onnxruntime_product, {"tf32", "bf16"})])
def test_products_of_each_arithmetic_that_a_cpu_has(product: Any, unknown: set[str]) -> None:
    assert flops(8192) == 2 * 8192**3
    for dtype in DTYPES:
        if dtype in unknown:
            with pytest.raises(ValueError, match=r"tf32 is a GPU's|NumPy has no bf16"):
                product("cpu", 16, dtype)
        else:
            name, run = product("cpu", 16, dtype)
            run(3)
            assert name.startswith(("torch 2", "onnxruntime 1"))


def test_products_on_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    ceiling.main("cuda", 16, tmp_path / "ceiling.json")
    found = json.loads((tmp_path / "ceiling.json").read_text())
    assert (found["by"], found["teraflops"]) == (None, {})
    assert found["missing"].keys() == set(DTYPES)
    assert found["missing"]["fp16"] == f"torch {torch.__version__} cannot use a GPU here"


# what is made once


def test_what_is_kept_is_told_apart_by_what_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Workspace(tmp_path, CASES["sd15"], 50, 4)
    assert one.checkpoint == Workspace(tmp_path, CASES["sd15"], 20, 4).checkpoint
    other = Workspace(tmp_path, CASES["sdxl"], 50, 4)
    for kind in ("checkpoint", "export", "answers", "inputs"):
        assert getattr(one, kind) != getattr(other, kind)
    assert one.answers != Workspace(tmp_path, CASES["sd15"], 20, 4).answers
    assert one.inputs != Workspace(tmp_path, CASES["sd15"], 50, 8).inputs
    before = one.export
    monkeypatch.setattr("safelight.benchmarks.gpu.workspace.exporters", lambda: ["another"])
    assert one.export != before
    assert one.checkpoint == Workspace(tmp_path, CASES["sd15"], 50, 4).checkpoint


def test_commands_are_safelights(workspace: Workspace, tmp_path: Path) -> None:
    """The export's are parsed by the command that they are for."""
    export = export_command(workspace, tmp_path / "model")
    assert export[1:] == [
        *["-m", "safelight.runtime", "export", str(workspace.checkpoint), str(tmp_path / "model")],
        *["--dtype", "fp16", "--no-validate"],
    ]
    large = replace(workspace, case=replace(CASES["sd15"], height=512, width=768))
    build = build_command(large, "tensorrt-rtx", "sm90")
    assert build[3:5] == ["build", str(large.export)]
    options = dict(zip(build[5::2], build[6::2], strict=True))
    assert options == {
        "--target": "tensorrt-rtx",
        "--shape": "768x512",
        "--batch": "1-4",
        "--dtype": "fp16",
        "--output": str(large.engines("tensorrt-rtx")),
        "--gpu": "sm90",
    }
    assert "--gpu" not in build_command(large, "tensorrt", "sm90"), "it builds for the GPU that it is on"


def test_the_inputs_are_what_the_unet_takes(workspace: Workspace) -> None:
    with np.load(workspace.inputs) as arrays:
        assert {name: arrays[name].shape for name in arrays.files} == {
            "sample": (2, 4, 10, 10),
            "timestep": (2,),
            "encoder_hidden_states": (2, 32, 24),
            "latents": (4, 4, 10, 10),
        }
        assert 0.9 < arrays["latents"].std() < 1.1
    _, config = published.SHAPES["sdxl"].networks["unet"]
    shapes = {name: value.shape for name, value in unet_inputs(config, height=6, width=8, length=77).items()}
    assert shapes["text_embeds"] == (2, 1280)
    assert shapes["time_ids"] == (2, 6)
    assert shapes["encoder_hidden_states"] == (2, 77, 2048)
    assert unet_inputs(config, height=6, width=8, length=77)["time_ids"][1].tolist() == [48, 64, 0, 0, 48, 64]


def test_random_numbers_are_normal_and_no_two_rows_are_alike() -> None:
    numbers = published.RandomNumbers()
    period = published.RandomNumbers._PERIOD
    drawn = np.concatenate(list(numbers.draw(2 * period, 1.0, 0.25)))
    assert (drawn.dtype, drawn.size) == (np.float16, 2 * period)
    assert abs(drawn.astype(np.float32).mean() - 1) < 2e-3
    assert abs(drawn.astype(np.float32).std() - 0.25) < 1e-3
    matrix = drawn[: 1024 * 2047].reshape(1024, 2047)
    assert len({line.tobytes() for line in matrix}) == 1024
    again = np.concatenate(list(numbers.draw(100, 1.0, 0.25)))
    assert not np.array_equal(again, drawn[:100])


def test_nothing_heavy_is_imported_by_the_process_that_measures() -> None:
    """It must not have a CUDA context of its own."""
    code = "import sys, safelight.benchmarks.gpu.cli; print({'torch', 'onnxruntime', 'diffusers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
