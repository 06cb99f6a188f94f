"""Figures as SVG that stands in a page: their lines and letters have the page's colours, be it light or dark."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("plots need matplotlib: pip install 'safelight[bench]'") from error

__all__ = ["INK", "Axes", "Figure", "Line2D", "Patch", "label_points", "name_of", "styled", "svg"]

#: stand for the page's own colours until the SVG is written
INK, _GRID = "#0a0b0c", "#0d0e0f"
_STYLE: Any = {  # whose names matplotlib's types spell out
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "font.size": 9,
    "hatch.linewidth": 0.6,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "grid.color": _GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "axes.titlesize": 10,
}


def styled() -> AbstractContextManager[None]:
    """Within it, figures look as these do."""
    return mpl.rc_context(_STYLE)


#: where a label may stand, from its point: the nearer ones first
_DISTANCES = (8, 16, 26, 38, 52)  # pixels
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
_LETTER = (8, 12)  # pixels that one takes, about

#: left, low, right, high, in pixels
Box = tuple[float, float, float, float]


def label_points(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Puts a short text beside each point where there is room, with a line to it where that is not next to it."""
    figure: Any = axes.figure  # of no other figure a part
    figure.draw_without_rendering()  # so that pixels are known
    places = axes.transData.transform([(x, y) for x, y, _ in points])
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    for (x, y, text), (at_x, at_y) in zip(points, places, strict=True):
        boxes = list(_boxes(at_x, at_y, text))
        place = next((index for index, box in enumerate(boxes) if not _overlaps(box, taken)), 0)
        left, low, _, _ = boxes[place]
        taken.append(boxes[place])
        line = {"arrowstyle": "-", "linewidth": 0.4, "color": INK, "shrinkA": 1, "shrinkB": 4}
        axes.annotate(
            text,
            (x, y),
            ((left - at_x) * 72 / figure.dpi, (low - at_y) * 72 / figure.dpi),
            textcoords="offset points",
            fontsize=8,
            arrowprops=line if place >= 4 else None,
        )


def _boxes(x: float, y: float, text: str) -> Iterator[Box]:
    """Where a text may stand that belongs to a point."""
    width, height = _LETTER[0] * len(text), _LETTER[1]
    for distance in _DISTANCES:
        for right, up in _DIRECTIONS:
            left = x + distance * right - (0 if right > 0 else width if right < 0 else width / 2)
            low = y + distance * up - height / 2
            yield left, low, left + width, low + height


def _overlaps(box: Box, others: Sequence[Box]) -> bool:
    left, low, right, high = box
    return any(left < other[2] and right > other[0] and low < other[3] and high > other[1] for other in others)


def name_of(*words: str) -> str:
    """An id in a page, of words."""
    return "-".join(re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words)


def svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an element of a page."""
    with mpl.rc_context({"svg.hashsalt": name}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Title": title})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace(INK, "currentColor").replace(_GRID, "var(--grid)")
    return text.replace("<svg", f'<svg role="img" aria-label="{title}" id="{name_of(name)}"', 1)
