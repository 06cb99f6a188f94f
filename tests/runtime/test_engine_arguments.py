"""The options of commands that say which engine runs the networks."""

import argparse
from typing import Any

import pytest

from safelight.runtime import DiffusionPipeline, bundled_model
from safelight.runtime.backends import Tuning
from safelight.runtime.engine_arguments import add_engine_arguments, engine_of
from safelight.runtime.model_folder import open_model_folder
from safelight.runtime.networks import Engine


def parsed(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_engine_arguments(parser)
    return engine_of(parser.parse_args(words))


def test_what_is_not_said_is_left_to_the_engine() -> None:
    engine = Engine.of(open_model_folder(bundled_model()), **parsed("--backend", "onnxruntime"))
    assert engine == Engine("onnxruntime", "cpu")
    assert engine.tuned("unet") == Tuning()


def test_every_option_reaches_the_engine() -> None:
    words = "--backend openvino --device cpu --precision unet=bf16,vae_decoder=fp32 --threads 3"
    options = ["--engine-option", "NUM_STREAMS=1", "--engine-option", "SNIPPETS_MODE=DISABLE"]
    engine = Engine.of(open_model_folder(bundled_model()), **parsed(*words.split(), *options))
    assert engine.backend == "openvino"
    assert engine.tuned("text_encoder") == Tuning(threads=3, options={"NUM_STREAMS": 1, "SNIPPETS_MODE": "DISABLE"})
    assert engine.tuned("unet").precision == "bf16"
    assert engine.tuned("vae_decoder").precision == "fp32"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "fp8"], "unknown precision 'fp8'; known: fp32, bf16, fp16, auto"),
        (["--precision", "unet=fp8"], "unknown precision 'fp8'"),
        (["--precision", "unet=bf16,vae"], r"--precision must be one, or NETWORK=PRECISION .*'unet=bf16,vae'"),
        (["--precision", "union=bf16"], "has no network 'union', which precision names"),
        (["--threads", "0"], "threads must be at least 1, got 0"),
        (["--engine-option", "NUM_STREAMS"], "--engine-option must be NAME=VALUE, got 'NUM_STREAMS'"),
    ],
)
def test_options_that_mean_nothing_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine.of(open_model_folder(bundled_model()), **parsed("--backend", "onnxruntime", *words))


def test_onnx_runtime_does_not_pretend_to_compute_in_bfloat16() -> None:
    with pytest.raises(ValueError, match="ONNX Runtime does not compute in bf16"):
        DiffusionPipeline.from_pretrained(bundled_model(), backend="onnxruntime", precision="bf16")


def test_torchs_word_for_a_precision_is_answered_with_ours() -> None:
    with pytest.raises(TypeError, match=r'torch_dtype is the folder.s: .*precision="bf16"'):
        DiffusionPipeline.from_pretrained(bundled_model(), torch_dtype="bfloat16")
