"""A network on OpenVINO: the numbers of ONNX Runtime and of OpenVINO itself, one compiled network for each shape."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest

from safelight.runtime import DiffusionPipeline, bundled_model
from safelight.runtime.backends import Array, Tuning, open_network
from safelight.runtime.backends.openvino import network as module
from safelight.runtime.backends.openvino.compiled import kept
from safelight.runtime.fidelity import psnr
from safelight.runtime.networks import Engine

TEXT_ENCODER = bundled_model() / "text_encoder" / "model.onnx"

Inputs = Callable[..., dict[str, Array]]
Opened = Callable[..., Any]


def relative(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def plainly(graph: Path, inputs: dict[str, Array], precision: str) -> Array:
    """OpenVINO by itself, on the shapes of the inputs."""
    core: Any = openvino.Core()
    model = core.read_model(graph)
    model.reshape({name: list(array.shape) for name, array in inputs.items()})
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return np.array(compiled(inputs)[0])


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, tuple[int, ...]]]:
    """The shapes that networks are compiled for, one after the other."""
    shapes: list[dict[str, tuple[int, ...]]] = []
    compile_for = module.OpenVinoNetwork._compile

    def counted(self: Any, given: dict[str, tuple[int, ...]]) -> Any:
        shapes.append(given)
        return compile_for(self, given)

    monkeypatch.setattr(module.OpenVinoNetwork, "_compile", counted)
    return shapes


def test_float32_is_onnx_runtimes_and_openvinos_own(graph: Path, inputs: Inputs, opened: Opened) -> None:
    given = inputs()
    expected = open_network(graph)(given)["out_sample"]
    unet = opened()
    found = unet(given)["out_sample"]
    assert unet.precision == "fp32"
    assert found.dtype == np.float32
    assert relative(found, expected) < 1e-5
    np.testing.assert_array_equal(found, plainly(graph, given, "f32"))


def test_one_network_for_all_shapes_gives_the_same_numbers(
    inputs: Inputs, opened: Opened, compilations: list[Any]
) -> None:
    one, each = opened(static_shapes=False), opened()
    for given in (inputs(2, 8), inputs(1, 4)):
        assert relative(one(given)["out_sample"], each(given)["out_sample"]) < 1e-5
    assert [shapes["sample"][0] for shapes in compilations] == [2, 2, 1]


def test_a_call_of_another_size_between_two_equal_ones_compiles_nothing_anew(
    inputs: Inputs, opened: Opened, compilations: list[Any]
) -> None:
    unet = opened()
    first = unet(inputs(2, 8))["out_sample"]
    unet(inputs(1, 4))
    np.testing.assert_array_equal(unet(inputs(2, 8))["out_sample"], first)
    assert [shapes["sample"] for shapes in compilations] == [(2, 4, 8, 8), (1, 4, 4, 4)]


def test_what_was_not_used_for_longest_makes_room(compilations: list[Any]) -> None:
    encoder = open_network(TEXT_ENCODER, backend="openvino", tuning=Tuning(options={"most_compiled": 1}))
    for length in (8, 4, 4, 8):
        encoder({"input_ids": np.ones((1, length))})
    assert [shapes["input_ids"] for shapes in compilations] == [(1, 8), (1, 4), (1, 8)]


@pytest.mark.parametrize(
    ("elements", "precision", "expected"),
    [
        (860_000_000, "fp32", 2),
        (860_000_000, "bf16", 2),
        (120_000_000, "fp32", 8),
        (120_000_000, "bf16", 16),
        (0, "fp32", 16),
    ],
)
def test_of_large_networks_fewer_are_kept(elements: int, precision: str, expected: int) -> None:
    assert kept(elements, precision) == expected


def test_inputs_are_not_copied_and_outputs_are_the_callers(inputs: Inputs, opened: Opened) -> None:
    unet, given = opened(), inputs()
    for array in given.values():
        array.flags.writeable = False
    first = unet(given)["out_sample"]
    kept_copy = first.copy()
    first += 1
    second = unet(inputs(2, 8) | {"sample": np.zeros((2, 4, 8, 8))})["out_sample"]
    assert first.flags.owndata
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, kept_copy + 1)
    np.testing.assert_array_equal(unet(given)["out_sample"], kept_copy)


def test_calls_from_threads_do_not_mix(compilations: list[Any]) -> None:
    # one thread's network is closed for the other's
    encoder = open_network(TEXT_ENCODER, backend="openvino", tuning=Tuning(options={"most_compiled": 1}))
    givens = [{"input_ids": np.arange(1, length + 1)[None]} for length in (4, 9)]
    expected = [encoder(given)["last_hidden_state"] for given in givens]
    wrong: list[int] = []

    def work(number: int) -> None:
        found = [encoder(givens[number])["last_hidden_state"] for _ in range(3)]
        wrong.extend(number for each in found if not np.array_equal(each, expected[number]))

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(compilations) > 2


def test_a_closed_network_says_so(inputs: Inputs, opened: Opened) -> None:
    unet = opened()
    unet(inputs())
    unet.close()
    unet.close()
    with pytest.raises(RuntimeError, match="unet is closed"):
        unet(inputs())


def test_a_failing_run_says_with_which_shapes(inputs: Inputs, opened: Opened) -> None:
    mismatched = inputs() | {"encoder_hidden_states": np.zeros((3, 32, 96))}
    for static in (True, False):
        with pytest.raises(RuntimeError, match=r"unet failed on sample \(2, 4, 8, 8\), .*: (?!Exception from)"):
            opened(static_shapes=static)(mismatched)


def test_memory_that_is_used_up_is_said_so(inputs: Inputs, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def used_up(*_: Any) -> None:
        raise RuntimeError("Exception from src/inference/src/cpp/core.cpp:117:\nstd::bad_alloc")

    unet = opened()
    monkeypatch.setattr(module.OpenVinoNetwork, "_compile", used_up)
    with pytest.raises(MemoryError, match=r"unet: the memory is used up, on sample \(2, .*: std::bad_alloc; a smaller"):
        unet(inputs())


def test_wrong_inputs_and_outputs_are_refused_by_name(inputs: Inputs, opened: Opened) -> None:
    unet = opened()
    with pytest.raises(
        ValueError, match=r"unet: input sample must be float32 \(\?, 4, \?, \?\), got float64 \(1, 3, 8, 8\)"
    ):
        unet(inputs() | {"sample": np.zeros((1, 3, 8, 8))})
    with pytest.raises(ValueError, match="unet: unknown output nothing; it has out_sample"):
        unet(inputs(), ["nothing"])


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07 no graph")
    with pytest.raises(ValueError, match=r"model\.onnx cannot be opened by OpenVINO: (?!Exception from)"):
        open_network(tmp_path / "model.onnx", backend="openvino")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_network(tmp_path / "nothing.onnx", backend="openvino")


def picture(**options: Any) -> Array:
    with DiffusionPipeline.from_pretrained(bundled_model(), **options) as pipeline:
        pipeline.set_progress_bar_config(disable=True)
        (image,) = pipeline("cat face", num_inference_steps=5, seed=1, output_type="np").images
    return np.asarray(np.round(image * 255))


def test_a_whole_picture_is_onnx_runtimes_and_in_bf16_near_it() -> None:
    expected = picture(backend="onnxruntime")
    single = picture(backend="openvino")
    assert np.abs(single - expected).max() <= 1
    half = picture(backend="openvino", precision="bf16")
    assert 30 <= psnr(half, single) < psnr(single, expected)


def test_only_the_network_that_is_named_is_computed_in_bf16(opened: Opened) -> None:
    with DiffusionPipeline.from_pretrained(bundled_model(), backend="openvino", precision={"unet": "bf16"}) as pipeline:
        assert pipeline.unet.network.precision == "bf16"
        assert pipeline.text_encoder.network.precision == "fp32"
        networks = ("text_encoder", "unet")
        assert pipeline.engine.describe(networks) == "openvino on cpu: text_encoder as exported, unet bf16"
    assert Engine("openvino", tuning=Tuning(precision="bf16")).describe(networks) == "openvino on cpu: bf16"
