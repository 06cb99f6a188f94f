"""Which backend runs a model where its user names none."""

import importlib.util

import pytest

from safelight.runtime.backends.choice import COMPILED_FROM, chosen_backend

LARGE, SMALL = COMPILED_FROM, COMPILED_FROM - 1


@pytest.mark.parametrize(
    ("weight_bytes", "device", "precisions", "integers", "backend", "reason"),
    [
        (SMALL, "cpu", (), False, "onnxruntime", "opens a small model"),
        (LARGE, "cpu", (), False, "openvino", "its steps are faster"),
        (SMALL, "cpu", ("bf16",), False, "openvino", "ONNX Runtime does not compute in bf16"),
        (SMALL, "cpu", ("fp32",), False, "onnxruntime", "opens a small model"),
        (SMALL, "cpu", ("auto",), False, "openvino", "fastest precision"),
        (SMALL, "cpu", (), True, "openvino", "8 bits"),
        (LARGE, "cuda:1", (), False, "onnxruntime", "any model on cuda:1"),
        (SMALL, "gpu:1", (), False, "openvino", "gpu:1 is a device of OpenVINO"),
        (SMALL, "npu", (), False, "openvino", "npu is a device"),
    ],
)
def test_the_backend_is_chosen_by_size_device_and_precision(
    weight_bytes: int, device: str, precisions: tuple[str, ...], integers: bool, backend: str, reason: str
) -> None:
    choice = chosen_backend(weight_bytes, device, precisions, integers=integers)
    assert choice.backend == backend
    assert reason in choice.reason


def test_without_openvino_it_is_onnx_runtime_whatever_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    choice = chosen_backend(LARGE, "cpu", ("bf16",), integers=True)
    assert choice.backend == "onnxruntime"
    assert "pip install 'safelight[openvino]'" in choice.reason
