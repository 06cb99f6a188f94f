"""What the machine reaches: the products are products, and what cannot be had says why."""

import json
from pathlib import Path

import numpy as np
import pytest

from safelight.benchmarks import ceiling
from safelight.benchmarks.ceiling import bandwidth, ceilings, flops, numpy_product, openvino_product, torch_product


def test_a_product_takes_two_operations_for_each_pair() -> None:
    assert flops(3) == 2 * 3 * 3 * 3


def test_products_are_those_of_the_matrices() -> None:
    left, right = ceiling._matrices(64)
    expected = left @ right
    np.testing.assert_allclose(numpy_product(64, "fp32")(), expected, rtol=1e-5, atol=1e-4)
    best, _ = ceilings([64])
    for precision, tolerance in (("fp32", 1e-4), ("bf16", 0.5), ("int8", 2.0)):
        if precision not in best:  # a processor without it
            continue
        found = openvino_product(64, precision)()
        (array,) = found.to_dict().values()  # type: ignore[attr-defined]
        np.testing.assert_allclose(array, expected, atol=tolerance)
        assert (np.abs(array - expected).max() < 1e-4) == (precision == "fp32")
    assert torch_product(64, "int8")().dtype.itemsize == 4  # type: ignore[attr-defined]


def test_the_best_of_all_libraries_counts_and_the_others_say_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(side: int, precision: str) -> ceiling.Product:
        return lambda: None

    def broken(side: int, precision: str) -> ceiling.Product:
        raise RuntimeError("no such thing\nat all")

    monkeypatch.setattr(ceiling, "_LIBRARIES", {"numpy": slow, "torch": broken, "openvino": slow})
    seconds = iter([2.0, 1.0] * 3)
    monkeypatch.setattr(ceiling, "_seconds", lambda _: next(seconds))
    best, missing = ceilings([8])
    assert {name: each.flops_per_second for name, each in best.items()} == dict.fromkeys(best, flops(8))
    assert set(best) == {"fp32", "bf16", "int8"}
    assert all(each.by.startswith("openvino") for each in best.values())
    assert missing == {f"torch {precision}": "no such thing" for precision in best}
    assert ceilings([8], seconds=0)[0] == {}


def test_a_copy_counts_what_is_read_and_written() -> None:
    found = bandwidth(2**22, runs=2)
    assert found.array_bytes == 2**22
    assert 1e7 < found.bytes_per_second < 1e12


def test_the_file_has_what_a_report_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "_COPY_BYTES", (2**22, 2**22))
    ceiling.main([str(tmp_path / "found.json"), "--sides", "64"])
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["products"]["fp32"]["flops_per_second"] > 1e6
    assert content["products"]["fp32"]["side"] == 64
    assert content["bandwidth"]["bytes_per_second"] > 0
    assert content["missing"]["numpy bf16"] == "NumPy has no products in bf16"
