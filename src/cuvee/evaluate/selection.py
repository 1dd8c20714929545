"""What a method sees while it chooses: weights, train and selection parts, and a counted way to be scored on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cuvee.core.lazy import numpy
from cuvee.core.names import printable
from cuvee.errors import EvaluationError
from cuvee.evaluate.ledger import Ledger
from cuvee.evaluate.scorecard import Scorecard, TaskScore
from cuvee.evaluate.task import ACCURACY, Item, Task
from cuvee.evaluate.track import Examinee, Track, handed

if TYPE_CHECKING:
    from cuvee.evaluate.track import Weights
    from cuvee.evaluate.units import Scores


_MOST = 100.0  # a share counts no more than this: of a loss of nearly zero it would drown all other tasks


class BudgetSpent(Exception):
    """No evaluations are left. A method may catch it; else the referee takes the best candidate so far.

    Without any budget that is the first candidate the method wanted scored: what it would do untuned.
    """


@dataclass(slots=True)
class Selection:
    """One method's tuning phase on one set of tasks: at most `budget` evaluations, each of all selection items.

    The live model is not the method's: what it answers is counted, and it scores the others too.
    """

    track: Track
    names: Sequence[str]
    _examinee: Examinee
    budget: int
    experts_scores: Mapping[str, float] = field(default_factory=dict)  # of each expert on its selection part
    ledger: Ledger = field(default_factory=Ledger)
    log: list[tuple[Mapping[str, object], float]] = field(default_factory=list)
    best: tuple[Weights, Mapping[str, object]] | None = (
        None  # the candidate that stands if the method stops here
    )
    _seen: set[str] = field(default_factory=set)

    @property
    def base(self) -> Weights:
        """The base's tensors."""
        return self._handed("base", self.track.base)

    @property
    def experts(self) -> list[Weights]:
        """The experts of the tasks, in order."""
        given = handed(self.track, self.names)
        return [self._handed(f"expert {number}", weights) for number, weights in enumerate(given)]

    def _handed(self, what: str, weights: Weights) -> Weights:
        """Weights that a method asked for; their bytes count once."""
        if what not in self._seen:
            self._seen.add(what)
            self.ledger.add(bytes_read=sum(tensor.nbytes for tensor in weights.values()))
        return weights

    @property
    def tasks(self) -> list[Task]:
        """The tasks: train and selection parts can be read, test parts are sealed."""
        return [self.track.tasks[name] for name in self.names]

    def evaluate(self, weights: Weights, settings: Mapping[str, object] | None = None) -> float:
        """Score a candidate on the selection parts: the mean over tasks of its shares of the experts' scores.

        A share is score ÷ own expert's score on the same items, or its inverse where lower is better, as reports have
        it on test items: 1 is the expert, 100 the most, and tasks of several metrics count alike. Where the expert's
        score is unknown or not above zero it is the plain score, turned so that higher is better. Tensors that
        `weights` lacks are the base's.
        Raises BudgetSpent when nothing is left; every call counts one evaluation.
        """
        if self.ledger.evaluations >= self.budget:
            self.best = self.best or (weights, dict(settings or {}))
            raise BudgetSpent
        empty = next((task.name for task in self.tasks if not task.selection), None)
        if empty is not None:
            raise EvaluationError(
                "CV-B374",
                f"the task `{printable(empty)}` has no selection items, so candidates cannot be scored",
                hint="give it some, or run without tuning (`--budget 0`)",
            )
        self._examinee.load({**self.track.base, **weights})
        card = answered(self._examinee, self.tasks, "selection", self.ledger)
        self.ledger.add(evaluations=1)
        value = float(numpy.mean([self._share(name, score) for name, score in card.items()]))
        if value > max((known for _, known in self.log), default=-math.inf):
            self.best = (weights, dict(settings or {}))
        self.log.append((dict(settings or {}), value))
        return value

    def _share(self, task: str, score: TaskScore) -> float:
        best, higher = self.experts_scores.get(task), score.metric.better == "higher"
        if best is None or best <= 0:
            return score.mean if higher else -score.mean
        share = score.share(best)
        return _MOST if math.isnan(share) else min(share, _MOST)  # NaN: no loss is left to divide by


def answered(examinee: Examinee, tasks: Sequence[Task], part: str, ledger: Ledger) -> dict[str, TaskScore]:
    """The examinee's numbers on one part of each task."""
    out = {}
    for task in tasks:
        items: Sequence[Item] = list(getattr(task, part))
        scores, confidence = _asked(examinee, task, items, ledger)
        if scores.shape != (len(items),) or not numpy.isfinite(scores).all():
            raise EvaluationError(
                "CV-B005",
                f"the model gave {scores.size} numbers for the {len(items)} items of `{task.name}`"
                if scores.shape != (len(items),)
                else f"the model's answers on `{task.name}` hold NaN or infinity",
            )
        weights = numpy.array([item.weight for item in items], dtype=numpy.float64)
        units = numpy.array(task.units(items), dtype=numpy.int64)
        out[task.name] = TaskScore(
            task.metric, scores, weights, task.unseen, task.shift_of, confidence, units
        )
    return out


def _asked(
    examinee: Examinee, task: Task, items: Sequence[Item], ledger: Ledger
) -> tuple[Scores, Scores | None]:
    """A number for each item, and where the examinee is a classifier its confidence (0 where that is NaN)."""
    classify = getattr(examinee, "classify", None) if task.metric.name == ACCURACY.name else None
    if classify is None:
        return numpy.asarray(examinee.answer(task, items, ledger), dtype=numpy.float64), None
    found = classify(task, items, ledger)
    sure = numpy.nan_to_num(numpy.asarray(found.confidence, dtype=numpy.float64), nan=0.0)
    if sure.shape != (len(items),) or ((sure < 0) | (sure > 1 + 1e-6)).any():
        raise EvaluationError(
            "CV-B005",
            f"the model's confidence on `{task.name}` is not one probability from 0 to 1 for each item",
        )
    return numpy.asarray(found.scores, dtype=numpy.float64), sure


def scorecard(name: str, examinee: Examinee, tasks: Sequence[Task], ledger: Ledger) -> Scorecard:
    """Test scores of the weights the examinee holds; the caller is in the scoring phase."""
    with ledger.spending():
        scores = answered(examinee, tasks, "test", ledger)
    return Scorecard(name, scores, ledger)
