"""A report as one page that stands alone: tables, plots, and how to read them."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .plots import drift_plot, roofline_plot, scaling_plot, stages_plot, start_plot
from .report import COLUMNS, STAGE_COLUMNS, base_row, cells, recorded_rows, remarks, stage_cells

_CSS = """
:root { --ink: #1d2126; --paper: #ffffff; --grid: #d9dde2; --soft: #f3f5f7; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --paper: #16191d; --grid: #3a4048; --soft: #20252b; }
}
body { color: var(--ink); background: var(--paper); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 80rem; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--grid); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 12px; margin: 1rem 0; }
th, td { padding: 0.25rem 0.6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--grid); }
th { background: var(--soft); } td.name, th.name { text-align: left; }
figure { margin: 1.5rem 0; } figure svg { width: 100%; height: auto; max-width: 60rem; }
figcaption { font-size: 13px; max-width: 60rem; }
code { background: var(--soft); padding: 0 0.2em; }
"""

_READING = """
<p>Every contender makes the same pictures, from the same starting noise, in processes of its own, in turns. What they
are compared with is a picture in float32. The largest difference is that of one channel of one pixel, in 1/255, before
rounding; PSNR is over all pixels. A row in float32 whose difference is above 1/255 is another picture: it has no times.
Rows in lower precision, or that leave work out, show how far they drift.</p>
<p>Times are medians, with the least and the most in brackets. A picture is warm: the process is up, and has made one
before. A cold start is from the start of a process to the saved picture. Memory is the most that was resident, weights
that are mapped from a file included. <b>x</b> is the ratio to {against}: below 1 is less. The ceiling is the fastest
product of matrices in the row's precision that any library here reaches; a share of it counts convolutions and products
alone.</p>
"""


def page(content: Mapping[str, Any]) -> str:
    """The page of a report's JSON."""
    body = [
        f"<h1>safelight bench, {escape(content['date'])}</h1>",
        _machine(content),
        "<h2>How to read this</h2>",
        _READING.format(against=escape(content["against"])),
    ]
    for index, case in enumerate(content["cases"]):
        body.append(_case(case, content, f"case-{index}"))
    if content.get("scaling"):
        body.append(_scaling(content["scaling"]))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>safelight bench</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _machine(content: Mapping[str, Any]) -> str:
    machine = content["machine"]
    memory = f"{machine['memory'] / 2**30:.1f} GiB" if machine.get("memory") else "unknown"
    lines = {
        "processor": machine["processor"],
        "processors": f"{machine['processors']}, {machine.get('usable', machine['processors'])} of them usable",
        "instructions that count": ", ".join(machine.get("flags", ())) or "none known",
        "memory": memory,
        "clocked by": machine.get("governor") or "not told",
        "system": f"{machine['system']}, Python {machine['python']}",
        "versions": ", ".join(f"{name} {found}" for name, found in content["versions"].items() if found),
    }
    ceiling = content.get("ceiling") or {"products": {}}
    for precision, best in ceiling["products"].items():
        lines[f"ceiling in {precision}"] = (
            f"{best['flops_per_second'] / 1e9:.0f} GFLOP/s, {best['by']}, matrices of {best['side']}"
        )
    if "bandwidth" in ceiling:
        lines["memory bandwidth"] = f"{ceiling['bandwidth']['bytes_per_second'] / 1e9:.1f} GB/s, copies"
    rows = "".join(
        f'<tr><td class="name">{escape(k)}</td><td class="name">{escape(v)}</td></tr>' for k, v in lines.items()
    )
    return f'<div class="scroll"><table class="machine">{rows}</table></div>'


def _case(case: Mapping[str, Any], content: Mapping[str, Any], name: str) -> str:
    rows = recorded_rows(case)
    base = base_row(rows, content["against"])
    about = case["case"]
    compared = f" Compared with the picture of {case['compared_with']}." if case["compared_with"] else ""
    numbered = [(str(number), *cells(row, base)) for number, row in enumerate(rows, 1)]
    stages = [
        (str(number), *stage_cells(row)) for number, row in enumerate(rows, 1) if row.comparable and row.warm_seconds
    ]
    parts = [
        f"<h2>{escape(about['name'])}</h2>",
        f"<p>“{escape(about['prompt'])}”, guidance {about['guidance_scale']:g}, seed {about['seed']}."
        f"{escape(compared)}</p>",
        _table(("#", *COLUMNS), numbered),
        _table(("#", *STAGE_COLUMNS), stages) if stages else "",
        _remarks(rows),
        _figure(
            "drift",
            drift_plot(rows, name),
            "Fast is left, faithful is low. The numbers are the rows' of the table.",
        ),
        _figure(
            "stages",
            stages_plot(rows, base, name),
            f"Where a picture's seconds go. x is the ratio to that of {content['against']}.",
        ),
        _figure("start", start_plot(rows, base, name), "What a process needs before and until its first picture."),
        _figure(
            "roofline",
            roofline_plot(rows, case["work"], content.get("ceiling") or {}, name),
            "A guided step (filled) and the decoder (hollow), under the fastest products of matrices and copies of "
            "memory that were measured on this machine. A point close to the line of its precision has little left to "
            "gain but by doing less.",
        ),
    ]
    return "\n".join(part for part in parts if part)


def _scaling(curves: Sequence[Mapping[str, Any]]) -> str:
    left_out = [
        f"<li>{escape(curve['contender'])}, {escape(curve['axis'])} {escape(amount)}: {escape(reason)}</li>"
        for curve in curves
        for amount, reason in curve["left_out"].items()
    ]
    about = curves[0]
    return "\n".join(
        [
            "<h2>Time over work</h2>",
            f"<p>Variants of {escape(about['case'])}.</p>",
            _figure(
                "scaling",
                scaling_plot(curves, "over-work"),
                "Both axes are logarithmic: a slope of 1 is proportional. The operations of batch and steps are "
                "proportional at most; those of the size grow faster than its pixels, because attention goes with "
                "their square. Seconds should not be steeper than the operations (dotted).",
            ),
            f"<ul>{''.join(left_out)}</ul>" if left_out else "",
        ]
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cell(tag: str, column: int, text: str) -> str:
        return f"<{tag}{' class=name' if column == 1 else ''}>{escape(text)}</{tag}>"

    head = "".join(cell("th", column, text) for column, text in enumerate(heads))
    body = "".join(f"<tr>{''.join(cell('td', column, text) for column, text in enumerate(row))}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _remarks(rows: Sequence[Any]) -> str:
    said = [f"<li>{escape(row.contender)}: {escape(remark)}</li>" for row in rows for remark in remarks(row)]
    return f"<ul>{''.join(said)}</ul>" if said else ""


def _figure(kind: str, svg: str, caption: str) -> str:
    return f'<figure class="{kind}">{svg}<figcaption>{escape(caption)}</figcaption></figure>' if svg else ""
