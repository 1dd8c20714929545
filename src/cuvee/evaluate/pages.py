"""Reports as sections that become Markdown and one self-contained HTML page with the same words and numbers.

Owns the two forms; what sections say is decided by who makes them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cuvee.charts import Chart, Table, fragment, page, prose
from cuvee.charts.svg import figure
from cuvee.core.names import printable

_OPENS = re.compile(r"<(?=[A-Za-z/!?])")


@dataclass(frozen=True, slots=True)
class Drawn:
    """A chart of numbers that a table beside it holds already: on the page, not in Markdown."""

    chart: Chart


Part = str | Table | Chart | Drawn


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it; texts are plain sentences, words in backticks are code."""

    title: str
    parts: tuple[Part, ...]


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The report as Markdown; a chart becomes its title, what it says and its table."""
    blocks = [f"# {_plain(title)}"]
    for section in sections:
        blocks += [f"## {_plain(section.title)}"] if section.title else []
        for part in section.parts:
            blocks += _blocks(part)
    return "\n\n".join(blocks) + "\n"


def html(title: str, sections: Sequence[Section]) -> str:
    """The report as one HTML document."""
    return page(title, _parts(sections))


@dataclass(frozen=True, slots=True)
class Report:
    """Sections under a title; a notebook shows them by itself."""

    title: str
    sections: tuple[Section, ...]

    def markdown(self) -> str:
        """The report as Markdown."""
        return markdown(self.title, self.sections)

    def html(self) -> str:
        """The report as one self-contained HTML document."""
        return html(self.title, self.sections)

    def _repr_html_(self) -> str:
        return fragment(_parts(self.sections))


def _parts(sections: Sequence[Section]) -> list[str | Chart | Table]:
    parts: list[str | Chart | Table] = []
    for section in sections:
        parts += [prose("h2", section.title)] if section.title else []
        parts += [_on_page(part) for part in section.parts]
    return parts


def _on_page(part: Part) -> str | Chart | Table:
    if isinstance(part, Drawn):
        return part.chart
    return prose("p", part) if isinstance(part, str) else part


def _blocks(part: Part) -> list[str]:
    if isinstance(part, Drawn):
        return []
    if isinstance(part, str):
        return [_plain(part)]
    if isinstance(part, Table):
        return [_table(part)]
    return [_plain(f"**{part.title}.** {part.description}"), _table(part.table)]


def _plain(text: str) -> str:
    """Text in which no name opens an element of HTML, which Markdown lets through."""
    return _OPENS.sub("&lt;", text)


def _table(content: Table) -> str:
    rows = [[_entry(name, 0) for name in content.header], ["---"] * len(content.header)]
    rows += [[_entry(value, content.digits) for value in row] for row in content.rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _entry(value: object, digits: int) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _plain(printable(str(value))).replace("|", "\\|")
    return f"{value:,}" if isinstance(value, int) else figure(value, digits)
