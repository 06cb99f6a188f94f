"""Whole pipelines on a simulated GPU: the pictures are those of ONNX Runtime, and nothing is done twice."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated_machine import Machine, bucket

from safelight.runtime import DiffusionPipeline, bundled_model
from safelight.runtime.cli import main

PROMPT = "cat face on a blue background"
STEPS = 4


def picture(pipeline: Any, side: int = 64, **options: Any) -> Any:
    """What a pipeline makes, as numbers."""
    call: dict[str, Any] = {"seed": 0, "num_inference_steps": STEPS, "output_type": "np", "height": side, "width": side}
    return pipeline(PROMPT, **{**call, **options}).images


@pytest.fixture(scope="module")
def reference() -> Any:
    """The same model on the CPU."""
    pipeline = DiffusionPipeline.from_pretrained(bundled_model())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_pictures_are_those_of_onnxruntime(machine: Machine, reference: Any) -> None:
    machine.build_all()
    with machine.pipeline() as pipeline:
        assert pipeline.device == "cuda"
        found = picture(pipeline)
    np.testing.assert_array_equal(found, picture(reference))


def test_a_step_is_its_inputs_in_and_one_output_out(machine: Machine) -> None:
    machine.build_all()
    counts = machine.cuda.counts
    with machine.pipeline() as pipeline:
        unet, steps = pipeline.unet.network, []

        class Counted:
            inputs, outputs = unet.inputs, unet.outputs

            def __call__(self, inputs: Any, outputs: Any = None) -> Any:
                before = counts.copy()
                answers = unet(inputs, outputs)
                steps.append({name: counts[name] - before[name] for name in counts if counts[name] != before[name]})
                return answers

            close = staticmethod(unet.close)

        pipeline.unet.network = Counted()
        picture(pipeline)
    copies = {"copies in": 3, "copies out": 1, "synchronizes": 1}
    plain, captured, *replayed = steps
    assert plain == {**copies, "enqueues": 1, "device allocations": 4, "pinned allocations": 4}
    assert captured == {**copies, "enqueues": 1, "captures": 1, "launches": 1}
    assert len(replayed) == STEPS - 2
    assert all(step == {**copies, "launches": 1} for step in replayed)


def test_each_size_has_its_bucket_and_its_graph(machine: Machine, reference: Any) -> None:
    small, large = bucket(16, 32), bucket(36, 64)
    machine.build_all([large, small])
    with machine.pipeline() as pipeline:
        for side in (64, 32, 64, 32):
            np.testing.assert_array_equal(picture(pipeline, side), picture(reference, side))
        assert len(pipeline.unet.network._executions) == 2
        assert machine.cuda.counts["captures"] == 1 + 2 + 2  # of text encoder, UNet and decoder
        with pytest.raises(ValueError, match=r"unet: this engine was not built for sample 2x4x24x24.*36|16x16"):
            picture(pipeline, 96)


def test_pictures_in_and_out(machine: Machine, reference: Any) -> None:
    machine.build_all()
    with machine.pipeline() as pipeline:
        image = pipeline(PROMPT, seed=0, num_inference_steps=2).images[0]
        latents = pipeline.vae.encode(np.zeros((1, 3, 64, 64), np.float32)).mode()
    np.testing.assert_array_equal(latents, reference.vae.encode(np.zeros((1, 3, 64, 64), np.float32)).mode())
    assert image.size == (64, 64)


def test_to_moves_every_network(two_gpus: Machine, reference: Any) -> None:
    two_gpus.build_all()
    with two_gpus.pipeline() as pipeline:
        first = picture(pipeline)
        assert two_gpus.cuda.used(0) > 0 == two_gpus.cuda.used(1)
        assert pipeline.to("cuda:1") is pipeline
        assert two_gpus.cuda.used(0) == 0
        np.testing.assert_array_equal(picture(pipeline), first)
        assert two_gpus.cuda.used(1) > 0 == two_gpus.cuda.used(0)
        with pytest.raises(ValueError, match=r"device 'cuda:2' is not there: this machine has cuda:0 to cuda:1"):
            pipeline.to("cuda:2")
        assert pipeline.device == "cuda:1"
        np.testing.assert_array_equal(picture(pipeline), first)
    np.testing.assert_array_equal(first, picture(reference))


def test_words_cannot_be_taught(machine: Machine, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    machine.build_all()
    save_file({"emb_params": np.zeros((1, 96), np.float32)}, tmp_path / "word.safetensors")
    with (
        machine.pipeline() as pipeline,
        pytest.raises(ValueError, match="cannot be taught a word: its text encoder is compiled"),
    ):
        pipeline.load_textual_inversion(tmp_path / "word.safetensors", token="<word>")


def test_a_folder_of_engines_is_for_backends_that_run_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="engines are of the backends tensorrt and tensorrt-rtx; onnxruntime runs"):
        DiffusionPipeline.from_pretrained(bundled_model(), engines=tmp_path)


def test_generate_and_validate(rtx: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rtx.build_all()
    where = ["--backend", "tensorrt-rtx", "--device", "cuda", "--engines", str(rtx.store.folder)]
    call = ["generate", PROMPT, "--seed", "0", "--num-inference-steps", "2", "--no-progress", *where]
    assert main([*call, "--output", str(tmp_path / "picture.png")]) == 0
    assert (tmp_path / "picture.png").is_file()
    assert main(["validate", str(bundled_model()), *where]) == 0
    report = capsys.readouterr().out
    assert "tensorrt-rtx" in report
    assert "picture" in report
    assert main([*call[:-4], *where[:2], "--output", str(tmp_path / "other.png")]) == 1
    assert "device must be 'cuda' or 'cuda:N', got 'cpu'" in capsys.readouterr().err


def test_validation_without_the_shapes_of_the_run(rtx: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    rtx.build_all()
    rtx.build("unet", [{**bucket(20, 88), "sequence_length": (5, 9, 9)}])
    where = ["--backend", "tensorrt-rtx", "--device", "cuda", "--engines", str(rtx.store.folder)]
    assert main(["validate", str(bundled_model()), *where]) == 0
    report = capsys.readouterr().out
    assert "no run: the engines of unet were not built for its shapes, a picture of 64x64: build with --shape" in report
    rtx.build("unet", [{**bucket(20, 64), "sequence_length": (7, 7, 7)}])
    assert main(["validate", str(bundled_model()), *where]) == 1
    assert "no graph of unet can be run here" in capsys.readouterr().err
    assert main(["validate", str(bundled_model()), *where, "--target", "onnx"]) == 1
    assert "tensorrt-rtx runs no graphs" in capsys.readouterr().err
    assert main(["validate", str(bundled_model()), *where, "--checkpoint", "nowhere"]) == 1
    assert "a proof is made with the folder's graphs" in capsys.readouterr().err
