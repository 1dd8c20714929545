"""Elements of SVG and HTML as text, escaped at one door; numbers as people read them; axes.

Everything that reaches a page goes through `element` and `words`, so names out of files cannot become markup.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from cuvee.core.names import printable

LETTER = 7.0  # pixels of a letter at the 12 pixels of chart text, on average
SERIES = 8  # colours; series beyond them repeat the colours with another dash
DASHES = ("", "6 3", "2 3", "8 3 2 3")


def words(text: object, limit: int = 200) -> str:
    """Text for a page: invisible characters shown as escapes, markup characters as entities."""
    shown = printable(str(text), limit)
    return escape("".join(c if _allowed(c) else "\N{REPLACEMENT CHARACTER}" for c in shown))


def _allowed(c: str) -> bool:
    return ord(c) & 0xFFFE != 0xFFFE  # the two non-characters of each plane are in no document


def element(name: str, content: str = "", /, **attributes: Any) -> str:
    """One element; `content` is markup, attribute values are escaped, None leaves one out.

    A trailing underscore of an attribute's name is dropped (`class_`), others become hyphens.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{words(_attribute(value), 4000)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{given}>{content}</{name}>"


def _attribute(value: Any) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def label(x: float, y: float, text: object, *, anchor: str = "start", class_: str | None = None) -> str:
    """Text in a chart; `anchor` is `start`, `middle` or `end`."""
    return element("text", words(text, 60), x=x, y=y, text_anchor=anchor, class_=class_)


def figure(value: float | None, digits: int = 3) -> str:
    """A number as people read it; a dash for one that is missing or not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}g}".replace("-", "−")


def drawing(title: str, description: str, width: float, height: float, content: str) -> str:
    """An SVG drawing with its accessible name and description."""
    named = element("title", words(title)) + element("desc", words(description, 1000))
    return element(
        "svg",
        named + content,
        role="img",
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=width,
        height=height,
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within low … high, about `count`."""
    span = high - low
    if not span > 0:
        return [low]
    rough = span / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def extent(values: Sequence[float], *, zero: bool = False) -> tuple[float, float]:
    """The range of the finite values, never empty; with `zero` it reaches 0."""
    finite = [v for v in values if math.isfinite(v)] + ([0.0] if zero else [])
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    return (
        (low, high)
        if high > low
        else (low - (0.0 if low == 0 else abs(low) / 2), high + (abs(low) / 2 or 1.0))
    )


@dataclass(frozen=True, slots=True)
class Frame:
    """Where data lie on a drawing: `left` … `right` by `top` … `bottom` pixels, and the ranges they stand for."""

    left: float
    right: float
    top: float
    bottom: float
    across: tuple[float, float]
    up: tuple[float, float]

    def x(self, value: float) -> float:
        """Pixels from the left."""
        return self.left + (value - self.across[0]) / (self.across[1] - self.across[0]) * (
            self.right - self.left
        )

    def y(self, value: float) -> float:
        """Pixels from the top; larger values are higher."""
        return self.bottom - (value - self.up[0]) / (self.up[1] - self.up[0]) * (self.bottom - self.top)

    def level_lines(self) -> str:
        """Horizontal rules with their values at the left."""
        return "".join(
            element("line", x1=self.left, x2=self.right, y1=self.y(v), y2=self.y(v), class_="rule")
            + label(self.left - 6, self.y(v) + 4, figure(v), anchor="end")
            for v in ticks(*self.up)
        )


def legend(names: Sequence[str], left: float, top: float, right: float, *, dashed: bool) -> tuple[str, float]:
    """A key to the series, wrapped at `right`, and the height it takes."""
    x, y, parts = left, top, []
    for number, name in enumerate(names):
        wide = 38 + LETTER * min(60, len(printable(name)))
        if x > left and x + wide > right:
            x, y = left, y + 18
        colour = number % SERIES
        if dashed:
            parts.append(
                element(
                    "line",
                    x1=x,
                    x2=x + 20,
                    y1=y - 4,
                    y2=y - 4,
                    class_=f"line s{colour}",
                    stroke_dasharray=dash(number),
                )
            )
        else:
            parts.append(element("rect", x=x + 4, y=y - 10, width=12, height=12, class_=f"bar s{colour}"))
        parts.append(label(x + 25, y, name))
        x += wide
    return "".join(parts), y - top + 18


def dash(number: int) -> str | None:
    """The dash pattern of a series, so that lines differ by more than colour."""
    return DASHES[(number + number // SERIES) % len(DASHES)] or None
