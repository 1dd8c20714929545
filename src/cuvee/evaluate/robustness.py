"""What methods lose when one of the experts they are handed should not be there: stressed tracks beside their own.

Knows tracks by their names alone: `NAME+KIND` is NAME under stress.
"""

from __future__ import annotations

from collections.abc import Sequence

from cuvee.charts import Table, heat
from cuvee.evaluate.cells import clean
from cuvee.evaluate.leaderboard import percent
from cuvee.evaluate.pages import Part, Section
from cuvee.evaluate.statistics import holm
from cuvee.evaluate.table import Board, Cards, Results, beside, by_place, told_apart


def section(boards: Sequence[Board], results: Results) -> Section | None:
    """Normalised scores with and without each stress, and paired tests of what was lost; None without both."""
    named = told_apart(results)
    every = {(board.track, board.count): board for board in boards}
    found = [board for board in boards if not clean(board.track) and (_origin(board), board.count) in every]
    if not found:
        return None
    said = (
        "The same tasks and experts, but methods are handed one expert more that should not be there, or one out of "
        "proportion. Differences are stressed − clean, of mean scores on the same items turned so that higher is "
        "better, p with Holm's correction over each table. Where "
        "methods were tuned, they were tuned under stress."
    )
    parts: list[Part] = [said, *_overview(found, every)]
    parts += [_table(every[(_origin(board), board.count)], board, named) for board in found]
    return Section("Stress", tuple(parts))


def _origin(board: Board) -> str:
    return board.track.partition("+")[0]


def _overview(found: Sequence[Board], every: dict[tuple[str, int], Board]) -> list[Part]:
    """The normalised score of every method under every stress, for each track at its largest number of experts."""
    out: list[Part] = []
    for track in dict.fromkeys(_origin(board) for board in found):
        count = max(board.count for board in found if _origin(board) == track)
        columns = [every[(track, count)], *(b for b in found if (_origin(b), b.count) == (track, count))]
        names = ["clean", *(board.track.partition("+")[2] for board in columns[1:])]
        known = [{row.label: 100 * row.normalised for row in board.rows} for board in columns]
        labels = [label for label in known[0] if any(label in column for column in known[1:])]
        values = [[column.get(label, float("nan")) for column in known] for label in labels]
        said = f"Score ÷ own expert's score with {count} experts, mean over tasks, per cent."
        title = f"Under stress: {track}"
        out.append(heat(title, said, labels, names, values, largest=100.0, column="method"))
    return out


def _table(origin: Board, stressed: Board, named: Results) -> Table:
    """One stress: each method before, after, and the test of the difference."""
    rows = {row.label: row for row in origin.rows}
    shared = [row for row in stressed.rows if row.label in rows]
    tests = {}
    for row in shared:
        under, without = (_cards(board, row.label, named) for board in (stressed, origin))
        if set(under) & set(without):
            tests[row.label] = beside(under, without)
    adjusted = holm({label: test.p_value for label, test in tests.items()})
    lines = [
        [
            row.label,
            percent(rows[row.label].normalised),
            percent(row.normalised),
            "{:+.2f} ({:+.2f} … {:+.2f})".format(*(100 * v for v in (d.mean, d.low, d.high))),
            f"{adjusted[row.label]:.4f}",
        ]
        for row in shared
        if row.label in tests and (d := tests[row.label].difference)
    ]
    header = (
        f"{stressed.track}, {stressed.count} tasks",
        "clean",
        "stressed",
        "difference (95 %), points",
        "p (Holm)",
    )
    return Table(header, lines)


def _cards(board: Board, label: str, named: Results) -> Cards:
    """The cards of a method on a board by seed and set, so that both tracks have the same places."""
    here = [(cell, card) for cell, card in named if cell.track == board.track]
    return {place[2:]: card for place, card in by_place(here, label, board.count).items()}
