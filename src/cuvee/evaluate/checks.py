"""Whether experts can be trusted: one far better on test than on selection items is a leak until explained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cuvee.charts import Table
from cuvee.core.lazy import numpy
from cuvee.evaluate.leaderboard import shown
from cuvee.evaluate.pages import Section
from cuvee.evaluate.paired import Results
from cuvee.evaluate.scorecard import TaskScore
from cuvee.evaluate.table import Board
from cuvee.evaluate.units import squared_error

_FAR = 4.0  # standard errors from which a difference is not chance


def summary(score: TaskScore) -> list[float]:
    """Mean of a task's items and the variance of that mean, whole groups of items being its units, as plain data."""
    return [score.mean, squared_error([score.strata], numpy.ones(1))]


def section(board: Board, results: Results) -> Section | None:
    """Every expert on its own task, selection beside test; None where cells hold no selection scores."""
    rows = []
    for cell, card in sorted(results, key=lambda one: one[0].seed):
        known: Mapping[str, Sequence[float]] = (
            card.settings.get("selection", {}) if cell.label == "experts" else {}
        )
        rows += [_row(cell.seed, name, card.tasks[name], known[name]) for name in known if name in card.tasks]
    unique = list({(row[0], row[1]): row for row in rows}.values())
    if not unique:
        return None
    header = ("seed", "expert of", "selection", "test", "test better by", "standard errors", "verdict")
    said = (
        "Each expert's score on its own task. An expert that is far better on test items than on selection items (four "
        "standard errors) has seen them, or the parts differ: explain it before anything is normalised by it."
    )
    return Section(f"Experts, selection beside test: {board.track}", (said, Table(header, unique)))


def _row(seed: int, name: str, score: TaskScore, known: Sequence[float]) -> list[Any]:
    mean, variance = known
    sign = 1 if score.metric.better == "higher" else -1
    test, spread = summary(score)
    gain, error = sign * (test - mean), math.sqrt(variance + spread)
    far = gain / error if error > 0 else (0.0 if gain == 0 else math.copysign(math.inf, gain))
    verdict = "look for a leak" if far > _FAR else "unremarkable"
    figures = [shown(value, score.metric) for value in (mean, test, gain)]
    return [seed, name, *figures, f"{far:+.1f}", verdict]
