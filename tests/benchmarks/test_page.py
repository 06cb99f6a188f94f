"""The page of a report: it parses, its plots have their data, and their labels do not cover one another."""

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text

from safelight.benchmarks.cases import cases, named_model
from safelight.benchmarks.flops import Work
from safelight.benchmarks.measure import Plan
from safelight.benchmarks.page import page
from safelight.benchmarks.report import report
from safelight.benchmarks.rows import Row, Spread
from safelight.benchmarks.scaling import Curve, Point
from safelight.benchmarks.suite import Measured
from safelight.benchmarks.svg import Figure, label_points, name_of, styled
from safelight.runtime.cli import main

VOID = {"meta", "link", "br", "hr", "img"}


class Page(HTMLParser):
    """The elements of a page, which have to be closed in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.ids += [str(value) for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def spread(median: float) -> Spread:
    return Spread(median=median, least=0.9 * median, most=1.2 * median)


def row(name: str, precision: str, seconds: float, difference: float, **more: Any) -> Row:
    stages = {"total": spread(seconds), "text": spread(0.1), "denoise": spread(0.8 * seconds), "step": spread(0.1)}
    found = Row(
        contender=name,
        tool=name.partition(" ")[0],
        precision=precision,
        difference=difference,
        psnr=50.0,
        warm_seconds=stages | {"decode": spread(0.1 * seconds)},
        cold_seconds=spread(2 * seconds),
        peak_memory=10**9,
        flops_per_second={"step": 1e11, "decode": 5e10, "total": 9e10},
    )
    for field, value in more.items():
        setattr(found, field, value)
    return found


ROWS = [
    row("reference (PyTorch)", "fp32", 4.0, 0.0),
    row("safelight onnxruntime", "fp32", 3.9, 0.001),
    row("safelight openvino bf16", "bf16", 2.0, 6.0),
    row("diffusers <b>", "fp32", 4.0, 0.001),
    row("other", "fp32", 1.0, 90.0),
    Row(contender="absent", missing="make <it>"),
]
SHOWN = ROWS[:4]


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    (case,) = cases([named_model("emoji")], prompt="a <cat> & a dog")
    work = {stage: Work(flops=10**10, numbers=10**8) for stage in ("text", "step", "decode")}
    ceiling = {
        "products": {
            name: {"flops_per_second": 2e11 * factor, "by": "numpy 2", "side": 1024}
            for name, factor in (("fp32", 1), ("bf16", 4))
        },
        "bandwidth": {"bytes_per_second": 1e10, "array_bytes": 1},
    }
    points = [Point(amount=n, seconds=spread(float(n)), seconds_each=1.0, flops=n * 10**9) for n in (1, 2, 4)]
    curves = [
        Curve(axis=axis, contender="safelight onnxruntime", model="emoji", case=case.name, points=points).to_dict()
        for axis in ("batch", "pixels", "steps")
    ]
    curves[0]["left_out"] = {"8": "too large"}
    measured = Measured(case=case, rows=ROWS, compared_with=ROWS[0].contender, work=work).to_dict()
    plan = Plan(rounds=1, pictures=1, cold_runs=1, timeout=1)
    found = report([measured], plan, against="diffusers <b>", ceiling=ceiling, scaling=curves)
    return dict(json.loads(json.dumps(found)))


@pytest.fixture(scope="module")
def text(content: dict[str, Any]) -> str:
    return page(content)


def figures(text: str) -> dict[str, ET.Element]:
    """The plots by their kind."""
    found = re.findall(r'<figure class="([a-z]+)">(<svg.*?</svg>)', text, re.DOTALL)
    return {kind: ET.fromstring(svg) for kind, svg in found}


def ids(plot: ET.Element) -> set[str]:
    return {str(element.get("id")) for element in plot.iter() if element.get("id")}


def texts(plot: ET.Element) -> list[str]:
    return ["".join(element.itertext()) for element in plot.iter() if element.tag.endswith("}text")]


def test_a_page_parses_and_stands_alone(text: str) -> None:
    parsed = Page()
    parsed.feed(text)
    parsed.close()
    assert parsed.open == []
    assert "script" not in parsed.seen
    assert not re.search(r'(src|href)="(?!#)', text), "nothing is fetched"
    assert parsed.seen.count("svg") == 5
    assert "<cat>" not in text
    assert "make &lt;it&gt;" in text
    assert "too large" in text


def test_every_plot_has_its_data(text: str) -> None:
    plots = figures(text)
    assert list(plots) == ["drift", "stages", "start", "roofline", "scaling"]
    for each in SHOWN:
        assert name_of("case-0", "drift", each.contender) in ids(plots["drift"])
        assert {name_of("case-0", "stages", each.contender, stage) for stage in ("text", "denoise", "decode")} <= ids(
            plots["stages"]
        )
        assert {name_of("case-0", kind, each.contender) for kind in ("memory", "cold")} <= ids(plots["start"])
        assert {name_of("case-0", "roofline", each.contender, s) for s in ("step", "decode")} <= ids(plots["roofline"])
    for kind in ("drift", "stages", "start", "roofline"):
        assert not any(name.rpartition("-")[2] == "other" for name in ids(plots[kind]) if kind != "stages")
    assert {name_of("case-0", "ceiling", precision) for precision in ("fp32", "bf16")} <= ids(plots["roofline"])
    assert {name_of("over-work", axis, "safelight onnxruntime") for axis in ("batch", "pixels", "steps")} <= ids(
        plots["scaling"]
    )
    assert any(re.fullmatch(r"2 s\s+x 0\.50", label) for label in texts(plots["stages"]))


def test_a_bar_is_as_long_as_its_seconds(text: str) -> None:
    plot = figures(text)["stages"]

    def length(contender: str) -> float:
        (bar,) = (each for each in plot.iter() if each.get("id") == name_of("case-0", "stages", contender, "denoise"))
        path = next(element.get("d") for element in bar.iter() if element.tag.endswith("}path"))
        across = [float(x) for x, _ in re.findall(r"([\d.]+) ([\d.]+)", str(path))]
        return max(across) - min(across)

    ratio = length("safelight openvino bf16") / length("reference (PyTorch)")
    assert ratio == pytest.approx(0.5, rel=0.01)


def test_plots_have_the_pages_colours(text: str) -> None:
    assert "currentColor" in text
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"(fill|stroke): #(000000|ffffff)", text), "what a dark or a light page would hide"


def test_labels_stand_apart() -> None:
    generator = np.random.default_rng(0)
    points = [(4 + 0.01 * x, 1e-3 * (1 + 0.1 * y), str(n + 1)) for n, (x, y) in enumerate(generator.random((12, 2)))]
    with styled():
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 5], [1e-4, 100], "o")
        axes.set_yscale("log")
        label_points(axes, points)
        figure.draw_without_rendering()
        boxes = [Text.get_window_extent(each) for each in axes.texts]  # without the lines to their points
    assert [each.get_text() for each in axes.texts] == [text for _, _, text in points]
    assert not any(one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n])


def test_a_page_is_made_of_a_recorded_report(content: dict[str, Any], text: str, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text(json.dumps(content))
    assert main(["bench", "--from-json", str(file), "--html", str(tmp_path / "new" / "page.html")]) == 0
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8") == text


def test_a_report_without_plots_worth_drawing_is_a_page(content: dict[str, Any]) -> None:
    (case,) = content["cases"]
    bare = {**content, "cases": [{**case, "rows": case["rows"][-1:]}], "ceiling": None, "scaling": []}
    text = page(bare)
    assert "<svg" not in text
    assert "make &lt;it&gt;" in text
