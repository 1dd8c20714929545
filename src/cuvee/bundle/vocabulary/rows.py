"""Where each row of one model's realigned embedding comes from: a compact, serialisable table.

Owns the form of the table and its look-ups. Knows nothing about tokens, and never touches a tensor.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Literal

Rule = Literal["own", "blend", "zero", "mean"]
Donors = tuple[tuple[str, int], ...]  # (model, row of its own table)


@dataclass(frozen=True, slots=True)
class Segment:
    """Output rows [start, stop) under one rule.

    `own`: rows [row, row + stop − start) of this model's own table. `blend`: the mean, in the order given, of
    single rows of models (one entry: a copy). `zero`: zeros. `mean`: the mean of all rows of the output that
    are not themselves under the rule `mean`.
    """

    start: int
    stop: int
    rule: Rule
    row: int = 0
    donors: Donors = ()

    def part(self, start: int, stop: int) -> Segment:
        """The segment cut to [start, stop), which must overlap it."""
        low, high = max(start, self.start), min(stop, self.stop)
        return replace(
            self, start=low, stop=high, row=self.row + (low - self.start if self.rule == "own" else 0)
        )

    def continues(self, other: Segment) -> bool:
        """Whether `other`, which starts where this one stops, is more of the same."""
        if self.rule != other.rule or self.stop != other.start:
            return False
        if self.rule == "own":
            return other.row == self.row + self.stop - self.start
        return self.donors == other.donors


@dataclass(frozen=True, slots=True)
class RowTable:
    """How one model's vocabulary axis of `own_rows` becomes the output's: parts that cover it in order."""

    model: str
    own_rows: int
    parts: tuple[Segment, ...]

    @property
    def rows(self) -> int:
        """Length of the output's vocabulary axis."""
        return self.parts[-1].stop if self.parts else 0

    @property
    def is_identity(self) -> bool:
        """Whether the output is the model's own tensor, row for row."""
        return self.parts == (Segment(0, self.own_rows, "own"),)

    @property
    def needs_mean(self) -> bool:
        """Whether any row is the mean of the others (which takes a pass over the whole tensor)."""
        return any(segment.rule == "mean" for segment in self.parts)

    @property
    def donors(self) -> tuple[str, ...]:
        """Models whose rows are needed besides this one's, in order of first use."""
        named = (m for s in self.parts for m, _ in s.donors if m != self.model)
        return tuple(dict.fromkeys(named))

    def lookup(self, row: int) -> Segment:
        """The rule of one output row, as a segment of length one."""
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of a table of {self.rows}")
        return self.parts[self._index(row)].part(row, row + 1)

    def segments(self, start: int, stop: int) -> Iterator[Segment]:
        """The segments of output rows [start, stop), cut to them, in order."""
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"rows {start}:{stop} of a table of {self.rows}")
        index = self._index(start) if start < stop else len(self.parts)
        while index < len(self.parts) and self.parts[index].start < stop:
            yield self.parts[index].part(start, stop)
            index += 1

    def _index(self, row: int) -> int:
        return bisect_right(self.parts, row, key=attrgetter("start")) - 1

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: `runs` of own rows as [output, own, length], everything else in `exceptions`."""
        own = [s for s in self.parts if s.rule == "own"]
        return {
            "model": self.model,
            "own_rows": self.own_rows,
            "rows": self.rows,
            "runs": [[s.start, s.row, s.stop - s.start] for s in own],
            "exceptions": [_exception(s) for s in self.parts if s.rule != "own"],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RowTable:
        """The table that `as_dict` described; ValueError when it does not cover its rows exactly once."""
        runs = [Segment(out, out + n, "own", row=own) for out, own, n in content["runs"]]
        found = sorted([*runs, *map(_from_exception, content["exceptions"])], key=attrgetter("start"))
        table = cls(str(content["model"]), int(content["own_rows"]), tuple(found))
        problem = table.problem()
        if problem is None and table.rows != content["rows"]:
            problem = f"it covers {table.rows} rows of {content['rows']}"
        if problem:
            raise ValueError(f"not a row table: {problem}")
        return table

    def problem(self) -> str | None:
        """What is inconsistent about the table, or None."""
        position = 0
        for segment in self.parts:
            if segment.start != position or segment.stop <= segment.start:
                return f"rows {position} to {segment.start} are covered twice or not at all"
            position = segment.stop
            length = segment.stop - segment.start
            if segment.rule == "own" and not 0 <= segment.row <= self.own_rows - length:
                return f"row {segment.start} is taken from beyond the model's {self.own_rows} rows"
            if segment.rule == "blend" and not segment.donors:
                return f"row {segment.start} is a blend of nothing"
        return None


def table(model: str, own_rows: int, segments: Iterable[Segment]) -> RowTable:
    """A row table from segments in order; neighbours that continue each other become one."""
    joined: list[Segment] = []
    for segment in segments:
        if joined and joined[-1].continues(segment):
            joined[-1] = replace(joined[-1], stop=segment.stop)
        else:
            joined.append(segment)
    return RowTable(model, own_rows, tuple(joined))


def _exception(segment: Segment) -> dict[str, Any]:
    place: dict[str, Any] = {"row": segment.start}
    if segment.stop - segment.start > 1:
        place["length"] = segment.stop - segment.start
    if segment.rule == "blend":
        return {**place, "mean_of": [list(donor) for donor in segment.donors]}
    return {**place, "fill": segment.rule}


def _from_exception(content: Mapping[str, Any]) -> Segment:
    start = int(content["row"])
    stop = start + int(content.get("length", 1))
    if "mean_of" in content:
        return Segment(start, stop, "blend", donors=tuple((str(m), int(r)) for m, r in content["mean_of"]))
    if content["fill"] not in ("zero", "mean"):
        raise ValueError(f"not a row table: unknown rule {content['fill']!r}")
    return Segment(start, stop, content["fill"])
