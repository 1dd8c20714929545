"""Values over a plane: shaded cells, lines of equal value (marching squares), and named points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from cuvee.charts.chart import Chart, Table
from cuvee.charts.heat import STRONGEST
from cuvee.charts.svg import Frame, drawing, element, extent, figure, label, ticks, words

_WIDTH, _HEIGHT = 560.0, 460.0

Point = tuple[float, float]
Grid = Sequence[Sequence[float]]


def contour(
    title: str,
    description: str,
    xs: Sequence[float],
    ys: Sequence[float],
    values: Grid,
    *,
    points: Mapping[str, Point] | None = None,
    axes: tuple[str, str] = ("x", "y"),
) -> Chart:
    """A contour chart of `values[row][column]` at `ys[row]` and `xs[column]`, both ascending; `points` are marked."""
    low, high = extent([v for line in values for v in line])
    frame = Frame(60, _WIDTH - 70, 16, _HEIGHT - 50, (xs[0], xs[-1]), (ys[0], ys[-1]))
    parts = [_shades(frame, xs, ys, values, low, high)]
    parts += [_level(frame, xs, ys, values, level) for level in ticks(low, high, 9)]
    parts.append(_axes(frame, axes))
    for name, (x, y) in (points or {}).items():
        parts.append(
            element("circle", element("title", words(name)), cx=frame.x(x), cy=frame.y(y), r=4, class_="dot")
        )
        parts.append(label(frame.x(x) + 7, frame.y(y) - 6, name, class_="strong"))
    svg = drawing(title, description, _WIDTH, _HEIGHT, "".join(parts))
    rows = [[f"{axes[1]} = {figure(y)}", *line] for y, line in zip(ys, values, strict=True)]
    return Chart(title, description, svg, Table(["", *(f"{axes[0]} = {figure(x)}" for x in xs)], rows))


def segments(
    xs: Sequence[float], ys: Sequence[float], values: Grid, level: float
) -> Iterator[tuple[Point, Point]]:
    """Pieces of the line on which bilinear values equal `level`; cells with a value that is not finite have none."""
    for r in range(len(ys) - 1):
        for c in range(len(xs) - 1):
            corners = ((c, r), (c + 1, r), (c + 1, r + 1), (c, r + 1))
            found = [values[j][i] for i, j in corners]
            if not all(math.isfinite(v) for v in found):
                continue
            places = [(xs[i], ys[j]) for i, j in corners]
            crossed = [_crossing(places, found, edge, level) for edge in range(4) if _cut(found, edge, level)]
            if len(crossed) == 2:
                yield crossed[0], crossed[1]
            elif len(crossed) == 4:  # a saddle: the middle says which corners belong together
                joined = (sum(found) / 4 >= level) == (found[0] >= level)
                order = (0, 1, 2, 3) if joined else (3, 0, 1, 2)
                yield crossed[order[0]], crossed[order[1]]
                yield crossed[order[2]], crossed[order[3]]


def _cut(found: Sequence[float], edge: int, level: float) -> bool:
    return (found[edge] >= level) != (found[(edge + 1) % 4] >= level)


def _crossing(places: Sequence[Point], found: Sequence[float], edge: int, level: float) -> Point:
    (x0, y0), (x1, y1) = places[edge], places[(edge + 1) % 4]
    a, b = found[edge], found[(edge + 1) % 4]
    t = (level - a) / (b - a)
    return x0 + t * (x1 - x0), y0 + t * (y1 - y0)


def _level(frame: Frame, xs: Sequence[float], ys: Sequence[float], values: Grid, level: float) -> str:
    pieces = list(segments(xs, ys, values, level))
    if not pieces:
        return ""
    path = "".join(
        f"M{frame.x(a[0]):.1f} {frame.y(a[1]):.1f}L{frame.x(b[0]):.1f} {frame.y(b[1]):.1f}" for a, b in pieces
    )
    (x, y) = max((end for piece in pieces for end in piece), key=lambda p: p[0])
    line = element("path", element("title", words(figure(level))), d=path, class_="level")
    return line + label(frame.x(x) + 4, frame.y(y) + 4, figure(level), class_="small")


def _shades(
    frame: Frame, xs: Sequence[float], ys: Sequence[float], values: Grid, low: float, high: float
) -> str:
    """A cell around each grid point, half a step to every side within the frame."""
    out = []
    for r, y in enumerate(ys):
        top, bottom = frame.y(_between(ys, r, 1)), frame.y(_between(ys, r, -1))
        for c, x in enumerate(xs):
            value = values[r][c]
            left, right = frame.x(_between(xs, c, -1)), frame.x(_between(xs, c, 1))
            hover = element("title", words(f"({figure(x)}, {figure(y)}): {figure(value)}"))
            place = {"x": left, "y": top, "width": right - left, "height": bottom - top}
            if math.isfinite(value):
                opacity = STRONGEST * (value - low) / (high - low)
                out.append(element("rect", hover, **place, class_="plus", fill_opacity=opacity))
            else:
                out.append(element("rect", hover, **place, class_="empty"))
    return "".join(out)


def _between(values: Sequence[float], i: int, towards: int) -> float:
    other = i + towards
    return (values[i] + values[other]) / 2 if 0 <= other < len(values) else values[i]


def _axes(frame: Frame, axes: tuple[str, str]) -> str:
    across = "".join(
        label(frame.x(v), frame.bottom + 16, figure(v), anchor="middle") for v in ticks(*frame.across)
    )
    up = "".join(label(frame.left - 6, frame.y(v) + 4, figure(v), anchor="end") for v in ticks(*frame.up))
    middle = (frame.top + frame.bottom) / 2
    names = label((frame.left + frame.right) / 2, frame.bottom + 38, axes[0], anchor="middle") + element(
        "text",
        words(axes[1], 60),
        x=14,
        y=middle,
        text_anchor="middle",
        transform=f"rotate(-90 14 {middle:.1f})",
    )
    return across + up + names
