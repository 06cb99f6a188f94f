"""Compiled networks on the disk: used where they fit, and nowhere else; a cache that cannot be used is a warning."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import openvino
import pytest

from safelight.runtime import bundled_model
from safelight.runtime.backends import Array, Tuning, open_network
from safelight.runtime.backends.openvino import blob_cache

GRAPH = bundled_model() / "text_encoder" / "model.onnx"
TOKENS = np.arange(1, 33).reshape(2, 16)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that is empty."""
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the graph and its weights, that a test may change."""
    made = tmp_path / "text_encoder"
    made.mkdir()
    for name in ("model.onnx", "model.onnx_data"):
        shutil.copy(GRAPH.with_name(name), made)
    return made


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How each network came to be: "compiled", or "read" from the disk."""
    how: list[str] = []
    for name, word in (("compile_model", "compiled"), ("import_model", "read")):
        original = getattr(openvino.Core, name)

        def counted(self: Any, *given: Any, _original: Any = original, _word: str = word) -> Any:
            made = _original(self, *given)
            how.append(_word)
            return made

        monkeypatch.setattr(openvino.Core, name, counted)
    return how


def answer(graph: Path, input_ids: Array, precision: str | None = None, **options: Any) -> Array:
    tuning = Tuning(precision=precision, options=options)
    network = open_network(graph, backend="openvino", tuning=tuning)
    return network({"input_ids": input_ids})["last_hidden_state"]


def blobs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.blob"))


def test_a_second_process_reads_what_the_first_compiled(folder: Path, cache: Path, compiled: list[str]) -> None:
    first = answer(folder / "model.onnx", TOKENS)
    second = answer(folder / "model.onnx", TOKENS)
    assert compiled == ["compiled", "read"]
    np.testing.assert_array_equal(first, second)
    (blob,) = blobs(cache)
    assert blob.stat().st_size < (folder / "model.onnx_data").stat().st_size / 4  # it names the weights
    if os.name == "posix":
        assert blob.stat().st_mode & 0o777 == 0o600
        assert cache.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in cache.iterdir()] == [blob.name]


def test_weights_are_read_from_their_file(folder: Path, compiled: list[str]) -> None:
    """The weights that are zeroed while their time of change stays are zero in what is read too."""
    before = answer(folder / "model.onnx", TOKENS)
    weights = folder / "model.onnx_data"
    status = weights.stat()
    content = bytearray(weights.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    weights.write_bytes(content)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = answer(folder / "model.onnx", TOKENS)
    assert compiled == ["compiled", "read"]
    assert np.abs(after - before).max() > 0.1


@pytest.mark.parametrize("what", ["weights", "graph", "shape", "precision", "option", "version"])
def test_whatever_else_it_depends_on_is_compiled_anew(
    what: str, folder: Path, cache: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, given = folder / "model.onnx", TOKENS
    options: dict[str, Any] = {}
    answer(graph, given)
    if what == "weights":
        os.utime(folder / "model.onnx_data", ns=(1, 1))
    elif what == "graph":
        model = ir.load(graph)
        model.producer_name = "another"
        ir.save(model, graph)
    elif what == "shape":
        given = TOKENS[:, :4]
    elif what == "precision":
        options = {"precision": "fp32" if "BF16" not in capabilities() else "bf16", "PERF_COUNT": True}
    elif what == "option":
        options = {"PERF_COUNT": True}
    else:
        monkeypatch.setattr(openvino, "__version__", "2030.0")
    answer(graph, given, **options)
    assert compiled == ["compiled", "compiled"]
    assert len(blobs(cache)) == 2


def capabilities() -> list[str]:
    core: Any = openvino.Core()
    return list(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "not a blob"])
def test_a_damaged_blob_is_compiled_anew_and_replaced(
    damage: str, folder: Path, cache: Path, compiled: list[str]
) -> None:
    expected = answer(folder / "model.onnx", TOKENS)
    (blob,) = blobs(cache)
    content = blob.read_bytes()
    nothing = b"nothing"
    blob.write_bytes(
        {
            "cut": content[:-9],
            "changed": content[:-9] + bytes(9),
            "empty": b"",
            "not a blob": blob_cache.hashlib.sha256(nothing).digest() + nothing,
        }[damage]
    )
    np.testing.assert_array_equal(answer(folder / "model.onnx", TOKENS), expected)
    assert compiled == ["compiled", "compiled"]
    answer(folder / "model.onnx", TOKENS)
    assert compiled[2:] == ["read"]


def test_a_cache_that_cannot_be_made_is_a_warning(
    folder: Path, cache: Path, compiled: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir()
    cache.write_text("a file in place of the folder")
    with caplog.at_level(logging.WARNING):
        answer(folder / "model.onnx", TOKENS)
    assert compiled == ["compiled"]
    assert "compiled networks are not kept" in caplog.text
    assert str(cache) in caplog.text


def test_a_blob_that_cannot_be_written_is_a_warning(
    folder: Path,
    cache: Path,
    compiled: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[:100])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(blob_cache, "write_private", full)
    with caplog.at_level(logging.WARNING):
        answer(folder / "model.onnx", TOKENS)
    assert "cannot be kept: [Errno 28] No space left on device" in caplog.text
    assert list(cache.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_folder_that_others_can_write_is_not_used(
    folder: Path, cache: Path, compiled: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    answer(folder / "model.onnx", TOKENS)
    cache.chmod(0o777)
    with caplog.at_level(logging.WARNING):
        answer(folder / "model.onnx", TOKENS)
    cache.chmod(0o700)
    (blob,) = blobs(cache)
    blob.chmod(0o666)
    with caplog.at_level(logging.WARNING):
        answer(folder / "model.onnx", TOKENS)
    assert compiled == ["compiled"] * 3
    assert caplog.text.count("can be written by others") == 2


def test_what_was_not_used_for_longest_is_deleted(
    folder: Path, cache: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = folder / "model.onnx"
    answer(graph, TOKENS)
    answer(graph, TOKENS[:, :8])
    first, second = sorted(blobs(cache), key=lambda path: path.stat().st_mtime_ns)
    os.utime(first, ns=(1, 1))
    os.utime(second, ns=(2, 2))
    answer(graph, TOKENS)  # which uses the first
    monkeypatch.setattr(blob_cache, "MOST_BYTES", 2.5 * first.stat().st_size)
    answer(graph, TOKENS[:, :12])
    assert first.exists()
    assert not second.exists()
    assert compiled == ["compiled", "compiled", "read", "compiled"]


def test_without_the_option_nothing_is_written(folder: Path, cache: Path) -> None:
    answer(folder / "model.onnx", TOKENS, cache=False)
    assert not cache.parent.exists()


def test_weights_within_the_graph_are_compiled_and_not_kept(folder: Path, cache: Path) -> None:
    model = ir.load(folder / "model.onnx")
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    (folder / "whole").mkdir()
    ir.save(model, folder / "whole" / "model.onnx")
    expected = answer(folder / "model.onnx", TOKENS, cache=False)
    np.testing.assert_array_equal(answer(folder / "whole" / "model.onnx", TOKENS), expected)
    assert not cache.exists()
