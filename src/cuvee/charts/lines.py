"""Lines over positions that have an order: layers, coefficients, ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cuvee.charts.chart import Chart, Table
from cuvee.charts.svg import SERIES, Frame, dash, drawing, element, extent, figure, label, legend, words

_WIDTH, _HEIGHT = 720.0, 260.0
_MARKED = 40  # points up to which each is marked
_LABELS = 14


def lines(
    title: str,
    description: str,
    positions: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    zero: bool = False,
    column: str = "",
) -> Chart:
    """A line chart over evenly spaced positions; NaN breaks a line. With `zero` the axis reaches 0."""
    every = [v for values in series.values() for v in values]
    key, key_height = legend(list(series), 64, 16, _WIDTH, dashed=True)
    frame = Frame(
        64,
        _WIDTH - 16,
        key_height + 8,
        key_height + _HEIGHT,
        (0.0, float(max(1, len(positions) - 1))),
        extent(every, zero=zero),
    )
    parts = [key, frame.level_lines(), _positions(frame, positions)]
    for number, (name, values) in enumerate(series.items()):
        parts.append(_line(frame, values, number))
        if len(positions) <= _MARKED:
            parts += _marks(frame, positions, name, values, number)
    if column:
        parts.append(label((frame.left + frame.right) / 2, frame.bottom + 36, column, anchor="middle"))
    svg = drawing(title, description, _WIDTH, frame.bottom + 44, "".join(parts))
    rows = [[p, *(values[i] for values in series.values())] for i, p in enumerate(positions)]
    return Chart(title, description, svg, Table([column, *series], rows))


def _positions(frame: Frame, positions: Sequence[str]) -> str:
    step = max(1, math.ceil(len(positions) / _LABELS))
    return "".join(
        label(frame.x(i), frame.bottom + 18, name, anchor="middle")
        for i, name in enumerate(positions)
        if i % step == 0
    )


def _line(frame: Frame, values: Sequence[float], number: int) -> str:
    steps, pen = [], "M"
    for i, value in enumerate(values):
        if math.isfinite(value):
            steps.append(f"{pen}{frame.x(i):.1f} {frame.y(value):.1f}")
            pen = "L"
        else:
            pen = "M"
    return element("path", d="".join(steps), class_=f"line s{number % SERIES}", stroke_dasharray=dash(number))


def _marks(
    frame: Frame, positions: Sequence[str], name: str, values: Sequence[float], number: int
) -> list[str]:
    return [
        element(
            "circle",
            element("title", words(f"{name}, {positions[i]}: {figure(value)}")),
            cx=frame.x(i),
            cy=frame.y(value),
            r=3,
            class_=f"bar s{number % SERIES}",
        )
        for i, value in enumerate(values)
        if math.isfinite(value)
    ]
