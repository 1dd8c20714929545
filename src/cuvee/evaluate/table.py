"""From finished cells to a leaderboard: means with intervals, normalised scores, worst task, unseen tasks, groups.

Cells of several seeds and subsets of one size are joined: tasks of all of them are strata of one comparison, so that
methods are always compared on the same items.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import numpy
from cuvee.core.names import printable
from cuvee.errors import EvaluationError
from cuvee.evaluate.cells import REFERENCES, Cell
from cuvee.evaluate.scorecard import Scorecard
from cuvee.evaluate.statistics import Comparison, Interval, bootstrap, compare, groups, holm

if TYPE_CHECKING:
    from cuvee.evaluate.statistics import Scores

Results = Sequence[tuple[Cell, Scorecard]]


@dataclass(frozen=True, slots=True)
class Row:
    """One method's line: scores in the metric's own unit, costs as means over cells."""

    label: str
    mean: Interval
    normalised: float
    worst: tuple[str, float]
    unseen: float
    forgetting: float
    tasks: Mapping[str, float]
    evaluations: float
    seconds: float
    settings: Mapping[str, Any]
    cells: int
    group: int = 0


@dataclass(frozen=True, slots=True)
class Board:
    """The leaderboard of one track at one number of experts; rows from best to worst, references apart."""

    track: str
    count: int
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    references: tuple[Row, ...]
    groups: tuple[tuple[str, ...], ...]


def boards(results: Results) -> list[Board]:
    """A leaderboard for each track and number of experts, most experts first."""
    apart: dict[tuple[str, int], list[tuple[Cell, Scorecard]]] = defaultdict(list)
    for cell, card in results:
        apart[(cell.track, len(cell.tasks))].append((cell, card))
    return [
        _board(track, count, apart[(track, count)])
        for track, count in sorted(apart, key=lambda k: (k[0], -k[1]))
    ]


def pairs(results: Results, first: str, second: str, count: int | None = None) -> Comparison:
    """The paired comparison of two methods over every set and seed that both were scored on: first − second."""
    a, b = (_by_place(results, label, count) for label in (first, second))
    shared = sorted(set(a) & set(b))
    if not shared:
        raise EvaluationError(
            "CV-B023",
            f"`{printable(first)}` and `{printable(second)}` were not both scored on any set of tasks",
            hint="scored are " + ", ".join(sorted({cell.label for cell, _ in results})),
        )
    ours, theirs = (
        [s for place in shared for s in cards[place].strata(cards[place].held_in())] for cards in (a, b)
    )
    return compare(ours, theirs)


def _by_place(results: Results, label: str, count: int | None) -> dict[tuple[Any, ...], Scorecard]:
    return {
        (cell.track, cell.seed, cell.tasks): card
        for cell, card in results
        if cell.label == label and (count is None or len(cell.tasks) == count)
    }


def _board(track: str, count: int, results: Results) -> Board:
    experts = _by_place(results, "experts", count)
    base = _by_place(results, "base", count)
    labels = list(dict.fromkeys(cell.label for cell, _ in results))
    rows = {label: _row(label, _by_place(results, label, count), experts, base) for label in labels}
    merges = [rows[label] for label in labels if label not in REFERENCES]
    order = sorted(merges, key=lambda r: -r.normalised)
    found = _grouped([row.label for row in order], results, count)
    numbered = {label: i for i, group in enumerate(found, 1) for label in group}
    return Board(
        track=track,
        count=count,
        seeds=tuple(sorted({cell.seed for cell, _ in results})),
        rows=tuple(replace(row, group=numbered[row.label]) for row in order),
        references=tuple(rows[label] for label in REFERENCES if label in rows),
        groups=tuple(tuple(group) for group in found),
    )


def _grouped(order: list[str], results: Results, count: int) -> list[list[str]]:
    """Groups told apart at 95 %, by paired tests of every pair with Holm's correction."""
    tests = {}
    for i, a in enumerate(order):
        for b in order[i + 1 :]:
            tests[(a, b)] = pairs(results, a, b, count).p_value
    adjusted = holm({f"{a}\0{b}": p for (a, b), p in tests.items()})
    return groups(order, {(a, b): adjusted[f"{a}\0{b}"] < 0.05 for a, b in tests})


def _row(
    label: str,
    cards: Mapping[tuple[Any, ...], Scorecard],
    experts: Mapping[tuple[Any, ...], Scorecard],
    base: Mapping[tuple[Any, ...], Scorecard],
) -> Row:
    strata: list[tuple[Scores, Scores]] = []
    tasks: dict[str, list[float]] = defaultdict(list)
    normalised, unseen, kept = [], [], []
    for place, card in cards.items():
        for name in card.held_in():
            strata.append((card.tasks[name].scores, card.tasks[name].weights))
            tasks[name].append(card.tasks[name].mean)
        if place in experts:
            own = {n: experts[place].tasks[n].mean for n in card.held_in()}
            normalised.append(card.normalised(own))
        foreign = [n for n, score in card.tasks.items() if score.unseen]
        if foreign:
            unseen.append(card.mean(foreign))
            if place in base:
                kept.append(card.mean(foreign) - base[place].mean(foreign))
    means = {name: float(numpy.mean(values)) for name, values in tasks.items()}
    worst = min(means, key=lambda n: means[n])
    first = next(iter(cards.values()))
    return Row(
        label=label,
        mean=bootstrap(strata),
        normalised=_mean(normalised),
        worst=(worst, means[worst]),
        unseen=_mean(unseen),
        forgetting=_mean(kept),
        tasks=means,
        evaluations=_mean([card.spent.evaluations for card in cards.values()]),
        seconds=_mean([card.spent.seconds for card in cards.values()]),
        settings=first.settings if len(cards) == 1 else {},
        cells=len(cards),
    )


def _mean(values: Sequence[float]) -> float:
    return float(numpy.mean(values)) if values else float("nan")
