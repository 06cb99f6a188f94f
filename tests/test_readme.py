"""What the README says: its code runs, its numbers are those that were measured, its links lead somewhere."""

import ast
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safelight.runtime import DiffusionPipeline, cli
from safelight.runtime.backends import BACKENDS
from safelight.runtime.serving.image_request import GENERATION_FIELDS
from safelight.runtime.serving.settings import ServerSettings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
ON_A_GPU = 'device="cuda"'
OF_A_SERVER = "base_url="  # which tests/serving/test_openai_client.py asks


def test_the_python_examples_make_pictures(
    tiny: Callable[[str], tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [block for block in BLOCKS if ON_A_GPU not in block and OF_A_SERVER not in block]
    (tmp_path / "sdxl-onnx").symlink_to(tiny("SDXL")[0])
    (tmp_path / "refiner-onnx").symlink_to(tiny("REFINER")[0])
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in blocks:  # the later ones go on from the earlier ones
        exec(code, names)
    assert (tmp_path / "cat.png").read_bytes().startswith(b"\x89PNG")
    assert len({names[name].tobytes() for name in ("image", "drawn", "painted", "squirrel")}) == 4


def test_the_examples_for_a_gpu_name_what_there_is() -> None:
    calls = [
        call
        for block in BLOCKS
        if ON_A_GPU in block
        for call in ast.walk(ast.parse(block))
        if isinstance(call, ast.Call)
    ]
    assert len(calls) == 2
    takes = inspect.signature(DiffusionPipeline.from_pretrained).parameters
    for call in calls:
        assert ast.unparse(call.func) == "DiffusionPipeline.from_pretrained"
        options = {str(option.arg): ast.literal_eval(option.value) for option in call.keywords}
        assert options.keys() <= takes.keys()
        assert options.get("backend", "onnxruntime") in BACKENDS


def test_the_example_for_a_server_asks_what_it_takes() -> None:
    (block,) = [block for block in BLOCKS if OF_A_SERVER in block]
    calls = [call for call in ast.walk(ast.parse(block)) if isinstance(call, ast.Call)]
    (asked,) = [call for call in calls if ast.unparse(call.func) == "client.images.generate"]
    options = {str(option.arg): ast.literal_eval(option.value) for option in asked.keywords}
    own = options.pop("extra_body")
    assert {*options, *own} <= set(GENERATION_FIELDS)
    assert ServerSettings.port == int(re.findall(r"127\.0\.0\.1:(\d+)/v1", block)[0])


def test_the_commands_are_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    verbs = set(re.findall(r"^    (\w+) ", capsys.readouterr().out, re.MULTILINE))
    table = set(re.findall(r"^\| `safelight (\w+)", README, re.MULTILINE))
    assert table == verbs


def test_the_numbers_are_those_of_the_results() -> None:
    content = json.loads((ROOT / "benchmarks" / "results" / "emoji-cpu.json").read_text())
    rows = content.get("cases", [content])[0]["rows"]
    measured = {row["contender"]: row for row in rows}
    base = measured["diffusers"]
    for row in (base, measured["safelight onnxruntime"]):
        warm, cold, memory = row["warm_seconds"]["total"]["median"], row["cold_seconds"]["median"], row["peak_memory"]
        cells = [f"{row['difference']:.4f} / 255", f"{warm:.3f} s", f"{cold:.2f} s", f"{memory / 2**20:.0f} MiB"]
        if row is not base:
            ratios = (
                warm / base["warm_seconds"]["total"]["median"],
                cold / base["cold_seconds"]["median"],
                memory / base["peak_memory"],
            )
            cells[1:] = [f"{cell}, x {ratio:.2f}" for cell, ratio in zip(cells[1:], ratios, strict=True)]
        assert " | ".join(cells) + " |" in README


@pytest.mark.parametrize("results", ["sd15-cpu", "sd15-epyc-cpu"])
def test_the_numbers_of_a_published_shape_are_those_of_the_results(results: str) -> None:
    content = json.loads((ROOT / "benchmarks" / "results" / f"{results}.json").read_text())
    measured = {row["contender"]: row for row in content["cases"][0]["rows"] if row["warm_seconds"]}
    base = measured["diffusers"]["warm_seconds"]["total"]["median"]
    table = README[README.index(f"results/{results}.json") :]
    table = table[: re.search(r"\n\n[^|]", table[table.index("|") :]).start() + table.index("|")]  # type: ignore[union-attr]
    lines = [line for line in table.splitlines() if " s |" in line]
    assert len(lines) == len(measured)
    for row in measured.values():
        seconds, step = row["warm_seconds"]["total"]["median"], row["warm_seconds"]["step"]["median"]
        times = "1" if seconds == base else f"{base / seconds:.2f}"
        own = f"| {seconds:.1f} s | {times} | {step:.2f} s | {row['peak_memory'] / 2**20:.0f} MiB |"
        (line,) = [line for line in lines if line.endswith(own)]
        assert f"| {row['precision']} |" in line
        assert row["contender"] == content["cases"][0]["compared_with"] or f"{row['psnr']:.1f} dB" in line


def test_the_rounds_of_a_published_shape_are_those_of_the_results() -> None:
    content = json.loads((ROOT / "benchmarks" / "results" / "sd15-bf16-rounds-cpu.json").read_text())
    seconds = {row["contender"]: row["warm_seconds"]["total"]["median"] for row in content["cases"][0]["rows"]}
    ours, genai, diffusers = (
        seconds[name] for name in ("safelight openvino bf16", "OpenVINO GenAI bf16", "diffusers bf16")
    )
    assert f"takes {ours:.1f} s, OpenVINO GenAI {genai:.1f} s, diffusers {diffusers:.1f} s" in README
    assert ours < 1.03 * genai
    assert 1.2 * ours < diffusers


def test_the_numbers_of_other_shapes_are_those_of_the_results() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    columns = []
    for results in ("sd21-512-cpu", "sdxl-512-cpu"):
        content = json.loads((ROOT / "benchmarks" / "results" / f"{results}.json").read_text())
        rows = {row["contender"]: row for row in content["cases"][0]["rows"]}
        base = rows["diffusers"]["warm_seconds"]["total"]["median"]
        columns.append(
            [
                f"{base / row['warm_seconds']['total']['median']:.2f} | {row['psnr']:.1f} dB | "
                f"{row['peak_memory'] / 2**20:.0f} MiB |"
                for row in (rows[name] for name in rows if name != "diffusers")
            ]
        )
    assert len(columns[0]) == 3
    for first, second in zip(*columns, strict=True):
        assert f"| {first} {second}" in page


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "reference" / "emoji" / "README.md"]


def test_links_lead_to_files() -> None:
    links = [
        (page, target) for page in PAGES for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    ]
    inside = [(page, target) for page, target in links if not target.startswith("https://")]
    assert len(inside) > 15
    assert [(page, target) for page, target in inside if not (page.parent / target.split("#")[0]).exists()] == []
