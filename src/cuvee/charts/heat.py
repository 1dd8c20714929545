"""A heat map: one cell for each row and column, its number in it where there is room.

Colour says sign by hue and size by strength; cells stay pale enough for the numbers to be read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cuvee.charts.chart import Chart, Table
from cuvee.charts.svg import LETTER, drawing, element, figure, label, words
from cuvee.core.names import printable

STRONGEST = 0.55  # opacity of the largest value; text keeps a contrast of 4.5 above it
_CELL = 52.0
_ROW = 24.0


def heat(
    title: str,
    description: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    largest: float | None = None,
    column: str = "",
) -> Chart:
    """A heat map of `values[row][column]`; NaN leaves a cell empty. `largest`: the magnitude of full colour."""
    finite = [abs(v) for line in values for v in line if math.isfinite(v)]
    top_value = largest or max(finite, default=1.0) or 1.0
    left = 16 + LETTER * min(28, max((len(printable(name)) for name in rows), default=0))
    longest = LETTER * min(28, max((len(printable(name)) for name in columns), default=0))
    wide = max(30.0, min(_CELL, (1100 - left) / max(1, len(columns))))
    is_tilted = longest > wide - 4
    head = 14 + (0.75 * longest if is_tilted else 8)
    parts = [_heading(name, left + (i + 0.5) * wide, head - 6, is_tilted) for i, name in enumerate(columns)]
    for r, (name, line) in enumerate(zip(rows, values, strict=True)):
        y = head + r * _ROW
        parts.append(label(left - 8, y + 16, printable(name, 28), anchor="end"))
        for c, value in enumerate(line):
            hover = f"{name}, {columns[c]}: {figure(value)}"
            parts.append(_cell(left + c * wide, y, wide, value, top_value, hover))
    width = left + wide * len(columns) + 24 + (head * 0.8 if is_tilted else 0)
    svg = drawing(title, description, width, head + _ROW * len(rows) + 6, "".join(parts))
    rows_of = [[name, *line] for name, line in zip(rows, values, strict=True)]
    return Chart(title, description, svg, Table([column, *columns], rows_of))


def shade(value: float, largest: float) -> tuple[str, float]:
    """The class (hue) and opacity of a value."""
    return ("plus" if value >= 0 else "minus"), STRONGEST * min(1.0, abs(value) / largest)


def _heading(name: str, x: float, y: float, is_tilted: bool) -> str:
    if not is_tilted:
        return label(x, y, printable(name, 28), anchor="middle")
    turn = f"rotate(-38 {x:.1f} {y:.1f})"
    return element("text", words(printable(name, 28)), x=x, y=y, transform=turn, text_anchor="start")


def _cell(x: float, y: float, wide: float, value: float, largest: float, hover: str) -> str:
    place = {"x": x + 0.5, "y": y + 0.5, "width": wide - 1, "height": _ROW - 1}
    if not math.isfinite(value):
        return element("rect", element("title", words(hover)), **place, class_="empty")
    hue, opacity = shade(value, largest)
    cell = element("rect", element("title", words(hover)), **place, class_=hue, fill_opacity=opacity)
    return cell + label(x + wide / 2, y + 16, _short(value), anchor="middle", class_="small")


def _short(value: float) -> str:
    """What fits a cell: two decimals, or whole numbers of what is large; the table has more."""
    if abs(value) >= 10_000:
        return figure(value, 2)
    text = f"{value:.0f}" if abs(value) >= 10 else f"{value:.2f}".replace("-0.00", "0.00")
    return text.replace("-", "−")
