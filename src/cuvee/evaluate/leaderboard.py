"""A leaderboard as Markdown or HTML: a table for each track and number of experts, groups, costs, what columns mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cuvee.charts import Chart, Table, bars, heat, page, prose
from cuvee.evaluate.table import Board, Row

_LEGEND = """\
*Mean*: over tasks, with the 95 % interval of the items drawn anew. *Normalised*: score ÷ own expert's score, mean over
tasks. *Worst*: the task that went worst. *Unseen*: tasks without an expert. *Forgetting*: unseen score minus the
base's. *Group*: methods of one group cannot be told from its best at 95 % (paired test on the same items, Holm's
correction over all pairs). *Evaluations*: candidates scored on the selection part to tune, the same budget for all.
"""


def markdown(boards: Sequence[Board]) -> str:
    """All leaderboards in one document."""
    parts = ["# Leaderboard", "", _LEGEND]
    for board in boards:
        seeds = ", ".join(str(seed) for seed in board.seeds)
        parts += [
            f"## {board.track}, {board.count} experts (seeds {seeds})",
            "",
            *_scores(board),
            "",
            *_tasks(board),
            "",
        ]
    return "\n".join(parts)


def html(boards: Sequence[Board]) -> str:
    """All leaderboards as one self-contained page: the same tables, means as bars, tasks as a heat map."""
    parts: list[str | Chart | Table] = [prose("p", _LEGEND.replace("*", ""))]
    for board in boards:
        seeds = ", ".join(str(seed) for seed in board.seeds)
        parts.append(prose("h2", f"{board.track}, {board.count} experts (seeds {seeds})"))
        rows = (*board.references, *board.rows)
        parts += [Table(_HEAD, [_cells(row) for row in rows]), _means(rows), _task_map(rows)]
    return page("Leaderboard", parts)


def _means(rows: Sequence[Row]) -> Chart:
    return bars(
        "Mean score",
        "Mean over tasks in points, with the 95 % interval of the items drawn anew.",
        [row.label for row in rows],
        {"mean": [100 * row.mean.mean for row in rows]},
        ends={"mean": [(100 * row.mean.low, 100 * row.mean.high) for row in rows]},
        column="method",
    )


def _task_map(rows: Sequence[Row]) -> Chart:
    names = _task_names(rows)
    values = [[100 * row.tasks.get(name, math.nan) for name in names] for row in rows]
    said = "Score of each method on each task, in points."
    labels = [row.label for row in rows]
    return heat("Scores by task", said, labels, names, values, largest=100.0, column="method")


_HEAD = (
    "group",
    "method",
    "mean (95 %)",
    "normalised",
    "worst",
    "unseen",
    "forgetting",
    "evaluations",
    "tuning, s",
)


def _scores(board: Board) -> list[str]:
    lines = ["| " + " | ".join(_HEAD) + " |", "| " + " | ".join("---" for _ in _HEAD) + " |"]
    for row in (*board.references, *board.rows):
        group, label, *cells = _cells(row)
        shown = [group, label if row.group else f"*{label}*", *cells]
        lines.append("| " + " | ".join(shown) + " |")
    return lines


def _cells(row: Row) -> list[str]:
    return [
        str(row.group) if row.group else "–",
        row.label,
        f"{_percent(row.mean.mean)} ({_percent(row.mean.low)}–{_percent(row.mean.high)})",
        _percent(row.normalised),
        f"{row.worst[0]} {_percent(row.worst[1])}",
        _percent(row.unseen),
        _signed(row.forgetting),
        f"{row.evaluations:.0f}",
        f"{row.seconds:.0f}",
    ]


def _tasks(board: Board) -> list[str]:
    names = _task_names(board.rows)
    lines = [
        "| method | " + " | ".join(names) + " |",
        "| " + " | ".join("---" for _ in range(len(names) + 1)) + " |",
    ]
    return lines + [_task_line(row, names) for row in (*board.references, *board.rows)]


def _task_names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.tasks))


def _task_line(row: Row, names: Sequence[str]) -> str:
    return f"| {row.label} | " + " | ".join(_percent(row.tasks.get(n, math.nan)) for n in names) + " |"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:+.1f}"
