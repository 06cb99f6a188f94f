"""The benchmark: what it measures, how it tells pictures apart, and what it leaves behind."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safelight.benchmarks import cli, contenders, measure, worker
from safelight.benchmarks.case import Case
from safelight.benchmarks.contenders import CONTENDERS, REFERENCE, Contender, Picture
from safelight.benchmarks.measure import SAME_PICTURE, Row, Spread
from safelight.benchmarks.report import report, table
from safelight.benchmarks.torch_reference import reference_pipeline
from safelight.runtime import DiffusionPipeline, bundled_model
from safelight.runtime.cli import main

CASE = Case(
    model="/somewhere/of/mine/emoji",
    checkpoint=None,
    prompt='naïve "café"\n🐱',
    height=32,
    width=None,
    num_inference_steps=2,
    guidance_scale=5.0,
    seed=2**40,
)
SAFELIGHT = "safelight onnxruntime"


# the case


def test_a_case_survives_a_workers_command_line() -> None:
    assert Case.from_json(CASE.to_json()) == CASE
    other = replace(CASE, checkpoint="/a", width=64)
    assert Case.from_json(other.to_json()) == other != CASE


def test_a_cases_call_is_what_pipelines_spell_alike() -> None:
    assert CASE.call() == {
        "prompt": CASE.prompt,
        "height": 32,
        "width": None,
        "num_inference_steps": 2,
        "guidance_scale": 5.0,
    }


# the measurements


def test_a_spread_is_median_least_and_most() -> None:
    assert Spread.of([3.0, 1.0, 2.0, 10.0]) == Spread(median=2.5, least=1.0, most=10.0)
    assert Spread.of([4.0]) == Spread(median=4.0, least=4.0, most=4.0)


def test_a_row_is_comparable_when_its_picture_is_the_references() -> None:
    assert Row(contender="x").comparable
    assert Row(contender="x", difference=SAME_PICTURE).comparable
    assert not Row(contender="x", difference=SAME_PICTURE * 1.01).comparable
    assert not Row(contender="x", difference=math.nan).comparable
    assert not Row(contender="x", missing="not installed").comparable


def spread(median: float) -> Spread:
    return Spread(median=median, least=median - 0.5, most=median + 0.5)


ROWS = [
    Row(
        contender="slow",
        difference=0.0,
        cold_seconds=spread(8.0),
        peak_memory=400 * 2**20,
        warm_seconds={"total": spread(4.0), "text": spread(1.0), "denoise": spread(3.0)},
    ),
    Row(
        contender="quick",
        difference=0.25,
        cold_seconds=spread(2.0),
        peak_memory=100 * 2**20,
        warm_seconds={"total": spread(3.0), "text": spread(0.75)},
    ),
    Row(
        contender="wrong", difference=7.5, warm_seconds={"total": spread(0.625)}, peak_memory=1, cold_seconds=spread(1)
    ),
    Row(contender="absent", missing="it is not installed"),
]


def cells(text: str) -> dict[str, list[str]]:
    """The rows of a table by contender, without the empty cells."""
    lines = text.split("\n\n")[0].splitlines()[2:]
    return {parts[0]: parts[1:] for parts in ([part for part in line.split("  ") if part.strip()] for line in lines)}


def stripped(rows: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: [cell.strip() for cell in row] for name, row in rows.items()}


def test_the_table_has_ratios_to_the_one_that_it_is_against() -> None:
    rows = stripped(cells(table(ROWS, "slow")))
    assert rows["slow"] == [
        "0.0000 / 255",
        "4.000 s (3.500..4.500)",
        "1.00",
        "8.000 s (7.500..8.500)",
        "1.00",
        "400 MiB",
        "1.00",
    ]
    assert rows["quick"] == [
        "0.2500 / 255",
        "3.000 s (2.500..3.500)",
        "0.75",
        "2.000 s (1.500..2.500)",
        "0.25",
        "100 MiB",
        "0.25",
    ]
    assert stripped(cells(table(ROWS, "quick")))["slow"][2] == "1.33"


def test_a_picture_that_differs_has_no_times() -> None:
    text = table(ROWS, "slow")
    assert stripped(cells(text))["wrong"] == ["7.5000 / 255 DIFFERS", "-", "-", "-"]
    assert "0.625" not in text
    assert "wrong:" not in text


def test_a_contender_that_is_missing_says_why() -> None:
    text = table(ROWS, "slow")
    assert stripped(cells(text))["absent"] == ["-", "-", "-", "-"]
    assert "absent: not measured: it is not installed" in text.splitlines()


def test_nothing_is_a_ratio_to_what_differs_or_is_missing() -> None:
    for against in ("wrong", "absent", "nothing"):
        rows = stripped(cells(table(ROWS, against)))
        assert rows["quick"] == ["0.2500 / 255", "3.000 s (2.500..3.500)", "2.000 s (1.500..2.500)", "100 MiB"]


def test_the_table_tells_the_stages_apart() -> None:
    lines = table(ROWS, "slow").splitlines()
    assert "slow: text 1.000 s (0.500..1.500), denoise 3.000 s (2.500..3.500)" in lines
    assert "quick: text 0.750 s (0.250..1.250)" in lines
    assert lines[-1] == "x: ratio to slow"


def test_the_report_names_machine_versions_and_case_and_no_path_of_it() -> None:
    content = json.loads(json.dumps(report(CASE, ROWS, 7, 3)))
    assert set(content) == {"date", "machine", "versions", "case", "runs", "rows"}
    assert set(content["machine"]) == {"processor", "processors", "system", "python"}
    assert content["machine"]["processors"] >= 1
    assert content["versions"]["numpy"] == np.__version__
    assert {"safelight", "onnxruntime", "torch", "diffusers"} <= set(content["versions"])
    assert content["case"] == {**asdict(CASE), "model": "emoji", "checkpoint": False}
    assert content["runs"] == {"warm": 7, "cold": 3}
    assert content["rows"][0]["warm_seconds"]["total"] == {"median": 4.0, "least": 3.5, "most": 4.5}
    assert [row["contender"] for row in content["rows"]] == ["slow", "quick", "wrong", "absent"]
    assert "/somewhere" not in json.dumps(content)


# the contenders


def test_contenders_without_a_checkpoint_or_an_engine_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {name: contender.missing(CASE) for name, contender in CONTENDERS.items()} == {
        REFERENCE: "needs --checkpoint",
        "diffusers": "needs --checkpoint",
        SAFELIGHT: None,
    }
    assert CONTENDERS["diffusers"].missing(replace(CASE, checkpoint="/a")) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert CONTENDERS["diffusers"].missing(CASE) == (
        "torch, diffusers, transformers not installed: pip install 'safelight[export,bench]'"
    )

    def absent(_: str) -> None:
        raise ModuleNotFoundError("the engine needs: pip install it")

    monkeypatch.setattr(contenders, "backend_module", absent)
    assert CONTENDERS[SAFELIGHT].missing(CASE) == "the engine needs: pip install it"


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


def test_a_worker_leaves_a_picture_or_an_image_and_its_seconds(tmp_path: Path) -> None:
    case = replace(CASE, model=str(bundled_model()), width=48)
    worker.main(SAFELIGHT, case.to_json(), 2, tmp_path)
    image = np.load(tmp_path / "image.npy")
    assert (image.shape, image.dtype) == ((32, 48, 3), np.float32)
    seconds = json.loads((tmp_path / "seconds.json").read_text())
    assert [set(run) for run in seconds] == [{"total", "text", "denoise", "decode", "step"}] * 2
    for run in seconds:
        assert 0 < run["step"] < run["denoise"]
        assert sum(run[stage] for stage in ("text", "denoise", "decode")) <= run["total"]
    assert not (tmp_path / "picture.png").exists()
    worker.main(SAFELIGHT, case.to_json(), 0, tmp_path)
    from PIL import Image

    with Image.open(tmp_path / "picture.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), (image * 255).round().astype(np.uint8))


def test_memory_is_the_processs_own_and_not_what_its_parent_had(tmp_path: Path) -> None:
    held = np.ones(100 * 2**20, np.float32)  # 400 MiB, and what torch takes
    _, peak = measure._cold(SAFELIGHT, replace(CASE, model=str(bundled_model())), tmp_path)
    assert peak is not None
    assert 50 * 2**20 < peak < held.nbytes


# the command


def test_all_contenders_make_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command on the bundled model, in processes of its own."""
    file = tmp_path / "new" / "report.json"
    options = ["--runs", "1", "--cold-runs", "1", "--num-inference-steps", "2", "--json", str(file)]
    assert main(["bench", *options]) == 0
    printed = capsys.readouterr().out
    content = json.loads(file.read_text())
    assert content["case"]["model"] == "emoji"
    assert content["case"]["num_inference_steps"] == 2
    assert content["runs"] == {"warm": 1, "cold": 1}
    rows = {row["contender"]: row for row in content["rows"]}
    assert list(rows) == list(CONTENDERS)
    assert rows[REFERENCE]["difference"] == 0
    for name, row in rows.items():
        assert row["missing"] is None
        assert row["difference"] < 0.1
        assert row["cold_seconds"]["median"] > row["warm_seconds"]["total"]["median"] > 0
        assert row["peak_memory"] > 50 * 2**20
        assert f"... {name}: 1 pictures after a warm-up" in printed
        assert f"... {name}: cold start 1 of 1" in printed
    assert rows["diffusers"]["difference"] > 0, "two implementations do not agree to the last bit"
    assert rows[SAFELIGHT]["peak_memory"] < rows["diffusers"]["peak_memory"]
    assert set(stripped(cells(printed[printed.index("contender  ") :]))) == set(CONTENDERS)
    assert "DIFFERS" not in printed
    assert printed.rstrip().endswith("x: ratio to diffusers")


Images = Callable[..., None]


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> Images:
    """Contenders that give the pictures named, in place of processes."""

    def replace_by(**values: float) -> None:
        known = {name: Contender(lambda _: Picture, lambda _: None) for name in values}
        monkeypatch.setattr(measure, "CONTENDERS", known)
        images = {name: np.full((2, 2, 3), value, np.float32) for name, value in values.items()}
        monkeypatch.setattr(
            measure, "_warm", lambda name, _case, runs, _folder: ([{"total": 1.0}] * runs, images[name])
        )
        monkeypatch.setattr(measure, "_cold", lambda *_: (2.0, 3 * 2**20))

    return replace_by


def test_a_picture_that_differs_is_exit_status_1(pictures: Images, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(**{REFERENCE: 0.5, "same": 0.5 + 0.5 / 255, "other": 0.5 + 2 / 255})
    assert main(["bench", "--runs", "1", "--cold-runs", "1"]) == 1
    rows = stripped(cells(capsys.readouterr().out.partition("contender  ")[2].join(["contender  ", ""])))
    assert rows["same"][:2] == ["0.5000 / 255", "1.000 s (1.000..1.000)"]
    assert rows["other"][0] == "2.0000 / 255 DIFFERS"
    pictures(**{REFERENCE: 0.5, "same": 0.5 + 0.5 / 255})
    assert main(["bench", "--runs", "1", "--cold-runs", "0"]) == 0


def test_a_picture_that_is_not_finite_differs(pictures: Images, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(**{REFERENCE: 0.5, "black": math.nan})
    assert main(["bench", "--runs", "1", "--cold-runs", "0"]) == 1
    assert "nan / 255 DIFFERS" in capsys.readouterr().out


def test_without_the_reference_nothing_is_compared(pictures: Images, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(one=0.1, two=0.9)
    assert main(["bench", "--runs", "3", "--cold-runs", "2"]) == 0
    printed = capsys.readouterr().out
    assert "DIFFERS" not in printed
    assert printed.count("cold start 2 of 2") == 2


@pytest.mark.parametrize("name", [SAFELIGHT, "diffusers"])
def test_a_contender_that_fails_says_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = measure._command(SAFELIGHT, replace(CASE, model="/no/such/model"), 1, tmp_path)
    monkeypatch.setattr(measure, "_command", lambda *_: broken)
    if name == SAFELIGHT:
        with pytest.raises(RuntimeError, match=r"(?s)^safelight onnxruntime failed:\n.*/no/such/model does not exist"):
            measure._warm(name, CASE, 1, tmp_path)
    else:
        with pytest.raises(
            RuntimeError, match=r"(?s)^diffusers failed at a cold start:\n.*/no/such/model does not exist"
        ):
            measure._cold(name, CASE, tmp_path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--runs", "0"], "--runs must be at least 1 and --cold-runs 0, got 0 and 3"),
        (["--cold-runs", "-1"], "--runs must be at least 1 and --cold-runs 0, got 7 and -1"),
        (["--checkpoint", "none"], "none does not exist"),
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


def test_the_bundled_checkpoint_is_the_clones(emoji_checkpoint: Path) -> None:
    assert cli.bundled_checkpoint() == emoji_checkpoint
