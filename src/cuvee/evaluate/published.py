"""Published results beside ours: tables as data with their sources, and how far our ordering is theirs.

Only orders are compared, never values: other models, other tasks, other training.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from cuvee.charts import Table
from cuvee.evaluate.cells import REFERENCES
from cuvee.evaluate.leaderboard import percent
from cuvee.evaluate.pages import Part, Section
from cuvee.evaluate.statistics import Interval, rank_intervals
from cuvee.evaluate.table import Board

LEAST = 3  # methods in common from which a rank correlation is given
_OTHER = ("initialisations-", "trajectory-")  # tracks whose experts are no fine-tunes of one base


@dataclass(frozen=True, slots=True)
class Printed:
    """One row of a published table: our name of the method, its name there, the mean, the tasks where given."""

    method: str
    name: str
    mean: float
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Published:
    """One table of one source for one set of checkpoints; `after` are rows that came from another paper's table."""

    key: str
    title: str
    source: str
    citation: str
    measure: str
    tasks: tuple[str, ...]
    rows: tuple[Printed, ...]
    after: tuple[str, ...] = ()

    def means(self) -> dict[str, float]:
        """The printed mean of each merge method."""
        return {row.method: row.mean for row in self.rows if row.method not in REFERENCES}


@dataclass(frozen=True, slots=True)
class Agreement:
    """A published ordering beside ours over the methods that both have."""

    table: Published
    methods: tuple[str, ...]
    theirs: tuple[float, ...]
    ours: tuple[float, ...]
    spearman: Interval
    kendall: Interval


@cache
def tables() -> tuple[Published, ...]:
    """Every table, in the order of the file."""
    content = tomllib.loads((files(__package__) / "published.toml").read_text())
    return tuple(
        Published(
            key=key,
            title=entry["title"],
            source=entry["source"],
            citation=entry["citation"],
            measure=entry["measure"],
            tasks=tuple(entry["tasks"]),
            rows=tuple(Printed(m, name, mean, tuple(scores)) for m, name, mean, scores in entry["rows"]),
            after=tuple(entry.get("after", ())),
        )
        for key, entry in content.items()
    )


def agreement(table: Published, ours: Mapping[str, float]) -> Agreement:
    """The rank correlation of a table with our scores by method, intervals over methods drawn anew."""
    theirs = table.means()
    shared = tuple(sorted(set(theirs) & set(ours), key=lambda m: -theirs[m]))
    a, b = tuple(theirs[m] for m in shared), tuple(ours[m] for m in shared)
    if len(shared) < LEAST:
        none = Interval(math.nan, math.nan, math.nan)
        return Agreement(table, shared, a, b, none, none)
    return Agreement(table, shared, a, b, *rank_intervals(a, b))


def scores_of(board: Board) -> dict[str, float]:
    """Normalised score by method: of each the row with the largest budget, and of those the fewest fixed settings.

    Never the best row: that would be chosen on test items.
    """
    found: dict[str, float] = {}
    for row in sorted(board.rows, key=lambda r: (-r.budget, len(r.label), r.label)):
        if not math.isnan(row.normalised):
            found.setdefault(row.label.split("(")[0].strip(), row.normalised)
    return found


def section(board: Board) -> Section | None:
    """Our ordering on this board beside the published ones; None where no table shares enough methods.

    None, too, on tracks of other experts than the tables': networks without a common ancestor, checkpoints of one run.
    """
    if board.track.startswith(_OTHER):
        return None
    ours = scores_of(board)
    found = [one for table in tables() if len((one := agreement(table, ours)).methods) >= LEAST]
    if not found:
        return None
    header = ("published table", "methods in common", "Spearman ρ (95 %)", "Kendall τ (95 %)", "source")
    rows = [
        [a.table.title, len(a.methods), ranged(a.spearman), ranged(a.kendall), _source(a.table)]
        for a in found
    ]
    said = (
        "Only orders are compared: models, tasks and training differ. Intervals draw the common methods anew; with a "
        "handful of methods they are wide, and a correlation of 1 over three methods happens by chance once in six. "
        "Published scores are per cent of the source's own measure; ours are normalised by the experts."
    )
    parts: list[Part] = [said, Table(header, rows), *(_beside(one) for one in found)]
    return Section(f"Published orderings beside ours: {board.track}, {board.count} experts", tuple(parts))


def ranged(value: Interval) -> str:
    """An estimate with its interval."""
    if math.isnan(value.mean):
        return "–"
    ends = "" if math.isnan(value.low) else f" ({value.low:.2f} … {value.high:.2f})"
    return f"{value.mean:.2f}{ends}".replace("-", "−")


def _source(table: Published) -> str:
    second = f"; {', '.join(table.after)} from a later paper's table" if table.after else ""
    return f"{table.source}, {table.citation}{second}"


def _beside(one: Agreement) -> Table:
    rows = [
        [method, _place(theirs, one.theirs), _place(ours, one.ours), f"{theirs:.1f}", percent(ours)]
        for method, theirs, ours in zip(one.methods, one.theirs, one.ours, strict=True)
    ]
    return Table((one.table.title, "rank there", "rank here", "score there", "score here"), rows)


def _place(score: float, every: Sequence[float]) -> int:
    """The place among the scores; equal scores share the better one."""
    return 1 + sum(other > score for other in every)
