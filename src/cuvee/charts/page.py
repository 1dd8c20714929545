"""A page: parts one below the other, with the style that gives charts and tables their colours, light and dark."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cuvee.charts.chart import Chart, Table
from cuvee.charts.svg import element, figure, words

LIGHT = {
    "paper": "#ffffff",
    "ink": "#1b1f24",
    "soft": "#59636e",
    "rule": "#d1d9e0",
    "plus": "#0b63ce",
    "minus": "#c4511b",
    "s0": "#0b63ce",
    "s1": "#b45309",
    "s2": "#1a7f37",
    "s3": "#8250df",
    "s4": "#cf222e",
    "s5": "#0e7490",
    "s6": "#a21caf",
    "s7": "#57606a",
}
DARK = {
    "paper": "#0f1318",
    "ink": "#e8ecf1",
    "soft": "#a3adb8",
    "rule": "#3a424c",
    "plus": "#3f8ae0",
    "minus": "#c96a3a",
    "s0": "#6cb6ff",
    "s1": "#f0a35e",
    "s2": "#6bc46d",
    "s3": "#c4a1ff",
    "s4": "#ff8b85",
    "s5": "#5ccfe6",
    "s6": "#f0a0f5",
    "s7": "#b6bec8",
}
_RULES = """
.cuvee{color:var(--ink);background:var(--paper);font:15px/1.5 system-ui,sans-serif;padding:1px 1rem}
.cuvee h1{font-size:1.6rem}.cuvee h2{font-size:1.25rem;margin-top:2.2rem}
.cuvee p,.cuvee li,.cuvee figcaption{max-width:76ch}
.cuvee figure{margin:1.2rem 0;overflow-x:auto}
.cuvee figcaption strong{display:block}.cuvee figcaption,.cuvee summary{color:var(--soft)}
.cuvee figcaption strong{color:var(--ink)}
.cuvee svg{max-width:100%;height:auto;font:12px system-ui,sans-serif;overflow:visible}
.cuvee svg text{fill:var(--ink)}.cuvee svg .small{font-size:11px}.cuvee svg .strong{font-weight:600}
.cuvee .rule{stroke:var(--rule)}.cuvee .line{fill:none;stroke-width:2}
.cuvee .span,.cuvee .level{fill:none;stroke:var(--ink)}.cuvee .level{stroke-opacity:.7}
.cuvee .dot{fill:var(--ink);stroke:var(--paper)}
.cuvee .plus,.cuvee .minus{shape-rendering:crispEdges}.cuvee .plus{fill:var(--plus)}.cuvee .minus{fill:var(--minus)}
.cuvee .empty{fill:none;stroke:var(--rule);stroke-dasharray:2 3}
.cuvee table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.6rem 0}
.cuvee th,.cuvee td{border:1px solid var(--rule);padding:.2rem .55rem;text-align:left}
.cuvee td.number{text-align:right}

"""
_SPAN = re.compile(r"`([^`]*)`")


def page(title: str, parts: Sequence[str | Chart | Table]) -> str:
    """A whole HTML document; strings are markup made by this package."""
    head = (
        '<meta charset="utf-8"/><meta name="viewport" content="width=device-width"/>'
        + '<meta name="color-scheme" content="light dark"/>'
        + element("title", words(title))
    )
    main = element("main", element("h1", words(title)) + _joined(parts), class_="cuvee")
    body = element("body", main, style="margin:0 auto;max-width:76rem")
    return (
        "<!DOCTYPE html>\n"
        + element("html", element("head", head + _style(page=True)) + body, lang="en")
        + "\n"
    )


def fragment(parts: Sequence[str | Chart | Table]) -> str:
    """The same parts for a notebook: a division that brings its style along."""
    return element("div", _style() + _joined(parts), class_="cuvee")


def prose(name: str, text: str) -> str:
    """An element (`p`, `h2`, `li`) with text; words in backticks become code."""
    shown = words(text, 4000)
    return element(name, _SPAN.sub(lambda m: element("code", m.group(1)), shown))


def listing(items: Sequence[str]) -> str:
    """A list of texts."""
    return element("ul", "".join(prose("li", item) for item in items))


def table(content: Table, caption: str = "") -> str:
    """An HTML table with a head; numbers are aligned to the right."""
    head = "".join(element("th", words(name), scope="col") for name in content.header)
    rows = "".join(
        element("tr", "".join(_entry(v, content.digits, first=i == 0) for i, v in enumerate(row)))
        for row in content.rows
    )
    named = element("caption", words(caption)) if caption else ""
    return element("table", named + element("thead", element("tr", head)) + element("tbody", rows))


def _entry(value: object, digits: int, *, first: bool) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        shown = words(value)
        return element("th", shown, scope="row") if first else element("td", shown)
    return element("td", f"{value:,}" if isinstance(value, int) else figure(value, digits), class_="number")


def _joined(parts: Sequence[str | Chart | Table]) -> str:
    return "".join(
        part if isinstance(part, str) else _shown(part) if isinstance(part, Chart) else table(part)
        for part in parts
    )


def _shown(chart: Chart) -> str:
    caption = element("strong", words(chart.title)) + words(chart.description, 1000)
    numbers = element("details", element("summary", "Table") + table(chart.table, chart.title))
    return element("figure", element("figcaption", caption) + chart.svg + numbers)


def _style(*, page: bool = False) -> str:
    where = ":root" if page else ".cuvee"
    around = "body{background:var(--paper)}" if page else ""
    colours = "".join(
        f".cuvee .bar.s{i}{{fill:var(--s{i})}}.cuvee .line.s{i}{{stroke:var(--s{i})}}" for i in range(8)
    )
    dark = f"@media (prefers-color-scheme:dark){{{where}{_variables(DARK)}}}"
    return element("style", f"{where}{_variables(LIGHT)}{dark}{around}{_RULES}{colours}")


def _variables(colours: dict[str, str]) -> str:
    return "{" + "".join(f"--{name}:{value};" for name, value in colours.items()) + "}"
