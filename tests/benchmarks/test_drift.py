"""The drift of what is left out, and what a step costs besides the network, on the bundled model."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safelight.benchmarks import drift, loop_overhead
from safelight.runtime import StableDiffusionPipeline, bundled_model
from safelight.runtime.speed import Speed


def test_drift_and_cost_are_those_of_the_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--steps", "6", "--seeds", "1", "--threads", "1", "--prompt", "cat face", "--prompt", "pizza"]
    wanted = [
        "--option",
        "interval 0:0.4",
        "--option",
        "exact",
        "--option",
        "own scheduler 3",
        "--option",
        "cache every 2",
    ]
    files = ["--json", str(tmp_path / "drift.json"), "--grid", str(tmp_path / "grid.png")]
    assert drift.main([*options, *wanted, *files]) == 0
    content = json.loads((tmp_path / "drift.json").read_text())
    rows = {row["option"]: row for row in content["drift"]}

    assert (rows["preset"]["psnr_worst"], rows["preset"]["latents_difference"]) == (None, 0)
    assert (rows["preset"]["unet_calls"], rows["preset"]["unet_rows"]) == (6, 12)
    assert (rows["own scheduler"]["unet_calls"], rows["own scheduler"]["unet_rows"]) == (3, 6)
    interval = rows["guidance interval"]
    assert (interval["unet_calls"], interval["unet_rows"]) == (6, 2 * 2 + 4)

    with StableDiffusionPipeline.from_pretrained(bundled_model(), threads=1) as pipeline:
        pipeline.set_progress_bar_config(disable=True)
        pictures = []
        for speed in (Speed(), Speed(guidance_interval=(0, 0.4)), Speed(deep_cache_interval=2)):
            pipeline.enable_speed(speed)
            made = [
                pipeline(one, num_inference_steps=6, seed=0, output_type="np").images for one in ("cat face", "pizza")
            ]
            pictures.append(np.concatenate(made).astype(np.float64))
    full, *others = pictures
    for row, found in zip((interval, rows["deep cache"]), others, strict=True):
        errors = ((found - full) ** 2).mean(axis=(1, 2, 3))
        assert row["psnr_worst"] == pytest.approx(-10 * np.log10(errors.max()), abs=0.01)
        assert row["psnr_median"] == pytest.approx(np.median(-10 * np.log10(errors)), abs=0.01)

    printed = capsys.readouterr().out
    assert "| preset | exact | equal | equal | 0 | 6.0 | 12.0 |" in printed
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (2 * 64, 5 * 64)  # the full run and the others


def test_overhead_is_what_is_not_in_the_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--steps", "4", "--runs", "2", "--backend", "onnxruntime", "--profile"]
    assert loop_overhead.main([*options, "--json", str(tmp_path / "loop.json")]) == 0
    rows = json.loads((tmp_path / "loop.json").read_text())["milliseconds"]
    assert [row["scheduler"] for row in rows] == [*loop_overhead.SCHEDULERS, loop_overhead.SCHEDULERS[0]]
    assert all(0 < row["inside"] < row["step"] for row in rows)
    assert all(row["outside"] > 0 for row in rows)
    assert "denoising.py" in capsys.readouterr().out
