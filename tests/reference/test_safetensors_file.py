"""Safetensors as somebody else may have written them: equal to the library's reading, or refused by name."""

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from safelight.reference.safetensors_file import SafetensorsFile, TensorEntry

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e8m0fnu,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
]


def tensor(shape: object = (2,), offsets: object = (0, 8), dtype: object = "F32") -> dict[str, object]:
    """An entry of a header; the default is two floats at the start."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def write(path: Path, header: object, data: bytes = b"\0" * 8, length: int | None = None) -> Path:
    """A file of a header, JSON or plain bytes, and data; the length of the header may be a lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two tensors are the same bytes, and say so."""
    flat = (found.reshape(-1), expected.contiguous().reshape(-1))
    return (found.dtype, found.shape) == (expected.dtype, expected.shape) and torch.equal(
        *(tensor.view(torch.uint8) for tensor in flat)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reads_what_the_library_wrote(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    numbers = torch.randint(0, 2 if dtype == torch.bool else 256, (24 * dtype.itemsize,), dtype=torch.uint8)
    tensors = {
        "matrix": numbers.view(dtype).reshape(4, 6),
        "scalar": numbers[: dtype.itemsize].clone().view(dtype).reshape(()),
        "nothing": torch.empty(0, 3, dtype=dtype),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert set(file.tensors) == set(tensors)
    assert file.metadata == {"format": "pt"}
    for name, expected in tensors.items():
        assert file.tensors[name].dtype == dtype
        assert file.tensors[name].shape == tuple(expected.shape)
        assert same(file.read(name), expected), name


def test_reads_the_bundled_checkpoint_as_the_library_does(emoji_checkpoint: Path) -> None:
    path = emoji_checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    expected = load_file(path)
    content = path.read_bytes()
    file = SafetensorsFile(str(path))
    assert set(file.tensors) == set(expected)
    assert all(same(file.read(name), value) for name, value in expected.items())
    offsets = [entry.offset for entry in file.tensors.values()]
    assert offsets == sorted(offsets)
    for name, entry in file.tensors.items():
        stored = content[entry.offset : entry.offset + entry.length]
        assert stored == expected[name].reshape(-1).view(torch.uint8).numpy().tobytes()


def test_a_tensor_is_its_own_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"a": tensor(), "b": tensor(offsets=(8, 16))}, struct.pack("<4f", 1, 2, 3, 4))
    file = SafetensorsFile(path)
    assert file.path == path
    first = file.read("a")
    first.zero_()
    assert file.read("a").tolist() == [1, 2]
    second = file.read("b")
    assert second.tolist() == [3, 4]
    assert path.read_bytes()[-16:] == struct.pack("<4f", 1, 2, 3, 4)


def test_the_order_is_that_of_the_bytes(tmp_path: Path) -> None:
    header = {"b": tensor(offsets=(8, 16)), "a": tensor(), "none": tensor((0,), (8, 8))}
    file = SafetensorsFile(write(tmp_path / "x", header, b"\0" * 16))
    assert list(file.tensors) == ["a", "none", "b"]
    start = (tmp_path / "x").stat().st_size - 16
    assert file.tensors["b"] == TensorEntry(torch.float32, (2,), start + 8, 8)
    assert file.metadata == {}


def test_unknown_tensors_are_no_secret(tmp_path: Path) -> None:
    file = SafetensorsFile(write(tmp_path / "x", {"a": tensor()}))
    with pytest.raises(KeyError, match="b"):
        file.read("b")


def test_a_file_that_shrinks_is_named(tmp_path: Path) -> None:
    header = {"a": tensor((2**18,), (0, 2**20))}
    file = SafetensorsFile(write(tmp_path / "x", header, b"\0" * 2**20))
    os.truncate(tmp_path / "x", (tmp_path / "x").stat().st_size - 1)
    with pytest.raises(
        ValueError, match=r"x is truncated or corrupt; download it again \(it changed before a was read\)"
    ):
        file.read("a")


GOOD = json.dumps(tensor()).encode()
ATTACKS: dict[str, tuple[Any, bytes, str]] = {
    "a key twice": (b'{"a": %s, "a": %s}' % (GOOD, GOOD), b"\0" * 8, "the key 'a' occurs twice"),
    "a field twice": (b'{"a": {"dtype": "F16", %s}' % GOOD[1:], b"\0" * 8, "the key 'dtype' occurs twice"),
    "overlapping": ({"a": tensor(), "b": tensor(offsets=(4, 12))}, b"\0" * 12, "b overlaps the tensor before it: .* 4"),
    "the same bytes": ({"a": tensor(), "b": tensor()}, b"\0" * 8, "b overlaps the tensor before it"),
    "a gap": (
        {"a": tensor(), "b": tensor(offsets=(12, 20))},
        b"\0" * 20,
        "b leaves a gap before it: .* 12",
    ),
    "a gap at the start": ({"a": tensor(offsets=(4, 12))}, b"\0" * 12, "a leaves a gap before it"),
    "longer": ({"a": tensor()}, b"\0" * 9, r"its header describes \d+ bytes, and it has \d+"),
    "shorter": ({"a": tensor()}, b"\0" * 7, r"its header describes \d+ bytes, and it has \d+"),
    "a terabyte": ({"a": tensor([2**38], [0, 2**40])}, b"\0" * 8, r"its header describes \d{13} bytes"),
    "backwards": ({"a": tensor(offsets=(8, 0))}, b"\0" * 8, "a has unusable data_offsets"),
    "negative offsets": ({"a": tensor(offsets=(-8, 0))}, b"\0" * 8, "a has unusable data_offsets"),
    "three offsets": ({"a": tensor(offsets=(0, 8, 8))}, b"\0" * 8, "a has unusable data_offsets"),
    "offsets of 70 bits": ({"a": tensor(offsets=(0, 2**70))}, b"\0" * 8, "a has unusable data_offsets"),
    "a fraction": ({"a": tensor(offsets=(0, 8.0))}, b"\0" * 8, "a has unusable data_offsets"),
    "a negative size": ({"a": tensor((-2,))}, b"\0" * 8, "a has an unusable shape"),
    "two negative sizes": ({"a": tensor((-2, -1))}, b"\0" * 8, "a has an unusable shape"),
    "a size of 70 bits": ({"a": tensor((2**70,))}, b"\0" * 8, "a has an unusable shape"),
    "a truth for a size": ({"a": tensor((2, True))}, b"\0" * 8, "a has an unusable shape"),
    "no shape": ({"a": tensor(None)}, b"\0" * 8, "a has an unusable shape"),
    "an overflowing product": ({"a": tensor((2**32, 2**32))}, b"\0" * 8, r"a is F32 of shape .*, and has 8 bytes"),
    "a product of 2**64 + 2": ({"a": tensor((2**63 + 1, 2), dtype="U8")}, b"\0" * 2, "a has an unusable shape"),
    "another number of bytes": ({"a": tensor((3,))}, b"\0" * 8, r"a is F32 of shape \[3\], and has 8 bytes"),
    "dimensions without end": ({"a": tensor([2**62] * 100_000)}, b"\0" * 8, "a has an unusable shape"),
    "an unknown dtype": ({"a": tensor(dtype="F33")}, b"\0" * 8, "a has the dtype 'F33'; known: BOOL"),
    "a dtype that is a list": ({"a": tensor(dtype=["F32"])}, b"\0" * 8, "a has the dtype"),
    "a tensor that is a number": ({"a": 1}, b"", "a must be described by an object, got int"),
    "a list": ([], b"", "its header must be a JSON object, got list"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", "its __metadata__ must be an object of strings"),
    "metadata that are a list": ({"__metadata__": []}, b"", "its __metadata__ must be an object of strings"),
    "deep": (b'{"a": ' + b"[" * 100_000, b"", "it is nested too deeply"),
    "no JSON": (b"{", b"", "Expecting"),
    "not UTF-8": (b'{"\xff": %s}' % GOOD, b"\0" * 8, "'utf-8' codec can't decode"),
    "a byte order mark": (b"\xef\xbb\xbf{}", b"", "BOM"),
    "not a number": (b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}', b"\0" * 8, "NaN is no number"),
    "a number of 10**5 digits": (b'{"a": %s}' % (b"1" * 100_000), b"", "Exceeds the limit"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_headers_are_refused_by_name(tmp_path: Path, attack: str) -> None:
    header, data, reason = ATTACKS[attack]
    path = write(tmp_path / "x.safetensors", header, data)
    with pytest.raises(
        ValueError, match=rf"(?s)^{re.escape(str(path))} is truncated or corrupt; download it again \(.*{reason}"
    ):
        SafetensorsFile(path)
    # nothing that the library refuses is read here; it lets one of these pass
    if attack == "a key twice":
        with safe_open(path, framework="pt") as file:
            assert list(file.keys()) == ["a"]
    else:
        with pytest.raises(SafetensorError):
            safe_open(path, framework="pt")


@pytest.mark.parametrize("length", [2**62, 2**63, 2**64 - 1, 10**15, 100_000_001])
def test_a_header_without_end_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(ValueError, match=rf"\(it claims a header of {length} bytes; at most 100000000 are allowed\)"):
        SafetensorsFile(write(tmp_path / "x", {}, length=length))


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(it claims a header of 11 bytes, and has 10\)"):
        SafetensorsFile(write(tmp_path / "x", {}, length=11))


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_file_shorter_than_a_header_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "x").write_bytes(b"\0" * size)
    with pytest.raises(ValueError, match=rf"\(it has {size} bytes, less than the length of a header\)"):
        SafetensorsFile(tmp_path / "x")


def test_a_git_lfs_pointer_is_recognized(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 334643276\n")
    with pytest.raises(ValueError, match=r"x is a Git LFS pointer.*git lfs pull"):
        SafetensorsFile(tmp_path / "x")


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "pipe", tmp_path / "folder", Path("/dev/zero")):
        with pytest.raises(ValueError, match=rf"{path} is not a regular file, and is refused"):
            SafetensorsFile(path)
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        SafetensorsFile(tmp_path / "none")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_stays_at_one_tensor(tmp_path: Path) -> None:
    """Resident memory, which counts the pages of a mapped file; and a lie about a length costs nothing."""
    mebibytes = 32
    large = {f"tensor.{number}": torch.ones(mebibytes * 2**20, dtype=torch.uint8) for number in range(8)}
    save_file(large, tmp_path / "large")
    write(tmp_path / "header", {}, length=2**62)
    write(tmp_path / "tensor", {"a": tensor((2**50,), (0, 2**52))})
    script = """
import sys
from pathlib import Path
from safelight.reference.safetensors_file import SafetensorsFile

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM:"))

before = peak()
for liar in ("header", "tensor"):
    try:
        SafetensorsFile(liar)
    except ValueError:
        print(peak() - before)
file = SafetensorsFile("large")
for name, entry in file.tensors.items():
    assert int(file.read(name).count_nonzero()) == entry.length
print(peak() - before)
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    *liars, honest = map(int, result.stdout.split())
    assert len(liars) == 2
    assert max(liars) < 20
    assert mebibytes <= honest < 3 * mebibytes
