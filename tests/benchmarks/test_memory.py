"""The memory of one picture: every stage is seen, and what was allocated is counted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from safelight.benchmarks.memory import main
from safelight.runtime import bundled_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
_MIB = 2**20


#: in a process of its own: of a large one the system may take back more pages than are allocated here
PAGES = """
import json, mmap, sys
import numpy as np
from dataclasses import asdict
from safelight.benchmarks.memory import Memory, Watch
with Watch() as watch:
    before = Memory.now()
    watch.enter("allocate")
    array = np.ones(64 * 2**20, np.uint8)
    watch.enter("map")
    with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == 0
        watch.enter("end")
    assert array[0] == 1
print(json.dumps([asdict(each) for each in (before, watch.most["allocate"], watch.most["map"])]))
"""


def test_allocated_and_mapped_pages_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(64 * _MIB))
    ended = subprocess.run([sys.executable, "-c", PAGES, tmp_path / "file"], stdout=subprocess.PIPE, check=True)
    before, allocated, mapped_too = json.loads(ended.stdout)
    assert 60 * _MIB < allocated["anonymous"] - before["anonymous"] < 80 * _MIB
    assert 60 * _MIB < mapped_too["file"] - allocated["file"] < 80 * _MIB


def test_rows_of_the_bundled_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(bundled_model()), "--backend", "onnxruntime", "--steps", "1", "--checkpoint", str(tmp_path / "no")]
    assert main([*arguments, "--json", str(tmp_path / "memory.json")]) == 1
    record = json.loads((tmp_path / "memory.json").read_text())
    (row,) = record["rows"].values()
    assert list(row["stages"]) == [
        "import",
        "open",
        "picture 1: text, denoise",
        "picture 1: decode",
        "picture 2: text, denoise",
        "picture 2: decode",
    ]
    assert record["weights"] < row["peak"] < 1000 * _MIB
    assert all(stage["total"] <= row["peak"] for stage in row["stages"].values())
    assert list(record["failures"]) == ["diffusers"]
    shown = capsys.readouterr().out
    assert "| safelight, onnxruntime | **largest** |" in shown
    assert "diffusers failed: " in shown
