"""The measurements as JSON, with the machine and the versions that they were made on, and as tables for a terminal."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from .machine import machine, versions
from .measure import Plan
from .rows import EQUAL_PSNR, Row, Spread

COLUMNS = (
    "contender",
    "precision",
    "max difference",
    "PSNR",
    "picture",
    "x",
    "cold start",
    "x",
    "memory",
    "x",
    "of ceiling",
)
STAGE_COLUMNS = ("contender", "open", "text", "step", "denoise", "decode")


def report(
    cases: Sequence[Mapping[str, Any]],
    plan: Plan,
    *,
    against: str,
    ceiling: Mapping[str, Any] | None = None,
    scaling: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Everything that was measured, and on what.

    Args:
        cases: see `Measured.to_dict`.
        plan: how often everybody was measured.
        against: whose numbers the others' are ratios to.
        ceiling: what `ceiling` wrote.
        scaling: see `Curve.to_dict`.
    """
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "plan": {
            "rounds": plan.rounds,
            "pictures": plan.pictures,
            "cold_runs": plan.cold_runs,
            "timeout": plan.timeout,
            "threads": plan.threads,
        },
        "against": against,
        "ceiling": ceiling,
        "cases": list(cases),
        "scaling": list(scaling),
    }


def recorded_rows(case: Mapping[str, Any]) -> list[Row]:
    """The rows of a case of a report's JSON."""
    return [Row.from_dict(row) for row in case["rows"]]


def tables(content: Mapping[str, Any]) -> str:
    """All that a report says, for a terminal."""
    parts = [ceiling_lines(content.get("ceiling"))]
    for case in content["cases"]:
        parts.append(f"== {case['case']['name']}\n{table(recorded_rows(case), content['against'])}")
        if case["compared_with"]:
            parts[-1] += f"\npictures are compared with that of {case['compared_with']}"
    parts.append("\n".join(map(_curve_line, content.get("scaling", ()))))
    return "\n\n".join(part for part in parts if part)


def table(rows: Sequence[Row], against: str) -> str:
    """Two tables, a row a contender; the columns x are ratios to one of them, where less is better."""
    base = base_row(rows, against)
    shown = [row for row in rows if row.missing is None]
    stages = [row for row in shown if row.comparable and row.warm_seconds]
    lines = [*_aligned([COLUMNS, *(cells(row, base) for row in shown)]), ""]
    if stages:
        lines += [*_aligned([STAGE_COLUMNS, *map(stage_cells, stages)]), ""]
    lines += [f"{row.contender}: {remark}" for row in rows for remark in remarks(row)]
    lines.append(f"x: ratio to {against}" if base else f"x: no ratios, because {against} took no part or differs")
    return "\n".join(lines)


def base_row(rows: Sequence[Row], against: str) -> Row | None:
    """The row that the others are ratios to, if it may be one."""
    return next((row for row in rows if row.contender == against and row.comparable), None)


def cells(row: Row, base: Row | None) -> tuple[str, ...]:
    """A row of the first table."""
    start = (row.contender, row.precision)
    if row.missing is not None:
        return (*start, "not measured", "", "-", "", "-", "", "-", "", "-")
    if row.failure is not None:
        return (*start, "FAILED", "", "-", "", "-", "", "-", "", "-")
    if not row.comparable:
        difference = "" if row.difference is None else f"{row.difference:.4f} / 255 "
        return (*start, f"{difference}DIFFERS", psnr(row), "-", "", "-", "", "-", "", "-")
    warm, cold, memory = row.warm_seconds.get("total"), row.cold_seconds, row.peak_memory
    return (
        *start,
        "-" if row.difference is None else f"{row.difference:.4f} / 255",
        psnr(row),
        seconds(warm),
        _ratio(warm, base.warm_seconds.get("total") if base else None),
        seconds(cold),
        _ratio(cold, base.cold_seconds if base else None),
        "-" if memory is None else f"{memory / 2**20:.0f} MiB",
        f"{memory / base.peak_memory:.2f}" if memory and base and base.peak_memory else "",
        "-" if row.ceiling_share is None else f"{row.ceiling_share:.0%}",
    )


def stage_cells(row: Row) -> tuple[str, ...]:
    """A row of the second table."""
    return (
        row.contender,
        seconds(row.open_seconds),
        *(seconds(row.warm_seconds.get(stage)) for stage in ("text", "step", "denoise", "decode")),
    )


def remarks(row: Row) -> list[str]:
    """What a row has to say beside its numbers."""
    found = {
        "not measured: ": row.missing,
        "": row.failure,
        "DIFFERS: ": row.wrong,
        "not everything: ": row.left_out,
        "note: ": row.note,
        "in 8 bits: ": "its tool cuts off or rounds" if row.eight_bits else None,
    }
    return [f"{kind}{text}" for kind, text in found.items() if text is not None]


def psnr(row: Row) -> str:
    """Against the picture that all are compared with."""
    if row.psnr is None:
        return "-"
    return "equal" if row.psnr >= EQUAL_PSNR else f"{row.psnr:.1f} dB"


def seconds(spread: Spread | None) -> str:
    """Median, and from least to most."""
    if spread is None:
        return "-"
    digits = 4 if spread.median < 0.1 else 3 if spread.median < 10 else 1
    return f"{spread.median:.{digits}f} s ({spread.least:.{digits}f}..{spread.most:.{digits}f})"


def _ratio(spread: Spread | None, base: Spread | None) -> str:
    return f"{spread.median / base.median:.2f}" if spread and base else ""


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return [text[0], "  ".join("-" * width for width in widths), *text[1:]]


def ceiling_lines(ceiling: Mapping[str, Any] | None) -> str:
    """What the machine reaches, a precision a line."""
    if not ceiling:
        return ""
    lines = [
        f"matrix products in {precision}: {best['flops_per_second'] / 1e9:.0f} GFLOP/s by {best['by']}"
        for precision, best in ceiling["products"].items()
    ]
    return "\n".join([*lines, f"copies of memory: {ceiling['bandwidth']['bytes_per_second'] / 1e9:.1f} GB/s"])


def _curve_line(curve: Mapping[str, Any]) -> str:
    return (
        f"{curve['model']}, {curve['contender']}: seconds go with {curve['axis']} to the power of "
        f"{curve['slope']:.2f}, operations to that of {curve['work_slope']:.2f}"
        if curve["slope"] is not None and curve["work_slope"] is not None
        else f"{curve['model']}, {curve['contender']}: too few points over {curve['axis']}"
    )
