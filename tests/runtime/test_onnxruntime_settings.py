"""ONNX Runtime's own options: taken by their names, and refused by them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from safelight.runtime import DiffusionPipeline, bundled_model
from safelight.runtime.backends import Tuning, open_network
from safelight.runtime.backends.onnxruntime.settings import ATTRIBUTES, ENTRIES, SessionSettings

TEXT_ENCODER = bundled_model() / "text_encoder" / "model.onnx"


def options_of(**tuning: Any) -> Any:
    return SessionSettings.of(Tuning(**tuning)).session_options()


def test_every_attribute_is_one_of_onnxruntime() -> None:
    options = ort.SessionOptions()
    assert [name for name in ATTRIBUTES if not hasattr(options, name)] == []
    for levels, kind in ((ATTRIBUTES["execution_mode"], ort.ExecutionMode),):
        assert set(levels) == {name for name in dir(kind) if name.startswith("ORT_")}
    assert set(ATTRIBUTES["graph_optimization_level"]) == {
        name for name in dir(ort.GraphOptimizationLevel) if name.startswith("ORT_")
    }


def test_every_entry_is_known_to_the_library() -> None:
    """It takes any, and says nothing: what it reads is in its binary."""
    (library,) = Path(ort.__file__).parent.glob("capi/onnxruntime_pybind11_state*")
    binary = library.read_bytes()
    # compilers turn the shortest texts into numbers within the code
    assert [name for name in ENTRIES if name.encode() not in binary] == []


def test_options_reach_the_session() -> None:
    options = options_of(
        threads=3,
        options={
            "enable_cpu_mem_arena": False,
            "execution_mode": "ORT_PARALLEL",
            "graph_optimization_level": "ORT_ENABLE_BASIC",
            "session.disable_prepacking": True,
            "session.dynamic_block_base": 4,
        },
    )
    assert options.intra_op_num_threads == 3
    assert options.enable_cpu_mem_arena is False
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert options.get_session_config_entry("session.disable_prepacking") == "1"
    assert options.get_session_config_entry("session.dynamic_block_base") == "4"
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_a_user_has_the_last_word() -> None:
    assert options_of().enable_mem_pattern is False
    assert SessionSettings().session_options(on_cpu=False).enable_mem_pattern is True
    options = options_of(options={"enable_mem_pattern": True, "session.force_spinning_stop": 0})
    assert options.enable_mem_pattern is True
    assert options.get_session_config_entry("session.force_spinning_stop") == "0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"session.disable_prepack": True}, "no option 'session.disable_prepack'; known: cache, enable_cpu_mem_"),
        ({"intra_op_num_threads": 2}, "intra_op_num_threads of the onnxruntime backend is called threads here"),
        ({"enable_mem_pattern": "no"}, "^enable_mem_pattern .* must be true or false, got 'no'$"),
        ({"cache": None}, "^cache of the onnxruntime backend must be true or false, got None$"),
        ({"execution_mode": "PARALLEL"}, "must be one of ORT_SEQUENTIAL, ORT_PARALLEL, got 'PARALLEL'$"),
        ({"session.dynamic_block_base": -1}, "must be a number of at least 0, got -1$"),
        ({"inter_op_num_threads": True}, "must be a number of at least 0, got True$"),
        ({"session.intra_op_thread_affinities": 3}, "must be a text of at most 1024 characters, got 3$"),
    ],
)
def test_unknown_and_ill_typed_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_network(TEXT_ENCODER, tuning=Tuning(options=options))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_that_was_not_exported_is_refused_with_the_way_out(precision: str) -> None:
    with pytest.raises(ValueError, match=rf"does not compute in {precision} .* safelight export --dtype {precision}"):
        open_network(TEXT_ENCODER, tuning=Tuning(precision=precision))


def test_options_change_no_picture() -> None:
    options = {"session.disable_prepacking": True, "enable_cpu_mem_arena": False, "enable_mem_pattern": True}
    images = []
    for tuned in ({}, {"threads": 1, "engine_options": options}):
        with DiffusionPipeline.from_pretrained(bundled_model(), backend="onnxruntime", **tuned) as pipeline:
            pipeline.set_progress_bar_config(disable=True)
            images.append(pipeline("cat face", num_inference_steps=2, seed=0, output_type="np").images)
    np.testing.assert_allclose(*images, rtol=0, atol=1e-5)
