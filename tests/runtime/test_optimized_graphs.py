"""Networks that are kept ready for this CPU: the same numbers, whole or not at all, within a limit."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from safelight.runtime import bundled_model
from safelight.runtime.backends import Array, Tuning, open_network
from safelight.runtime.backends.onnxruntime import optimized_graphs
from safelight.runtime.backends.onnxruntime.session import open_session as plain_session

UNET = bundled_model() / "unet" / "model.onnxruntime-cpu.onnx"


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of its own, where networks of every size are kept, and weights of more than 4 KiB lie outside."""
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(optimized_graphs, "KEPT_FROM", 1)
    monkeypatch.setattr(optimized_graphs, "_OUTSIDE_FROM", 4096)
    return tmp_path / "cache" / "onnxruntime"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The graphs that sessions were opened of."""
    graphs: list[Path] = []

    def spy(graph: Path, *arguments: Any, **options: Any) -> Any:
        graphs.append(graph)
        return plain_session(graph, *arguments, **options)

    monkeypatch.setattr(optimized_graphs, "open_session", spy)
    return graphs


def answer(graph: Path = UNET, **options: Any) -> Array:
    rng = np.random.default_rng(0)
    inputs = {
        "sample": rng.standard_normal((2, 4, 8, 8)),
        "timestep": np.full(2, 10.0),
        "encoder_hidden_states": rng.standard_normal((2, 5, 96)),
    }
    network = open_network(graph, tuning=Tuning(options=options))
    try:
        return network(inputs)["out_sample"]
    finally:
        network.close()


def test_the_second_session_is_of_what_the_first_left(kept: Path, opened: list[Path]) -> None:
    expected = answer(cache=False)
    assert not kept.exists()
    first, second = answer(), answer()
    (folder,) = kept.iterdir()
    assert opened == [UNET, folder / "model.onnx"]
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(second, expected)
    operators = {node.domain for node in onnx.load(folder / "model.onnx", load_external_data=False).graph.node}
    assert "com.microsoft.nchwc" in operators, "the weights of convolutions are in blocks"
    assert "prepacked" in str(onnx.load(folder / "model.onnx", load_external_data=False).graph.initializer)
    assert folder.stat().st_mode & 0o77 == 0


def test_other_options_and_another_graph_are_kept_apart(kept: Path, tmp_path: Path) -> None:
    answer()
    answer(**{"session.disable_prepacking": True})
    copy = Path(shutil.copytree(UNET.parent, tmp_path / "unet")) / UNET.name  # other weights, for all that is known
    answer(copy)
    os.utime(copy.with_name("model.onnx_data"), (1, 1))
    answer(copy)
    assert len(list(kept.iterdir())) == 4
    answer(graph_optimization_level="ORT_ENABLE_BASIC")
    assert len(list(kept.iterdir())) == 4


@pytest.mark.parametrize("change", ["cut", "missing", "graph"])
def test_what_is_not_whole_is_made_again(kept: Path, change: str, opened: list[Path]) -> None:
    expected = answer()
    (folder,) = kept.iterdir()
    if change == "cut":
        os.truncate(folder / "weights.bin", 10_000)
    elif change == "missing":
        (folder / "sizes.json").unlink()
    else:  # of the right size
        (folder / "model.onnx").write_bytes(bytes((folder / "model.onnx").stat().st_size))
    np.testing.assert_array_equal(answer(), expected)
    if change == "graph":  # which is known only when it is opened: then it is gone for the next time
        assert opened == [UNET, folder / "model.onnx", UNET]
        assert not folder.exists()
    else:
        assert opened == [UNET, UNET]
        sizes = json.loads((folder / "sizes.json").read_bytes())
        assert sizes == {name: (folder / name).stat().st_size for name in ("model.onnx", "weights.bin")}


def test_a_cache_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path / "file" / "cache"))
    np.testing.assert_array_equal(answer(), answer(cache=False))
    assert f"{UNET} is not kept in the cache, and takes as long to open the next time: " in caplog.text


def test_a_cache_that_others_can_write_is_not_read(kept: Path, caplog: pytest.LogCaptureFixture) -> None:
    answer()
    kept.chmod(0o777)
    answer()
    assert "can be written by others" in caplog.text


def test_a_broken_graph_is_still_refused_by_its_name(tmp_path: Path, kept: Path) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(UNET.with_name("model.onnx").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"model\.onnx"):
        open_network(broken)
    assert not list(kept.glob("*"))


def test_what_was_not_used_for_longest_makes_room(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    graphs = [Path(shutil.copytree(UNET.parent, tmp_path / str(number))) / UNET.name for number in range(3)]
    answer(graphs[0])
    (first,) = kept.iterdir()
    answer(graphs[1])
    (second,) = set(kept.iterdir()) - {first}
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    answer(graphs[0])  # used again
    each = sum(file.stat().st_size for file in first.iterdir())
    needed = 2 * UNET.with_name("model.onnx_data").stat().st_size
    monkeypatch.setattr(optimized_graphs, "LIMIT", each + needed)
    answer(graphs[2])
    left = set(kept.iterdir())
    assert first in left
    assert second not in left
    assert len(left) == 2
    monkeypatch.setattr(optimized_graphs, "LIMIT", needed - 1)
    shutil.rmtree(kept)
    answer()
    assert f"it may take {needed} bytes, and the cache has {needed - 1}" in caplog.text
    assert not list(kept.iterdir())
