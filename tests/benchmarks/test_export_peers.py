"""The exporters side by side: what is run, what counts, what a failure leaves."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from safelight.benchmarks import export_peers
from safelight.benchmarks.cases import named_model
from safelight.benchmarks.export_peers import EXPORTERS, SAME, Exporter, Row, main, measure, table
from safelight.benchmarks.published import SHAPES, Shape, count_parameters, write_checkpoint
from safelight.export.checkpoint import open_checkpoint
from safelight.export.networks import build

MIB = 2**20


def test_the_bundled_checkpoint_by_safelight(
    emoji_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "safelight, not validated"
    arguments = ["--exporter", name, "--workspace", str(tmp_path / "work"), "--json", str(tmp_path / "results.json")]
    assert main(["--checkpoint", str(emoji_checkpoint), *arguments]) == 0
    content = json.loads((tmp_path / "results.json").read_text())
    (row,) = content["rows"]
    parameters = content["checkpoint"]["parameters"]
    assert parameters == sum(
        array.size for file in emoji_checkpoint.glob("*/*.safetensors") for array in load_file(file).values()
    )
    assert row["missing"] is None
    assert row["difference"] == 0
    assert 4 * parameters < row["folder_bytes"] < 4.5 * parameters
    assert row["ratio"] == row["folder_bytes"] / (4 * parameters)
    assert 100 * MIB < row["process_memory"] <= row["tree_memory"]
    assert row["command"].startswith("python -m safelight.runtime export ")
    assert str(tmp_path) not in json.dumps(content)
    assert list((tmp_path / "work").iterdir()) == [], "what was exported stays"
    assert capsys.readouterr().out.splitlines()[-3].startswith(name)


def fake(code: str) -> Exporter:
    """An exporter that is a line of Python; {0} is the checkpoint, {1} the destination."""
    return Exporter(lambda *words: [sys.executable, "-c", code.format(*map(repr, words))], Path(sys.executable))


WRITES = "import pathlib; p = pathlib.Path({1}); p.mkdir(); (p / 'file').write_bytes(b'x' * 600)"


def measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exporters: dict[str, Exporter], **options: int
) -> list[Row]:
    """The rows of exporters that do not export; their outputs are 1, 2, 3 ..."""
    monkeypatch.setattr(export_peers, "EXPORTERS", exporters)

    def check(row: Row, folder: Path, workspace: Path, limit: int, outputs: dict[str, np.ndarray]) -> None:
        assert folder.is_dir()
        outputs[row.exporter] = np.full(3, 1.0 + len(outputs))

    monkeypatch.setattr(export_peers, "_check", check)
    limits = {"runs": 1, "memory_limit": 200 * MIB, **options}
    return measure(
        Path("checkpoint"), list(exporters), dtype="fp32", parameters=100, workspace=tmp_path, progress=print, **limits
    )


def test_a_failure_is_a_row_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = measured(
        monkeypatch,
        tmp_path,
        {
            "raises": fake("raise SystemExit('no space left')"),
            "is killed": fake("import os; os.kill(os.getpid(), 9)"),
            "takes too much": fake("m = b'x' * (400 * 2**20); import time; time.sleep(60)"),
            "is not there": replace(fake(""), program=tmp_path / "nowhere"),
            "works": fake(WRITES),
        },
        runs=2,
    )
    assert [row.missing and row.missing.partition(" after")[0] for row in rows] == [
        "failed",
        "killed by signal 9",
        "killed at 0.2 GiB of memory,",
        f"{tmp_path / 'nowhere'} is not there: make interchange-setup",
        None,
    ]
    assert rows[0].missing is not None
    assert rows[0].missing.endswith(": no space left")
    assert [len(row.seconds) for row in rows] == [1, 1, 1, 0, 2]
    assert rows[-1].folder_bytes == 600
    assert rows[-1].ratio == 600 / (4 * 100)
    lines = table(rows).splitlines()
    assert [line.split("  ")[0] for line in lines[2:7]] == [row.exporter for row in rows]
    assert f"raises: {rows[0].missing}" in lines


def test_what_gives_another_output_has_no_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = measured(monkeypatch, tmp_path, {"first": fake(WRITES), "second": fake(WRITES)})
    assert [row.difference for row in rows] == [0, 1]
    assert rows[1].missing == "its UNet's output differs by 1.0e+00"
    assert "600" not in table(rows)
    monkeypatch.setitem(SAME, "fp32", 1.0)
    assert measured(monkeypatch, tmp_path, {"first": fake(WRITES), "second": fake(WRITES)})[1].missing is None


def test_a_folder_that_does_not_run_has_no_numbers(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    row, outputs = Row(exporter="broken", seconds=[1.0], ratio=1.0), dict[str, np.ndarray]()
    export_peers._check(row, tmp_path / "model", tmp_path, 2**40, outputs)
    assert row.missing is not None
    assert row.missing.startswith("what it wrote does not run: failed after ")
    assert row.missing.endswith("is no model folder: it has no model_index.json")
    assert outputs == {}


def test_a_unet_too_large_to_run_keeps_its_exporters_numbers(tmp_path: Path) -> None:
    row, outputs = Row(exporter="large", seconds=[12.0], ratio=1.0), dict[str, np.ndarray]()
    export_peers._check(row, tmp_path, tmp_path, 2**20, outputs)
    assert row.missing is None
    assert row.unchecked is not None
    assert row.unchecked.startswith("its UNet was not run: killed at 0.0 GiB of memory, after ")
    assert outputs == {}
    lines = table([row]).splitlines()
    assert "12.0 s" in lines[2]
    assert f"large: {row.unchecked}" in lines


@pytest.mark.parametrize(("option", "value"), [("--runs", "0"), ("--memory-limit", "0"), ("--memory-limit", "nan")])
def test_refused_limits(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--shape", "small", option, value])
    assert "must be above 0" in capsys.readouterr().err


def test_no_checkpoint_to_measure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no checkpoint to measure: it has no safetensors"):
        main(["--checkpoint", str(tmp_path), "--workspace", str(tmp_path / "work")])


def test_both_tools_export_the_same_precision() -> None:
    for name, exporter in EXPORTERS.items():
        words = exporter.command("checkpoint", "destination", "fp16")
        assert "fp16" in words, name
        assert {"checkpoint", "destination"} <= set(words), name


# checkpoints of published shapes


#: of the networks of the checkpoints on the hub
PARAMETERS = {
    "sd15": {"text_encoder": 123_060_480, "unet": 859_520_964, "vae": 83_653_863},
    "sd21": {"text_encoder": 340_387_840, "unet": 865_910_724, "vae": 83_653_863},
    "sdxl": {"text_encoder": 123_060_480, "text_encoder_2": 694_659_840, "unet": 2_567_463_684, "vae": 83_653_863},
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_shapes_have_the_published_numbers_of_parameters(name: str) -> None:
    import torch

    with torch.device("meta"):
        found = {
            network: sum(tensor.numel() for tensor in build(class_name, config, torch.float16).state_dict().values())
            for network, (class_name, config) in SHAPES[name].networks.items()
        }
    assert found == PARAMETERS[name] == named_model(name).parameters


def test_a_random_checkpoint_can_be_exported(tmp_path: Path) -> None:
    small = SHAPES["small"]
    unet_class, unet = small.networks["unet"]
    narrow = {**unet, "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
    networks = {**small.networks, "unet": (unet_class, narrow)}
    write_checkpoint(tmp_path / "checkpoint", Shape(small.pipeline, networks))
    checkpoint = open_checkpoint(tmp_path / "checkpoint")
    assert {component.name for component in checkpoint.components} == set(networks)
    weights = load_file(tmp_path / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {str(array.dtype) for array in weights.values()} == {"float16"}
    assert all(np.isfinite(array).all() and array.std() > 0 for array in weights.values())
    files = (tmp_path / "checkpoint").glob("*/*.safetensors")
    total = sum(array.size for file in files for array in load_file(file).values())
    assert count_parameters(tmp_path / "checkpoint") == total
    with pytest.raises(FileExistsError):
        write_checkpoint(tmp_path / "checkpoint", small)
