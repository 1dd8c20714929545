"""Charts and pages: well-formed, self-contained, readable in light and dark, the numbers where they belong."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from cuvee.charts import Chart, Table, bars, contour, fragment, heat, lines, page, prose
from cuvee.charts.contour import segments
from cuvee.charts.heat import STRONGEST
from cuvee.charts.page import DARK, LIGHT
from cuvee.charts.svg import extent, figure, ticks

HOSTILE = "</title><script>alert(1)</script>\x1b[31m\u202e\uffff\"'&"
NAN = math.nan


def charts(name: str = "a") -> list[Chart]:
    return [
        bars(
            "Bars", name, [name, "b"], {name: [1.0, NAN], "t": [-2.0, 3.0]}, ends={"t": [(-3, -1), (2.5, 4)]}
        ),
        heat("Heat", name, [name, "b"], [name, "y", "z"], [[0.1, NAN, -1.0], [0.0, 2.0, 1e-9]]),
        lines("Lines", name, [name, "1", "2"], {name: [0.0, NAN, 2.0], "t": [1.0, 1.0, 1.0]}, column=name),
        contour(
            "Contour", name, [0.0, 0.5, 1.0], [0.0, 1.0], [[1, 2, 3], [2, NAN, 4]], points={name: (0.0, 1.0)}
        ),
    ]


def test_every_chart_is_well_formed_named_and_has_its_table() -> None:
    for chart in charts(HOSTILE):
        document = ElementTree.fromstring(page(HOSTILE, [chart]).removeprefix("<!DOCTYPE html>"))
        figures = list(document.iter("figure"))
        assert len(figures) == 1
        svg = figures[0].find("svg")
        assert svg is not None and svg.get("role") == "img"
        assert [svg[0].tag, svg[0].text, svg[1].tag] == ["title", chart.title, "desc"]
        table = figures[0].find("details/table")
        assert table is not None and len(table.findall("tbody/tr")) == len(chart.table.rows)
        assert {len(row) for row in table.iter("tr")} == {len(chart.table.header)}


@pytest.mark.parametrize("make", [page, lambda title, parts: fragment(parts)])
def test_pages_hold_no_script_no_address_and_no_invisible_character(make) -> None:
    text = make(HOSTILE, [prose("p", HOSTILE), Table([HOSTILE], [[HOSTILE]]), *charts(HOSTILE)])
    assert not re.search(r"<script|https?:|//|url\(|@import|\son\w+=|<(?:img|link|iframe)", text)
    assert not set("\x1b\u202e\uffff") & set(text)


def test_a_bar_is_as_long_as_its_number() -> None:
    svg = ElementTree.fromstring(bars("t", "d", ["a", "b"], {"": [2.0, 6.0]}).svg)
    short, long = (float(rect.get("width", "")) for rect in svg.iter("rect"))
    assert long == pytest.approx(3 * short, rel=1e-3)


def test_names_of_columns_lie_flat_where_they_fit_and_are_tilted_where_they_do_not() -> None:
    for name, is_tilted in (("one", False), ("a long name of a task", True)):
        made = heat("t", "d", ["row"], [name, "b"], [[1.0, 2.0]])
        texts = [t for t in ElementTree.fromstring(made.svg).iter("text") if t.text == name]
        assert len(texts) == 1 and ("transform" in texts[0].attrib) is is_tilted
        assert float(texts[0].get("y", "")) >= 8, "nothing is cut off above"


def test_a_line_breaks_where_a_value_is_missing() -> None:
    svg = ElementTree.fromstring(lines("t", "d", list("abcd"), {"s": [0.0, 1.0, NAN, 2.0]}).svg)
    drawn = next(p.get("d") or "" for p in svg.iter("path"))
    assert re.sub(r"[^ML]", "", drawn) == "MLM"


def test_contours_are_where_the_values_are() -> None:
    xs = [i / 8 for i in range(9)]
    values = [[x + 2 * y for x in xs] for y in xs]
    pieces = list(segments(xs, xs, values, 1.3))
    assert len(pieces) > 8
    for piece in pieces:
        for x, y in piece:
            assert x + 2 * y == pytest.approx(1.3)


@pytest.mark.parametrize(("level", "low"), [(0.4, True), (0.6, False)])
def test_a_saddle_joins_the_corners_that_its_middle_says(level: float, low: bool) -> None:
    pieces = list(segments([0.0, 1.0], [0.0, 1.0], [[1.0, 0.0], [0.0, 1.0]], level))
    assert len(pieces) == 2
    for (x0, y0), (
        x1,
        y1,
    ) in pieces:  # each piece cuts off a low corner where the middle is high, else a high one
        middle = ((x0 + x1) / 2, (y0 + y1) / 2)
        corner = min(((0, 0), (1, 0), (1, 1), (0, 1)), key=lambda c: math.dist(c, middle))
        assert (corner in ((1, 0), (0, 1))) == low


def test_ticks_are_round_and_within() -> None:
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(-3.2, 7.9) == pytest.approx([0, 5])
    for low, high in ((0.001, 0.0073), (-1e6, 3e5), (99.0, 101.0)):
        found = ticks(low, high)
        assert 3 <= len(found) <= 8 and low <= found[0] + 1e-12 and found[-1] <= high * (1 + 1e-12)


def test_ranges_are_never_empty() -> None:
    for values in ([], [0.0], [5.0], [-5.0, -5.0], [NAN]):
        low, high = extent(values)
        assert low < high
    assert extent([2.0, 3.0], zero=True) == (0.0, 3.0)
    assert (figure(NAN), figure(None), figure(-1234.5)) == ("–", "–", "−1.23e+03")


def luminance(colour: tuple[float, ...]) -> float:
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def rgb(text: str) -> tuple[float, ...]:
    return tuple(int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_marks_have_the_contrast_that_wcag_asks_for(theme: dict[str, str]) -> None:
    paper, ink = rgb(theme["paper"]), rgb(theme["ink"])
    assert contrast(ink, paper) >= 7
    assert contrast(rgb(theme["soft"]), paper) >= 4.5
    for name in [f"s{i}" for i in range(8)]:
        assert contrast(rgb(theme[name]), paper) >= 3, name
    for name in ("plus", "minus"):
        mixed = tuple(
            STRONGEST * c + (1 - STRONGEST) * p for c, p in zip(rgb(theme[name]), paper, strict=True)
        )
        assert contrast(ink, mixed) >= 4.5, name
