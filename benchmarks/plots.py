"""The plots of a report: latency against drift, stages, memory and cold start, roofline, time over work."""

from collections.abc import Mapping, Sequence
from typing import Any

from .room import ITEM_BYTES
from .rows import Row
from .svg import INK, Axes, Figure, Line2D, Patch, label_points, name_of, styled, svg

#: of Okabe and Ito, who chose them for all kinds of sight; without black and yellow, which some page would hide
_COLOURS: Mapping[str, str] = {
    "safelight": "#0072b2",
    "reference": "#888888",
    "diffusers": "#e69f00",
    "optimum-onnx": "#009e73",
    "OpenVINO GenAI": "#cc79a7",
    "stable-diffusion.cpp": "#d55e00",
}
_OTHER = "#56b4e9"
_STAGES: Mapping[str, str] = {"text": "#cc79a7", "denoise": "#0072b2", "decode": "#e69f00", "other": "#888888"}
_MARKERS: Mapping[str, str] = {"fp32": "o", "bf16": "s", "fp16": "^", "int8": "D"}
_DASHES: Mapping[str, str] = {"fp32": "-", "bf16": "--", "fp16": "-.", "int8": ":"}
_LEAST_DIFFERENCE = 1e-4  # in 1/255, at the foot of a logarithmic axis
_WIDTH = 9.0  # inches


def drift_plot(rows: Sequence[Row], name: str) -> str:
    """Seconds of a picture against its difference from the reference's; a row's number stands beside its point.

    Args:
        rows: of a case, in the order of their numbers.
        name: what the ids in the SVG begin with.
    """
    shown = [
        (number, row)
        for number, row in enumerate(rows, start=1)
        if row.comparable and "total" in row.warm_seconds and row.difference is not None
    ]
    if not shown:
        return ""
    with styled():
        figure, axes = _figure(3.6)
        points = []
        for number, row in shown:
            assert row.difference is not None
            x, y = row.warm_seconds["total"].median, max(row.difference, _LEAST_DIFFERENCE)
            points.append((x, y, str(number)))
            axes.plot([x], [y], _MARKERS[row.precision], **_dot(row), gid=name_of(name, "drift", row.contender))
        axes.set_xlim(0, 1.15 * max(x for x, _, _ in points))
        axes.set_yscale("log")
        axes.set_ylim(_LEAST_DIFFERENCE / 2, 400)
        axes.set_xlabel("seconds a picture, warm (median)")
        axes.set_ylabel("largest difference, 1/255")
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=":")
        axes.annotate(
            "float32 has to stay below",
            (1, 1),
            (0, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
        label_points(axes, points)
        _precision_legend(axes, [row for _, row in shown])
        return svg(figure, name + "-drift", "Seconds a picture against drift")


def stages_plot(rows: Sequence[Row], base: Row | None, name: str) -> str:
    """The seconds of a picture, stage by stage; the ratios are to `base`."""
    shown = [(number, row) for number, row in enumerate(rows, 1) if row.comparable and "total" in row.warm_seconds]
    if not shown:
        return ""
    with styled():
        figure, axes = _figure(0.9 + 0.3 * len(shown))
        for place, (_, row) in enumerate(shown):
            start = 0.0
            for stage, seconds in _parts(row).items():
                axes.barh(
                    place,
                    seconds,
                    left=start,
                    color=_STAGES[stage],
                    edgecolor=INK,
                    linewidth=0.4,
                    gid=name_of(name, "stages", row.contender, stage),
                )
                start += seconds
            base_total = base.warm_seconds.get("total") if base else None
            _at_the_end(axes, place, start, f"{_number(start)} s", start / base_total.median if base_total else None)
        _rows_axis(axes, shown)
        axes.set_xlabel("seconds a picture, warm (median)")
        handles = [
            Patch(facecolor=colour, edgecolor=INK, linewidth=0.4, label=stage) for stage, colour in _STAGES.items()
        ]
        _legend_above(axes, handles)
        return svg(figure, name + "-stages", "Stages of a picture")


def start_plot(rows: Sequence[Row], base: Row | None, name: str) -> str:
    """Peak memory, and the seconds from the start of a process to its first picture."""
    shown = [(number, row) for number, row in enumerate(rows, 1) if row.comparable and row.peak_memory is not None]
    if not shown:
        return ""
    with styled():
        figure = Figure(figsize=(_WIDTH, 0.9 + 0.3 * len(shown)), layout="constrained")
        memory, cold = figure.subplots(1, 2, sharey=True)
        for place, (_, row) in enumerate(shown):
            assert row.peak_memory is not None
            size = row.peak_memory / 2**20
            memory.barh(place, size, **_bar(row), gid=name_of(name, "memory", row.contender))
            ratio = row.peak_memory / base.peak_memory if base and base.peak_memory else None
            _at_the_end(memory, place, size, f"{size:.0f}", ratio)
            if row.cold_seconds is not None:
                seconds = row.cold_seconds.median
                cold.barh(place, seconds, **_bar(row), gid=name_of(name, "cold", row.contender))
                ratio = seconds / base.cold_seconds.median if base and base.cold_seconds else None
                _at_the_end(cold, place, seconds, f"{_number(seconds)} s", ratio)
        _rows_axis(memory, shown)
        memory.set_xlabel("peak memory, MiB")
        cold.set_xlabel("seconds, process start to saved picture")
        cold.grid(axis="y", visible=False)
        cold.set_xlim(0, max(1e-9, cold.get_xlim()[1] * 1.25))
        return svg(figure, name + "-start", "Memory and cold start")


def roofline_plot(rows: Sequence[Row], work: Mapping[str, Any], ceiling: Mapping[str, Any], name: str) -> str:
    """Operations a second over operations a byte: a step filled, the decoder hollow, under what the machine reaches."""
    shown = [(number, row) for number, row in enumerate(rows, 1) if row.comparable and row.flops_per_second]
    if not shown or not ceiling:
        return ""
    with styled():
        figure, axes = _figure(3.8)
        bandwidth = ceiling["bandwidth"]["bytes_per_second"]
        points = []
        for number, row in shown:
            for stage, filled in (("step", True), ("decode", False)):
                if stage not in row.flops_per_second:
                    continue
                x = work[stage]["flops"] / (work[stage]["numbers"] * ITEM_BYTES[row.precision])
                y = row.flops_per_second[stage] / 1e9
                points.append((x, y, str(number)))
                hollow = (
                    {}
                    if filled
                    else {"markerfacecolor": "none", "markeredgecolor": _colour(row), "markeredgewidth": 1.4}
                )
                gid = name_of(name, "roofline", row.contender, stage)
                axes.plot([x], [y], _MARKERS[row.precision], **(_dot(row) | hollow), gid=gid)
        axes.set_xscale("log")
        axes.set_yscale("log")
        left, right = min(x for x, _, _ in points) / 4, max(x for x, _, _ in points) * 6
        for precision, best in ceiling["products"].items():
            top = best["flops_per_second"] / 1e9
            knee = 1e9 * top / bandwidth
            start = min(left, knee)
            axes.plot(
                [start, knee, max(right, knee)],
                [start * bandwidth / 1e9, top, top],
                _DASHES[precision],
                color=INK,
                linewidth=1,
                label=f"{precision}: {top:.0f} GFLOP/s",
                gid=name_of(name, "ceiling", precision),
            )
        axes.set_xlim(left, right)
        axes.set_xlabel("operations a byte, each operand read once and each result written once")
        axes.set_ylabel("GFLOP/s")
        label_points(axes, points)
        axes.legend(loc="lower right", title=f"products of matrices; memory {bandwidth / 1e9:.0f} GB/s", fontsize=8)
        return svg(figure, name + "-roofline", "Roofline")


def scaling_plot(curves: Sequence[Mapping[str, Any]], name: str) -> str:
    """Seconds over batch, pixels and steps, beside the power of the operations."""
    axes_of = [axis for axis in ("batch", "pixels", "steps") if any(c["axis"] == axis and c["points"] for c in curves)]
    if not axes_of:
        return ""
    contenders = list(dict.fromkeys(curve["contender"] for curve in curves))
    colours = dict(zip(contenders, list(_COLOURS.values()) * len(contenders), strict=False))
    with styled():
        figure = Figure(figsize=(_WIDTH, 3.6), layout="constrained")
        panels = figure.subplots(1, len(axes_of), squeeze=False)[0]
        for axes, axis in zip(panels, axes_of, strict=True):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            for curve in curves:
                if curve["axis"] == axis and curve["points"]:
                    _curve(axes, curve, colours[curve["contender"]], name_of(name, axis, curve["contender"]))
            low, high = axes.get_ylim()
            axes.set_ylim(low, high * (high / low) ** 0.45)  # room for the legend
            ticks = sorted({point["amount"] for curve in curves if curve["axis"] == axis for point in curve["points"]})
            axes.set_xticks(ticks, [_amount(axis, tick) for tick in ticks])
            axes.minorticks_off()
            axes.set_xlabel({"batch": "pictures at once", "pixels": "size in pixels", "steps": "steps"}[axis])
            axes.set_title({"batch": "batch", "pixels": "size", "steps": "steps"}[axis])
            axes.legend(fontsize=8, loc="upper left")
        panels[0].set_ylabel("seconds")
        return svg(figure, name + "-scaling", "Seconds over work")


def _curve(axes: Axes, curve: Mapping[str, Any], colour: str, gid: str) -> None:
    amounts = [point["amount"] for point in curve["points"]]
    seconds = [point["seconds"]["median"] for point in curve["points"]]
    slope = f", slope {curve['slope']:.2f}" if curve["slope"] is not None else ""
    axes.plot(amounts, seconds, "o-", color=colour, label=f"{curve['contender']}{slope}", gid=gid)
    flops = [point["flops"] / curve["points"][0]["flops"] * seconds[0] for point in curve["points"]]
    expected = f", slope {curve['work_slope']:.2f}" if curve["work_slope"] is not None else ""
    label = f"operations{expected}" if len(axes.lines) == 1 else None  # those of the other contenders are the same
    axes.plot(amounts, flops, ":", color=INK, linewidth=1, label=label)


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _colour(row: Row) -> str:
    return _COLOURS.get(row.tool, _OTHER)


def _dot(row: Row) -> dict[str, Any]:
    return {"markersize": 7, "markerfacecolor": _colour(row), "markeredgecolor": INK, "markeredgewidth": 0.6}


def _bar(row: Row) -> dict[str, Any]:
    return {"color": _colour(row), "edgecolor": INK, "linewidth": 0.4}


def _parts(row: Row) -> dict[str, float]:
    """The seconds of the stages that a tool tells apart, and of the rest."""
    total = row.warm_seconds["total"].median
    stages = ("text", "denoise", "decode")
    known: dict[str, float] = {stage: row.warm_seconds[stage].median for stage in stages if stage in row.warm_seconds}
    return {**known, "other": max(0.0, total - sum(known.values()))}


def _rows_axis(axes: Axes, shown: Sequence[tuple[int, Row]]) -> None:
    axes.set_yticks(range(len(shown)), [f"{row.contender}  {number}" for number, row in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.25)  # room for the numbers


def _at_the_end(axes: Axes, place: int, length: float, text: str, ratio: float | None) -> None:
    also = "" if ratio is None else f"   x {ratio:.2f}"
    axes.annotate(text + also, (length, place), (4, 0), textcoords="offset points", va="center", fontsize=8)


def _legend_above(axes: Axes, handles: Sequence[Any]) -> None:
    axes.legend(
        handles=list(handles),
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=len(handles),
        fontsize=8,
        borderaxespad=0.2,
    )


def _precision_legend(axes: Axes, rows: Sequence[Row]) -> None:
    tools = {row.tool: _colour(row) for row in rows}
    precisions = dict.fromkeys(row.precision for row in rows)
    line = Line2D
    handles = [
        line([], [], linestyle="", marker="o", markersize=7, color=colour, label=tool) for tool, colour in tools.items()
    ]
    handles += [
        line(
            [],
            [],
            linestyle="",
            marker=_MARKERS[precision],
            markersize=6,
            markerfacecolor="none",
            markeredgecolor=INK,
            label=precision,
        )
        for precision in precisions
    ]
    _legend_above(axes, handles)


def _number(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds < 100 else f"{seconds:.0f}"


def _amount(axis: str, amount: int) -> str:
    return f"{round(amount**0.5)}²" if axis == "pixels" else str(amount)
