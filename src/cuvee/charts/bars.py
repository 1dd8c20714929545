"""Horizontal bars: a group for each label, a bar for each series, with the ends of an interval where given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cuvee.charts.chart import Chart, Table
from cuvee.charts.svg import (
    LETTER,
    SERIES,
    Frame,
    drawing,
    element,
    extent,
    figure,
    label,
    legend,
    ticks,
    words,
)
from cuvee.core.names import printable

_WIDTH = 720.0
_BAR = 16.0

Ends = Mapping[str, Sequence[tuple[float, float]]]


def bars(
    title: str,
    description: str,
    labels: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    ends: Ends | None = None,
    column: str = "",
) -> Chart:
    """A bar chart. `series` are as long as `labels`, missing values NaN; `ends` are (low, high) of each bar."""
    every = [v for values in series.values() for v in values]
    every += [e for spans in (ends or {}).values() for span in spans for e in span]
    left = 16 + LETTER * min(32, max((len(printable(name)) for name in labels), default=0))
    key, key_height = legend(list(series), left, 16, _WIDTH, dashed=False) if len(series) > 1 else ("", 4.0)
    group = _BAR * len(series) + 8
    frame = Frame(
        left, _WIDTH - 64, key_height, key_height + group * len(labels), extent(every, zero=True), (0.0, 1.0)
    )
    parts = [key, _scale(frame)]
    for row, name in enumerate(labels):
        top = frame.top + row * group + 4
        parts.append(label(left - 8, top + _BAR * len(series) / 2 + 4, printable(name, 32), anchor="end"))
        for number, (serie, values) in enumerate(series.items()):
            span = ends[serie][row] if ends and serie in ends else None
            hover = f"{name}, {serie}: {figure(values[row])}" if serie else f"{name}: {figure(values[row])}"
            parts.append(_bar(frame, top + number * _BAR, values[row], number, span, hover))
    svg = drawing(title, description, _WIDTH, frame.bottom + 24, "".join(parts))
    return Chart(title, description, svg, _table(column, labels, series, ends))


def _scale(frame: Frame) -> str:
    return "".join(
        element("line", x1=frame.x(v), x2=frame.x(v), y1=frame.top, y2=frame.bottom, class_="rule")
        + label(frame.x(v), frame.bottom + 16, figure(v), anchor="middle")
        for v in ticks(*frame.across)
    )


def _bar(
    frame: Frame, top: float, value: float, number: int, span: tuple[float, float] | None, hover: str
) -> str:
    if not math.isfinite(value):
        return label(frame.x(0.0) + 4, top + 12, "–")
    start, end = sorted((frame.x(0.0), frame.x(value)))
    hint = element("title", words(hover))
    parts = [
        element(
            "rect",
            hint,
            x=start,
            y=top + 1,
            width=max(1.0, end - start),
            height=_BAR - 2,
            class_=f"bar s{number % SERIES}",
        )
    ]
    if span is not None and all(math.isfinite(e) for e in span):
        low, high = (frame.x(e) for e in span)
        middle = top + _BAR / 2
        parts.append(element("path", d=f"M{low:.1f} {middle:.1f}H{high:.1f}", class_="span"))
        parts += [element("path", d=f"M{x:.1f} {middle - 4:.1f}v8", class_="span") for x in (low, high)]
        end = max(end, high)
    return "".join(parts) + label(end + 5, top + 12, figure(value))


def _table(
    column: str, labels: Sequence[str], series: Mapping[str, Sequence[float]], ends: Ends | None
) -> Table:
    header, rows = [column], [[name] for name in labels]
    columns: list[list[object]] = [list(row) for row in rows]
    for name, values in series.items():
        header.append(name)
        spans = ends.get(name) if ends else None
        header += ["low", "high"] if spans else []
        for row, value in enumerate(values):
            columns[row] += [value, *(spans[row] if spans else ())]
    return Table(header, columns)
