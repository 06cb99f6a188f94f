"""Memory of mapped files is given back, and what they hold stays."""

import mmap
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from safelight.runtime import bundled_model
from safelight.runtime.backends import open_network
from safelight.runtime.backends.mapped_files import give_back, given_back

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are counted in Linux' /proc/self/smaps")

SIZE = 16 * 2**20
CONTENT = bytes(range(256)) * (SIZE // 256)


def resident(file: Path) -> int:
    """The bytes of a mapped file that are in this process's memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(f" {file.resolve()}")
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a folder" / "weights.bin"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def mapped(file: Path) -> Iterator[mmap.mmap]:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        yield memory


def test_pages_that_were_read_are_given_back_and_read_again(file: Path, mapped: mmap.mmap) -> None:
    assert mapped[:] == CONTENT
    assert resident(file) == SIZE
    give_back(file)
    assert resident(file) == 0
    assert mapped[:] == CONTENT


def test_what_was_written_to_a_private_mapping_stays(file: Path) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as memory:
        memory[:4] = b"mine"
        give_back(file)
        assert memory[:8] == b"mine" + CONTENT[4:8]


def test_another_file_of_a_similar_name_is_left_alone(file: Path, mapped: mmap.mmap) -> None:
    assert mapped[:] == CONTENT
    give_back(file.with_name("weights.bi"))
    give_back(file.with_name("nothing"))
    assert resident(file) == SIZE


def test_it_goes_on_while_a_file_is_read_and_once_more_at_the_end(file: Path, mapped: mmap.mmap) -> None:
    with given_back(file):
        assert mapped[:] == CONTENT
        deadline = time.monotonic() + 30
        while resident(file) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert resident(file) == 0
        assert mapped[:] == CONTENT
    assert resident(file) == 0
    with given_back(None):
        assert mapped[:] == CONTENT
    assert resident(file) == SIZE


def test_a_network_of_openvino_keeps_its_own_copies_and_no_pages_of_the_file() -> None:
    graph = bundled_model() / "text_encoder" / "model.onnx"
    network = open_network(graph, backend="openvino")
    inputs = {
        spec.name: np.zeros([1 if isinstance(n, str) else n for n in spec.shape], spec.dtype) for spec in network.inputs
    }
    first = network(inputs)
    weights = graph.with_name("model.onnx_data")
    again = network(inputs)
    assert resident(weights) < weights.stat().st_size / 2
    np.testing.assert_array_equal(first["last_hidden_state"], again["last_hidden_state"])
    network.close()
