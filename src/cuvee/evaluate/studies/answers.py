"""Parts of study reports that several studies share: gaps between methods, trade-offs, sensitivity, prerequisites."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cuvee.charts import Table, heat, lines
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.leaderboard import (
    difference,
    in_unit,
    percent,
    points,
    probability,
    shown,
    signed,
    unit_of,
)
from cuvee.evaluate.pages import Part, Section
from cuvee.evaluate.paired import Results, by_place, on_tasks, told_apart
from cuvee.evaluate.scorecard import Scorecard
from cuvee.evaluate.space import dimensions
from cuvee.evaluate.statistics import Comparison, holm
from cuvee.evaluate.table import Board, Row
from cuvee.methods import registry

_LEVEL = 0.05


def gaps(found: Sequence[Board]) -> Section:
    """The distance between the best and the worst method at each number of experts, and how many groups they form."""
    rows = [
        [
            board.track,
            board.count,
            board.rows[0].label,
            percent(board.rows[0].normalised),
            board.rows[-1].label,
            percent(board.rows[-1].normalised),
            f"{100 * (board.rows[0].normalised - board.rows[-1].normalised):.1f}",
            len(board.groups),
        ]
        for board in sorted(found, key=lambda board: board.count)
        if board.rows
    ]
    header = (
        "track",
        "experts",
        "best",
        "normalised",
        "worst",
        "normalised",
        "gap, points",
        "groups at 95 %",
    )
    return Section("Do the differences between methods vanish?", (Table(header, rows),))


def against_experts(boards: Sequence[Board], field: str, title: str, said: str) -> Section | None:
    """A figure beside the base's, for each method and number of experts."""
    found = sorted(boards, key=lambda board: board.count)
    labels = list(dict.fromkeys(row.label for board in found for row in board.rows))
    series = {label: [_beside_base(board, label, field) for board in found] for label in labels}
    known = {label: values for label, values in series.items() if not all(map(math.isnan, values))}
    if not known:
        return None
    return Section(title, (lines(title, said, [str(b.count) for b in found], known, column="experts"),))


def _beside_base(board: Board, label: str, field: str) -> float:
    row = _named(board.rows, label)
    base = _named(board.references, "base")
    if row is None or base is None:
        return math.nan
    return points(float(getattr(row, field)) - float(getattr(base, field)), board.unit(field))


def _named(rows: Sequence[Row], label: str) -> Row | None:
    return next((row for row in rows if row.label == label), None)


def beyond_base(found: Sequence[Board], results: Results) -> Section:
    """Each method, and joint training, beside the base on tasks without an expert, those of one metric together."""
    named = told_apart(results)
    rows: list[list[object]] = []
    tests: dict[str, Comparison] = {}
    for board in sorted(found, key=lambda board: board.count):
        here = [(cell, card) for cell, card in named if cell.track == board.track]
        base = by_place(here, "base", board.count)
        for names in _of_one_metric([card for _, card in here]):
            for row in (*(r for r in board.references if r.label == "multitask"), *board.rows):
                test = on_tasks(by_place(here, row.label, board.count), base, names)
                if test is not None:
                    tests[str(len(rows))] = test
                    rows.append(
                        [board.count, row.label, ", ".join(names), difference(test), unit_of(test.unit)]
                    )
    adjusted = holm({number: test.p_value for number, test in tests.items()})
    header = ("experts", "method", "tasks", "method − base (95 %)", "in", "p (Holm)")
    table = Table(header, [[*row, probability(adjusted[str(number)])] for number, row in enumerate(rows)])
    clear = [number for number in tests if adjusted[number] < _LEVEL]
    better = sum(tests[number].difference.mean > 0 for number in clear)
    said = (
        "Scores on tasks without an expert minus the base's on the same items, turned so that higher is better; p with "
        f"Holm's correction over the table. Of {len(rows)} lines {better} are better than the base at the 95 % level, "
        f"{len(clear) - better} worse."
    )
    none = "The track has no tasks without an expert, so that this is not answered."
    return Section("Unseen tasks: merges beside the base", (said, table) if rows else (none,))


def _of_one_metric(cards: Sequence[Scorecard]) -> list[list[str]]:
    """Names of unseen tasks, those of one metric together."""
    found: dict[object, list[str]] = {}
    for name, score in {n: card.tasks[n] for card in cards for n in card.foreign()}.items():
        found.setdefault(score.metric.scale, []).append(name)
    return list(found.values())


def growth(found: Sequence[Board]) -> Section | None:
    """The normalised score with the fewest and the most experts, and how it changes; None for one number."""
    ordered = sorted(found, key=lambda board: board.count)
    if len({board.count for board in ordered}) < 2:
        return None
    few, many = ordered[0], ordered[-1]
    rows = []
    for row in many.rows:
        before = _named(few.rows, row.label)
        if before is not None:
            change = f"{100 * (row.normalised - before.normalised):+.1f}"
            rows.append([row.label, percent(before.normalised), percent(row.normalised), change])
    base = [
        f"{percent(one.normalised)} with {b.count}"
        for b in (few, many)
        if (one := _named(b.references, "base"))
    ]
    said = (
        "Mean over the tasks of each set, as a share of the own experts. The base, which does not change, has "
        f"{' and '.join(base)}: sets of other tasks are not equally hard, so a change as small as that says nothing."
    )
    header = ("method", f"{few.count} experts", f"{many.count} experts", "change, points")
    return Section("Does the held-in score fall as experts are added?", (said, Table(header, rows)))


def kept(found: Sequence[Board]) -> Section:
    """The share of every expert's own score that each method keeps, task by task, with the most experts."""
    parts: list[Part] = []
    for board in _largest(found):
        experts, names = _named(board.references, "experts"), list(board.metrics)
        if experts is None:
            continue
        names = [name for name in names if name in experts.tasks]
        rows = [row for row in (*board.references, *board.rows) if row.label != "experts"]
        values = [[100 * _share(row, experts, name, board) for name in names] for row in rows]
        title = f"Share of each expert that is kept: {board.track}, {board.count} experts"
        said = "Score ÷ own expert's score, per cent; above 100 the merge is better than the expert."
        parts.append(
            heat(title, said, [row.label for row in rows], names, values, largest=None, column="method")
        )
    return Section("What is kept of each expert", tuple(parts) or ("No experts were scored.",))


def _share(row: Row, experts: Row, name: str, board: Board) -> float:
    return board.metrics[name].share(row.tasks.get(name, math.nan), experts.tasks[name])


def tradeoff(found: Sequence[Board]) -> Section:
    """Held-in, generalisation, worst task and cost of each method, side by side, at the largest number of experts."""
    rows = []
    for board in _largest(found):
        rows += [
            [
                board.track,
                row.label,
                percent(row.normalised),
                percent(_way(row, board)),
                f"{row.worst[0]} {shown(row.worst[1], board.metrics[row.worst[0]])}",
                in_unit(row.unseen, board.unit("unseen")),
                signed(row.forgetting, board.unit("forgetting")),
                f"{row.spent.evaluations:.0f}",
                f"{row.spent.seconds:.0f}",
                f"{row.spent.flops / 1e12:.3g}",
            ]
            for row in (*board.references, *board.rows)
        ]
    header = (
        "track",
        "method",
        "held-in",
        "way from base to experts",
        "worst task",
        "unseen",
        "forgetting",
        "evaluations",
        "seconds",
        "TFLOP",
    )
    said = (
        "Held-in: score ÷ own expert's score. The way: (held-in − base) ÷ (100 − base), since a strong base has most "
        "of the held-in score already; below 0 the merge is worse than no merge. Costs are those of choosing: an "
        "untuned line beside a tuned one is the price of validation."
    )
    return Section("Held-in, generalisation and cost", (said, Table(header, rows)))


def _way(row: Row, board: Board) -> float:
    """How far a row is on the way from the base to the experts."""
    base = _named(board.references, "base")
    left = math.nan if base is None else 1 - base.normalised
    return (row.normalised - base.normalised) / left if base is not None and left > 0 else math.nan


def spread(results: Results) -> Section | None:
    """How much the selection score depends on the tuned values: best, median and worst of what was tried.

    Scores are what methods were tuned by: means of score ÷ own expert's score, in per cent.
    """
    rows = []
    for cell, card in results:
        values = sorted(value for _, value in card.log)
        if len(values) >= 3 and cell.protocol > 1:  # the first tuned on another mean
            middle = values[len(values) // 2]
            written = [percent(v) for v in (values[-1], middle, values[0], values[-1] - values[0])]
            rows.append([cell.label, len(cell.tasks), cell.seed, len(values), *written])
    if not rows:
        return None
    header = ("method", "experts", "seed", "tried", "best", "median", "worst", "range")
    return Section(
        "Sensitivity to hyper-parameters (selection scores, per cent of the experts')",
        (Table(header, sorted(rows, key=str)),),
    )


def prerequisites(methods: Sequence[Contender]) -> Section:
    """What each method needs: the base, data, and which parameters are tuned."""
    rows = [
        [
            one.method,
            str(registry.get(one.method).base),
            ", ".join(d.name for d in dimensions(one.method)) or "nothing",
        ]
        for one in methods
    ]
    return Section("What methods need", (Table(("method", "base", "tuned"), rows),))


def _largest(boards: Sequence[Board]) -> list[Board]:
    found: dict[str, Board] = {}
    for board in boards:
        found.setdefault(board.track, board)  # the most experts come first
    return list(found.values())
