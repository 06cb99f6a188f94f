"""Weights that stand in for those of the file: what a text encoder learned after its training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from safelight.runtime import DiffusionPipeline, bundled_model
from safelight.runtime.backends import Array, open_network
from safelight.runtime.model_folder import open_model_folder
from safelight.runtime.textual_inversion import TOKEN_EMBEDDING

GRAPH = bundled_model() / "text_encoder" / "model.onnx"
WIDTH = 96


def matrix() -> Array:
    return np.array(open_model_folder(bundled_model()).tensor("text_encoder", TOKEN_EMBEDDING))


def test_a_matrix_in_place_of_the_files_gives_onnx_runtimes_numbers(cache: Path) -> None:
    changed = matrix()[::-1].copy()
    ids = {"input_ids": np.array([[1, 5, 9], [2, 4, 8]])}
    networks: list[Any] = [
        open_network(GRAPH, backend=backend, initializers=given)
        for backend, given in (
            ("onnxruntime", {TOKEN_EMBEDDING: changed}),
            ("openvino", {TOKEN_EMBEDDING: changed}),
            ("openvino", None),
        )
    ]
    expected, found, unchanged = (network(ids)["last_hidden_state"] for network in networks)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    assert np.abs(found - unchanged).max() > 0.1


def test_networks_with_other_weights_leave_no_compiled_ones_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path))
    network = open_network(GRAPH, backend="openvino", initializers={TOKEN_EMBEDDING: matrix()})
    network({"input_ids": np.array([[1]])})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("initializers", "message"),
    [
        ({"nothing": np.zeros(3, np.float32)}, r"model\.onnx has no weight 'nothing'"),
        (
            {TOKEN_EMBEDDING: np.zeros((2264, WIDTH), np.float16)},
            r"must be float16 \(2265, 96\), got float16 \(2264, 96\)",
        ),
        (
            {TOKEN_EMBEDDING: np.zeros((2265, WIDTH), np.float32)},
            r"must be float16 \(2265, 96\), got float32 \(2265, 96\)",
        ),
    ],
)
def test_weights_that_are_not_the_graphs_are_refused(initializers: dict[str, Array], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_network(GRAPH, backend="openvino", initializers=initializers)


def test_a_pipeline_learns_a_word(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    file = tmp_path / "word.safetensors"
    save_file({"<word>": rng.standard_normal((2, WIDTH)).astype(np.float32)}, file)
    found = []
    for backend in ("onnxruntime", "openvino"):
        with DiffusionPipeline.from_pretrained(bundled_model(), backend=backend) as pipeline:
            pipeline.load_textual_inversion(file)
            ids = pipeline.tokenizer.encode(["a <word> face"])
            found.append(pipeline.text_encoder(ids).last_hidden_state)
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=5e-5)
