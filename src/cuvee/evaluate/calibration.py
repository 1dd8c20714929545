"""Whether models know how sure they may be: confidence beside accuracy, on tasks with experts and on shifted data."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

from cuvee.charts import Table
from cuvee.core.lazy import numpy
from cuvee.evaluate.leaderboard import percent
from cuvee.evaluate.pages import Section
from cuvee.evaluate.paired import Results
from cuvee.evaluate.scorecard import Scorecard, TaskScore
from cuvee.evaluate.statistics import calibration_error
from cuvee.evaluate.table import Board

SAID = """\
Expected calibration error over 15 bins of confidence: how far, on average, the probability that a model gives to its \
answer is from how often it is right; 0 is best. Sure − right: mean confidence minus accuracy, positive is \
overconfident. Means over tasks, sets and seeds, in points. Frozen heads have one sharpness for all models: columns \
compare models, not tracks."""
_HEADER = ("method", "error", "sure − right", "error, shifted", "sure − right, shifted")


def section(board: Board, results: Results) -> Section | None:
    """Of every row of a board; None where no model told its confidence. `results` are those of the board."""
    cards: dict[str, list[Scorecard]] = defaultdict(list)
    for cell, card in results:
        cards[cell.label].append(card)
    rows = []
    for row in (*board.references, *board.rows):
        found = _figures(cards[row.label])
        if not all(map(math.isnan, found)):
            rows.append([row.label, *(percent(value) for value in found)])
    if not rows:
        return None
    return Section(f"Calibration: {board.track}, {board.count} experts", (SAID, Table(_HEADER, rows)))


def _figures(cards: Sequence[Scorecard]) -> list[float]:
    held = [card.tasks[name] for card in cards for name in card.held_in()]
    shifted = [card.tasks[name] for card in cards for name in card.shifted()]
    return [_mean(figure, scores) for scores in (held, shifted) for figure in (_error, _excess)]


def _error(score: TaskScore) -> float:
    assert score.confidence is not None
    return calibration_error(score.confidence, score.scores)


def _excess(score: TaskScore) -> float:
    assert score.confidence is not None
    return float(score.confidence.mean() - score.scores.mean())


def _mean(figure: Callable[[TaskScore], float], scores: Sequence[TaskScore]) -> float:
    known = [figure(score) for score in scores if score.confidence is not None and len(score.scores)]
    return float(numpy.mean(known)) if known else math.nan
