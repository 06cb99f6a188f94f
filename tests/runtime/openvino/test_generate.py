"""What `safelight generate` says of OpenVINO: the precision that was decided, and what is wrong with an option."""

from pathlib import Path

import pytest

from safelight.runtime.backends.openvino import fastest_precision
from safelight.runtime.cli import main

ARGUMENTS = ["generate", "cat face", "--num-inference-steps", "1", "--height", "16", "--width", "16", "--no-progress"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--precision", "auto"], "openvino on cpu: AUTO"),
        (
            ["--backend", "openvino", "--precision", "unet=auto,vae_decoder=fp32"],
            "openvino on cpu: text_encoder as exported, unet AUTO, vae_decoder fp32, vae_encoder as exported",
        ),
    ],
)
def test_the_precision_that_was_decided_is_printed(
    options: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*ARGUMENTS, "--seed", "3", "--output", str(tmp_path / "cat.png"), *options]) == 0
    timings, decided, path = capsys.readouterr().out.splitlines()
    assert timings.startswith("seed 3: open ")
    assert decided == expected.replace("AUTO", fastest_precision("cpu"))
    assert Path(path).is_file()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--engine-option", "NOTHING=1"], "safelight: the openvino backend has no option 'NOTHING' on CPU; known: "),
        (
            ["--engine-option", "PERF_COUNT=x"],
            "safelight: option PERF_COUNT of the openvino backend cannot be 'x': Wrong",
        ),
        (["--device", "npu:3"], "safelight: device 'npu:3' is not usable: OpenVINO finds cpu"),
        (["--precision", "fp8"], "safelight: unknown precision 'fp8'; known: fp32, bf16, fp16, auto"),
    ],
)
def test_what_openvino_lacks_is_one_sentence(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*ARGUMENTS, "--backend", "openvino", "--output", str(tmp_path), *options]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(sentence)
    assert len(captured.err.splitlines()) == 1
