"""What scores of single models say before a merge: what half a change is worth, and what it does to the others' tasks.

2 n + 1 models are scored and nothing is merged. δᵢ is the change of expert i, sᵢ the mean score on task i's items:

    halving(i)         = (sᵢ(base + δᵢ) − sᵢ(base + δᵢ / 2)) / |sᵢ(base + δᵢ)|, turned where lower is better
    disturbance(i, j)  = mean over the items of task i of |score(base + δⱼ) − score(base)|

Both scores of a halving are of the same items, so that its standard error is that of a ratio of paired means; items
count as independent. Disturbance is the error of weight disentanglement (arXiv:2305.12827) at the ends, in units of the
score. Knows no track: what scores a model is a function somebody passes in, on data that the merge is not judged by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cuvee.analyze.landscape import Better, Weights, blend, opened_alike
from cuvee.core.lazy import numpy
from cuvee.core.names import printable
from cuvee.core.plain import plain
from cuvee.errors import EvaluationError, UsageError

if TYPE_CHECKING:
    from cuvee.analyze.sums import Array

ItemScores = Callable[[Weights, str], Any]
"""From weights and the name of a task to one number for each of the task's items, always the same items."""


@dataclass(frozen=True, slots=True)
class Probes:
    """Mean scores on each task (n): of the base, its own expert, and that expert at half its change.

    `better[i]` says which way the scores of task i point. `disturbance` is (n, n), row by task, column by expert, where
    it was asked for. `halving_error` (n): the standard error of each halving; `bend_error` (n): of how much more than
    half of its gain halving costs. Both are NaN for a single item.
    """

    tasks: tuple[str, ...]
    better: tuple[Better, ...]
    base: Array
    own: Array
    halved: Array
    disturbance: Array | None = None
    halving_error: Array | None = None
    bend_error: Array | None = None

    @property
    def halving(self) -> Array:
        """The share of its score that each expert loses at half its change (n); below 0 where it gains."""
        return self._lost(self.halved)

    @property
    def gain(self) -> Array:
        """The share of each expert's score that the base lacks (n); 0 or less where fine-tuning gained nothing."""
        return self._lost(self.base)

    def figures_of_pairs(self) -> dict[str, Array]:
        """The figures that could forecast how a pair merges (n × n), by name; larger should be worse."""
        found: dict[str, Array] = {
            "strength lost by halving": numpy.add.outer(self.halving, self.halving) / 2
        }
        if self.disturbance is not None:
            found["disturbance of each other's task"] = (self.disturbance + self.disturbance.T) / 2
        return found

    def told_halvings(self) -> list[str]:
        """Each halving in per cent, with its standard error."""
        errors = numpy.full(len(self.tasks), math.nan) if self.halving_error is None else self.halving_error
        pairs = zip(self.halving, errors, strict=True)
        return [f"{v:.1%}" + ("" if math.isnan(e) else f" ± {100 * e:.1f}") for v, e in pairs]

    def as_json(self) -> dict[str, Any]:
        """Plain data by name; a share that does not exist (a score of 0) is null."""
        named = ("base", "own", "halved", "gain", "halving", "halving_error", "bend_error")
        tables = {name: getattr(self, name) for name in named}
        found: dict[str, Any] = plain({"tasks": self.tasks, **tables, "disturbance": self.disturbance})
        return found

    def _lost(self, scores: Array) -> Array:
        signs = numpy.array([1.0 if way == "higher" else -1.0 for way in self.better])
        with numpy.errstate(divide="ignore", invalid="ignore"):
            lost: Array = signs * (self.own - scores) / numpy.abs(self.own)
        return lost


def probe(
    base: Any,
    experts: Mapping[str, Any],
    score: ItemScores,
    *,
    better: Better | Mapping[str, Better] = "higher",
    across: bool = False,
) -> Probes:
    """Score the base, every expert, and every expert at half its change, each on the expert's own task.

    Args:
        base: the common ancestor (path, hub URI, dictionary of tensors).
        experts: its fine-tunes by the name of their task.
        score: from weights and a task's name to one number for each of the task's items.
        better: whether higher or lower scores are better, for all tasks or by name.
        across: score every expert on every task too (n² scores), for the disturbance.

    Raises:
        UsageError: no expert was given (CV-B234).
        EvaluationError: models differ in their tensors (CV-B231), or scores are not finite or not of the same items
            (CV-B232).
    """
    if not experts:
        raise UsageError("CV-B234", "an analysis needs at least one expert beside the base")
    tasks = tuple(experts)
    with opened_alike(base) as (start,):
        before = {task: _asked(score, start, task) for task in tasks}
    own, halved, error, bend = numpy.zeros((4, len(tasks)))
    disturbance = numpy.zeros((len(tasks), len(tasks)))
    for j, name in enumerate(tasks):
        with opened_alike(base, experts[name]) as (start, end):
            half = _asked(score, blend(start, [(0.5, end)]), name, before)
            halved[j] = half.mean()
            for i, task in enumerate(tasks):
                if i != j and not across:
                    continue
                after = _asked(score, end, task, before)
                disturbance[i, j] = numpy.abs(after - before[task]).mean()
                if i == j:
                    own[j], error[j] = after.mean(), _error_of_ratio(half, after)
                    bend[j] = _error_of_ratio(half - before[name] / 2, after)
    ways = tuple(better if isinstance(better, str) else better[task] for task in tasks)
    means = numpy.array([before[task].mean() for task in tasks])
    return Probes(tasks, ways, means, own, halved, disturbance if across else None, error, bend)


def _error_of_ratio(above: Array, below: Array) -> float:
    """The standard error of mean(above) / mean(below) over the same items, by linearising."""
    count = len(above)
    with numpy.errstate(divide="ignore", invalid="ignore"):
        left = (above - above.mean() / below.mean() * below) / below.mean()
    return float(numpy.sqrt((left**2).sum() / (count - 1) / count)) if count > 1 else math.nan


def _asked(
    score: ItemScores, weights: Weights, task: str, before: Mapping[str, Array] | None = None
) -> Array:
    found: Array = numpy.asarray(score(weights, task), dtype=numpy.float64)
    count = found.size if before is None else before[task].size
    if found.ndim != 1 or not found.size or found.size != count or not numpy.isfinite(found).all():
        raise EvaluationError(
            "CV-B232",
            f"the scores on `{printable(task)}` are {found.size} numbers, not all finite or not one for each of the "
            f"{count} items",
        )
    return found
