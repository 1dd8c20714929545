"""What a chart is: a drawing, what it says, and the table of the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows of text or numbers; numbers are shown with `digits` significant digits."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    digits: int = 4


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing as SVG text, its title, what can be seen in it, and its numbers."""

    title: str
    description: str
    svg: str
    table: Table

    def _repr_html_(self) -> str:
        from cuvee.charts.page import fragment

        return fragment([self])
