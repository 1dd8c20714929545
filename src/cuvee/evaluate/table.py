"""From finished cells to a leaderboard: means with intervals, normalised scores, worst task, unseen tasks, groups.

Cells of several seeds and subsets of one size are joined: an item that stands in several of them is one item, scored
by its mean, so that no item counts as new evidence twice. Pairs of methods are compared where both were scored.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from cuvee.core.lazy import numpy
from cuvee.evaluate.cells import REFERENCES, Cell, is_reference
from cuvee.evaluate.ledger import Ledger
from cuvee.evaluate.paired import Cards, Results, apart_by, by_place, common_mean, joined, told_apart
from cuvee.evaluate.scorecard import Scorecard
from cuvee.evaluate.statistics import Interval, bootstrap, groups, holm
from cuvee.evaluate.task import Metric
from cuvee.evaluate.units import blocks, number_of


@dataclass(frozen=True, slots=True)
class Row:
    """One method's line: scores in the metric's own unit, costs as means over cells (the peak: the largest).

    `mean`, `unseen` and `shifted` are NaN where tasks have different units; `forgetting` is positive where the merge is
    better than the base. `worst` is the task with the smallest share of its expert's score; `elsewhere` are unseen and
    shifted tasks one by one. `idle`: every item was answered as the base answers it.
    """

    label: str
    mean: Interval
    normalised: float
    worst: tuple[str, float]
    unseen: float
    forgetting: float
    shifted: float
    tasks: Mapping[str, float]
    spent: Ledger
    settings: Mapping[str, Any]
    cells: int
    group: int = 0
    budget: int = 0
    elsewhere: Mapping[str, float] = field(default_factory=dict)
    idle: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """How many groups the items of a task are of, and the other tasks with an expert that share groups with it."""

    groups: int
    items: int
    shared: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Board:
    """The leaderboard of one track at one number of experts; rows from best to worst, references apart.

    `metrics` are those of every task, in the order in which tasks are shown; `units` those of columns (see `unit`),
    `evidence` that of every task.
    """

    track: str
    count: int
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    references: tuple[Row, ...]
    groups: tuple[tuple[str, ...], ...]
    metrics: Mapping[str, Metric]
    units: Mapping[str, str] = field(default_factory=dict)
    evidence: Mapping[str, Evidence] = field(default_factory=dict)

    def unit(self, column: str) -> str:
        """The unit of the column `mean`, `unseen`, `forgetting` or `shifted`; empty where tasks have several."""
        return self.units.get({"forgetting": "unseen"}.get(column, column), "")


def boards(results: Results) -> list[Board]:
    """A leaderboard for each track and number of experts, most experts first."""
    apart: dict[tuple[str, int], list[tuple[Cell, Scorecard]]] = defaultdict(list)
    whole: dict[str, list[tuple[Cell, Scorecard]]] = defaultdict(list)
    for cell, card in told_apart(results):
        apart[(cell.track, len(cell.tasks))].append((cell, card))
        whole[cell.track].append((cell, card))
    orders = {track: _order(found) for track, found in whole.items()}
    return [
        _board(track, count, apart[(track, count)], orders[track])
        for track, count in sorted(apart, key=lambda k: (k[0], -k[1]))
    ]


def _order(of_track: Results) -> list[str]:
    """Tasks with experts in the track's order, which every set keeps; unseen tasks; shifts as the tasks they are of."""
    sets = sorted({cell.tasks for cell, _ in of_track}, key=lambda tasks: (-len(tasks), tasks))
    before: dict[str, list[str]] = {}
    for tasks in sets:
        for earlier, name in zip(("", *tasks), tasks, strict=False):
            before.setdefault(name, []).extend([earlier] if earlier else [])
    try:
        seen = list(TopologicalSorter(before).static_order())
    except CycleError:  # sets that somebody put together, each in an order of its own
        seen = list(before)
    place = {name: number for number, name in enumerate(seen)}
    others = {name: score.shift_of for _, card in of_track for name, score in card.tasks.items()}
    shifted = sorted((name for name in others if others[name]), key=lambda n: place.get(others[n], len(seen)))
    return list(dict.fromkeys([*seen, *(name for name in others if not others[name]), *shifted]))


def _board(track: str, count: int, results: Results, tasks: Sequence[str]) -> Board:
    experts = by_place(results, "experts", count)
    base = by_place(results, "base", count)
    labels = list(dict.fromkeys(cell.label for cell, _ in results))
    budgets = {cell.label: cell.budget for cell, _ in results}
    rows = {
        label: replace(_row(label, by_place(results, label, count), experts, base), budget=budgets[label])
        for label in labels
    }
    merges = [rows[label] for label in labels if not is_reference(label)]
    known = {name: score.metric for _, card in results for name, score in card.tasks.items()}
    metrics = {name: known[name] for name in tasks if name in known}
    order = sorted(merges, key=lambda row: _standing(row, metrics), reverse=True)
    found = _grouped([row.label for row in order], results, count)
    numbered = {label: i for i, group in enumerate(found, 1) for label in group}
    return Board(
        track=track,
        count=count,
        seeds=tuple(sorted({cell.seed for cell, _ in results})),
        rows=tuple(replace(row, group=numbered[row.label]) for row in order),
        references=tuple(rows[label] for label in _known(labels)),
        groups=tuple(tuple(group) for group in found),
        metrics=metrics,
        units=_units([card for _, card in results]),
        evidence=_evidence([card for _, card in results]),
    )


def _evidence(cards: Sequence[Scorecard]) -> dict[str, Evidence]:
    """What each task's items are as evidence."""
    tasks = {name: score.strata for card in cards for name, score in card.tasks.items()}
    held = list(dict.fromkeys(name for card in cards for name in card.held_in()))
    together = [[held[i] for i in block] for block in blocks([tasks[name] for name in held])]
    linked = {name: tuple(n for n in block if n != name) for block in together for name in block}
    return {
        name: Evidence(number_of([sample]), len(sample.scores), linked.get(name, ()))
        for name, sample in tasks.items()
    }


def _units(cards: Sequence[Scorecard]) -> dict[str, str]:
    """The unit of each column of means; none for tasks of several units."""
    out = {}
    for column, named in (
        ("mean", Scorecard.held_in),
        ("unseen", Scorecard.foreign),
        ("shifted", Scorecard.shifted),
    ):
        found = {card.tasks[name].metric.unit for card in cards for name in named(card)}
        out[column] = found.pop() if len(found) == 1 else ""
    return out


def _known(labels: Sequence[str]) -> list[str]:
    """The references among labels, those of single experts last."""
    single = sorted(label for label in labels if is_reference(label) and label not in REFERENCES)
    return [label for label in REFERENCES if label in labels] + single


def _grouped(order: list[str], results: Results, count: int) -> list[list[str]]:
    """Groups told apart at 95 %, by paired tests of every pair with Holm's correction.

    Tested is what ranks: shares of the experts' scores. Methods that no set has both of are not told apart.
    """
    cards = {label: by_place(results, label, count) for label in order}
    experts = by_place(results, "experts", count)
    every = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :]]
    tests = {
        f"{a}\0{b}": apart_by(cards[a], cards[b], experts) for a, b in every if set(cards[a]) & set(cards[b])
    }
    adjusted = holm(tests)
    return groups(order, {(a, b): adjusted.get(f"{a}\0{b}", 1.0) < 0.05 for a, b in every})


def _standing(row: Row, metrics: Mapping[str, Metric]) -> float:
    """What rows are ordered by, higher first: the normalised score; the mean where no expert was scored."""
    if not math.isnan(row.normalised):
        return row.normalised
    return row.mean.mean if metrics[row.worst[0]].better == "higher" else -row.mean.mean


def _row(
    label: str,
    cards: Cards,
    experts: Cards,
    base: Cards,
) -> Row:
    tasks: dict[str, list[float]] = defaultdict(list)
    ratios: dict[str, list[float]] = defaultdict(list)
    normalised, kept = [], []
    for place, card in cards.items():
        for name in card.held_in():
            tasks[name].append(card.tasks[name].mean)
        if place in experts:
            shares = card.ratios({n: experts[place].tasks[n].mean for n in card.held_in()})
            normalised.append(_mean(list(shares.values())))
            for name, share in shares.items():
                ratios[name].append(share)
        if place in base and card.foreign():
            kept.append(_gain(card, base[place], card.foreign()))
    means = {name: _mean(values) for name, values in tasks.items()}
    worst = min(means, key=lambda n: (_mean(ratios[n]), means[n]) if ratios[n] else (means[n], 0.0))
    first = next(iter(cards.values()))
    return Row(
        label=label,
        mean=_interval(list(cards.values())),
        normalised=_mean(normalised),
        worst=(worst, means[worst]),
        unseen=_mean([common_mean(card, card.foreign()) for card in cards.values() if card.foreign()]),
        forgetting=_mean(kept),
        shifted=_mean([common_mean(card, card.shifted()) for card in cards.values() if card.shifted()]),
        tasks=means,
        spent=_spent([card.spent for card in cards.values()]),
        settings=first.settings if len(cards) == 1 else {},
        cells=len(cards),
        elsewhere=_elsewhere(list(cards.values())),
        idle=bool(base) and all(place in base and _same(card, base[place]) for place, card in cards.items()),
    )


def _same(card: Scorecard, other: Scorecard) -> bool:
    """Whether every item of every task has the same number in both."""
    return all(
        name in other.tasks and numpy.array_equal(score.scores, other.tasks[name].scores)
        for name, score in card.tasks.items()
    )


def _elsewhere(cards: Sequence[Scorecard]) -> dict[str, float]:
    """Scores of unseen and shifted tasks, means over cards."""
    found: dict[str, list[float]] = defaultdict(list)
    for card in cards:
        for name in (*card.foreign(), *card.shifted()):
            found[name].append(card.tasks[name].mean)
    return {name: _mean(values) for name, values in found.items()}


def _interval(cards: Sequence[Scorecard]) -> Interval:
    """Of the mean over all tasks of all cards; NaN where they have no common unit."""
    held = [card.tasks[name] for card in cards for name in card.held_in()]
    if len({score.metric.scale for score in held}) > 1:
        return Interval(math.nan, math.nan, math.nan)
    strata, counts = joined([(card, None) for card in cards])
    found = bootstrap(strata, counts=counts)
    if held[0].metric.better == "higher":
        return found
    return Interval(-found.mean, -found.high, -found.low, found.level)


def _gain(card: Scorecard, base: Scorecard, names: Sequence[str]) -> float:
    """How much better than the base on tasks of one metric; NaN for several."""
    sign = 1 if card.tasks[names[0]].metric.better == "higher" else -1
    return sign * (common_mean(card, names) - common_mean(base, names))


def _spent(every: Sequence[Ledger]) -> Ledger:
    """Mean costs and the largest peak."""
    mean = Ledger()
    for one in every:
        mean.add(**{f: v / len(every) for f, v in one.as_json().items() if f != "peak_bytes"})
    mean.peak_bytes = max((one.peak_bytes for one in every), default=0)
    return mean


def _mean(values: Sequence[float]) -> float:
    return float(numpy.mean(values)) if values else math.nan
