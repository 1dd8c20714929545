"""Parts of study reports that several studies share: gaps between methods, trade-offs, sensitivity, prerequisites."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cuvee.charts import Table, lines
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.leaderboard import in_unit, percent, points, shown, signed
from cuvee.evaluate.pages import Section
from cuvee.evaluate.paired import Results
from cuvee.evaluate.space import dimensions
from cuvee.evaluate.table import Board, Row
from cuvee.methods import registry


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


def tradeoff(found: Sequence[Board]) -> Section:
    """Held-in, generalisation, worst task and cost of each method, side by side, at the largest number of experts."""
    rows = []
    for board in _largest(found):
        rows += [
            [
                board.track,
                row.label,
                percent(row.normalised),
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
        "worst task",
        "unseen",
        "forgetting",
        "evaluations",
        "seconds",
        "TFLOP",
    )
    return Section("Held-in, generalisation and cost", (Table(header, rows),))


def spread(results: Results) -> Section | None:
    """How much the selection score depends on the tuned values: best, median and worst of what was tried."""
    rows = []
    for cell, card in results:
        values = sorted(value for _, value in card.log)
        if len(values) >= 3:
            middle = values[len(values) // 2]
            shown = [
                percent(values[-1]),
                percent(middle),
                percent(values[0]),
                f"{100 * (values[-1] - values[0]):.1f}",
            ]
            rows.append([cell.label, len(cell.tasks), cell.seed, len(values), *shown])
    if not rows:
        return None
    header = ("method", "experts", "seed", "tried", "best", "median", "worst", "range, points")
    return Section(
        "Sensitivity to hyper-parameters (selection scores)", (Table(header, sorted(rows, key=str)),)
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
