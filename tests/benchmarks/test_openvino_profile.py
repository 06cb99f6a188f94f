"""The script that says where the time of a UNet goes."""

import json
from pathlib import Path

import pytest

from safelight.benchmarks.openvino_profile import kind, main
from safelight.runtime import bundled_model


def test_the_time_is_all_shared_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "profile.json"
    assert main([str(bundled_model()), "--latent", "8", "--latent", "16", "--json", str(file)]) == 0
    small, large = json.loads(file.read_text())["calls"]
    assert (small["latent"], large["latent"]) == (8, 16)
    assert min(small["seconds"], large["seconds"]) > 0
    for call in (small, large):
        assert call["share"].keys() == {
            "convolutions",
            "linear layers",
            "attention",
            "copies",
            "norms, activations, sums",
        }
        assert sum(call["share"].values()) == pytest.approx(1)
        assert list(call["share"].values()) == sorted(call["share"].values(), reverse=True)
    assert capsys.readouterr().out.startswith("8x8: ")


@pytest.mark.parametrize(
    ("operation", "parts", "expected"),
    [
        ("Subgraph", "node_mul,node_scaled_dot_product_attention_3", "attention"),
        ("Softmax", "Softmax_12", "attention"),
        ("Convolution", "node_conv2d_1", "convolutions"),
        ("FullyConnected", "node_linear_1,node_gelu", "linear layers"),
        ("Subgraph", "node_group_norm,node_silu", "norms, activations, sums"),
        ("Reorder", "", "copies"),
    ],
)
def test_operations_are_what_their_names_say(operation: str, parts: str, expected: str) -> None:
    assert kind(operation, parts) == expected
