"""The bundled model's proof, replayed in another precision than that of its graphs."""

from dataclasses import replace

import openvino
import pytest

from safelight.runtime import bundled_model
from safelight.runtime.fidelity import Proof, check
from safelight.runtime.fidelity.check import _Checked
from safelight.runtime.fidelity.report import computed_in, limit
from safelight.runtime.model_folder import open_model_folder
from safelight.runtime.networks import Engine

FOLDER = open_model_folder(bundled_model())


@pytest.mark.skipif(
    "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), reason="this CPU has no bf16"
)
def test_bf16_is_within_its_limits_and_not_within_float32s() -> None:
    proof = Proof.read(FOLDER)
    report = check(FOLDER, proof, backend="openvino", precision={"text_encoder": "bf16", "unet": "bf16"}, target="onnx")
    assert report.failures == report.unchecked == []
    for name, component in report.components.items():
        exact = name.startswith("vae")
        assert component.dtype == ("float32" if exact else "bfloat16")
        single = limit("float32", proof.spreads[name])
        assert (component.graphs["onnx"].relative_error < single) == exact
    assert report.run is not None
    assert report.run.psnr > 30
    assert report.run.drift_limit[0] == 32 * report.run.half_precision_drift[0]
    assert report.backend == "openvino"


@pytest.mark.parametrize(
    ("dtype", "precision", "expected"),
    [
        ("fp32", None, "float32"),
        ("fp32", "fp32", "float32"),
        ("fp32", "bf16", "bfloat16"),
        ("fp32", "fp16", "float16"),
        ("bf16", None, "bfloat16"),
        ("bf16", "fp32", "bfloat16"),  # its weights are rounded
        ("fp16", "bf16", "bfloat16"),
        (None, "fp16", "float16"),
    ],
)
def test_the_limits_are_those_of_the_coarser_dtype(dtype: str | None, precision: str | None, expected: str) -> None:
    assert FOLDER.manifest is not None
    record = replace(FOLDER.manifest.components["unet"], dtype=dtype)
    assert computed_in(record, precision) == expected


def test_graphs_in_bf16_are_run_by_openvino_alone() -> None:
    assert FOLDER.manifest is not None
    components = {**FOLDER.manifest.components}
    components["unet"] = replace(components["unet"], dtype="bf16")
    folder = replace(FOLDER, manifest=replace(FOLDER.manifest, components=components))
    proof = Proof.read(FOLDER)
    reasons = {
        backend: _Checked(folder, proof, Engine(backend), None, None)._cannot_run("unet", "onnx")
        for backend in ("openvino", "onnxruntime")
    }
    assert reasons == {"openvino": None, "onnxruntime": "onnxruntime has no bfloat16 on cpu"}
