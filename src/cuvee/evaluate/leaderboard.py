"""A leaderboard as Markdown: one table for each track and number of experts, groups, costs, what each column means."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def _scores(board: Board) -> list[str]:
    head = [
        "group",
        "method",
        "mean (95 %)",
        "normalised",
        "worst",
        "unseen",
        "forgetting",
        "evaluations",
        "tuning, s",
    ]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for row in (*board.references, *board.rows):
        cells = [
            str(row.group) if row.group else "–",
            row.label if row.group else f"*{row.label}*",
            f"{_percent(row.mean.mean)} ({_percent(row.mean.low)}–{_percent(row.mean.high)})",
            _percent(row.normalised),
            f"{row.worst[0]} {_percent(row.worst[1])}",
            _percent(row.unseen),
            _signed(row.forgetting),
            f"{row.evaluations:.0f}",
            f"{row.seconds:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _tasks(board: Board) -> list[str]:
    names = list(dict.fromkeys(name for row in board.rows for name in row.tasks))
    lines = [
        "| method | " + " | ".join(names) + " |",
        "| " + " | ".join("---" for _ in range(len(names) + 1)) + " |",
    ]
    return lines + [_task_line(row, names) for row in (*board.references, *board.rows)]


def _task_line(row: Row, names: Sequence[str]) -> str:
    return f"| {row.label} | " + " | ".join(_percent(row.tasks.get(n, math.nan)) for n in names) + " |"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:+.1f}"
