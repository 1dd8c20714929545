"""The scores of one model: each item's number kept, and everything that is reported made from them.

Knows no models. Normalised scores divide by the own expert's score on the task (for metrics where lower is better,
the other way round), so 1 is the expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import numpy
from cuvee.evaluate.ledger import Ledger
from cuvee.evaluate.statistics import Interval, bootstrap
from cuvee.evaluate.task import Metric
from cuvee.evaluate.units import Sample, weighted_mean

if TYPE_CHECKING:
    from cuvee.evaluate.units import Scores, Units


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One task's items: their numbers, weights and metric; of a classifier its confidence in each answer.

    `units`: a number for the group of each item; None: every item is its own.
    """

    metric: Metric
    scores: Scores
    weights: Scores
    unseen: bool = False
    shift_of: str = ""
    confidence: Scores | None = None
    units: Units | None = None

    @property
    def mean(self) -> float:
        """The weighted mean."""
        return weighted_mean(self.scores, self.weights)

    @property
    def strata(self) -> Sample:
        """Scores turned so that higher is better, with weights and units: what comparisons work on."""
        turned = self.scores if self.metric.better == "higher" else -self.scores
        return Sample(turned, self.weights, self.units)

    def share(self, best: float) -> float:
        """The mean ÷ the expert's, or its inverse where lower is better; NaN where the divisor is not above zero."""
        return self.metric.share(self.mean, best)


@dataclass(frozen=True, slots=True)
class Scorecard:
    """Scores of one model on every task it was asked, with what it cost to make and score it."""

    name: str
    tasks: Mapping[str, TaskScore]
    spent: Ledger = field(default_factory=Ledger)
    settings: Mapping[str, Any] = field(default_factory=dict)
    log: Sequence[tuple[Mapping[str, Any], float]] = ()  # what was tried on selection data, in order

    def held_in(self) -> list[str]:
        """Names of the tasks that have an expert."""
        return [name for name, score in self.tasks.items() if not score.unseen]

    def foreign(self) -> list[str]:
        """Names of the tasks without an expert that are no shift of another."""
        return [name for name, score in self.tasks.items() if score.unseen and not score.shift_of]

    def shifted(self) -> list[str]:
        """Names of the tasks on shifted data."""
        return [name for name, score in self.tasks.items() if score.shift_of]

    def mean(self, names: Sequence[str] | None = None) -> float:
        """Mean over tasks of the task means (all tasks with experts if none are named)."""
        chosen = self.held_in() if names is None else names
        return float(numpy.mean([self.tasks[name].mean for name in chosen])) if chosen else float("nan")

    def worst(self) -> tuple[str, float]:
        """The task with an expert that went worst, and its score."""
        sign = {name: 1 if self.tasks[name].metric.better == "higher" else -1 for name in self.held_in()}
        name = min(sign, key=lambda n: sign[n] * self.tasks[n].mean)
        return name, self.tasks[name].mean

    def normalised(self, experts: Mapping[str, float]) -> float:
        """Mean over tasks of score ÷ expert's score, or its inverse where lower is better; NaN where one has none."""
        return float(numpy.mean(list(self.ratios(experts).values())))

    def ratios(self, experts: Mapping[str, float]) -> dict[str, float]:
        """Score ÷ expert's score for each task with an expert; NaN where the divisor is not above zero."""
        return {name: self.tasks[name].share(experts[name]) for name in self.held_in()}

    def interval(self, names: Sequence[str] | None = None, *, seed: int = 0) -> Interval:
        """95 % interval of `mean`, whole groups of items drawn anew within each task."""
        chosen = [self.tasks[n] for n in (self.held_in() if names is None else names)]
        return bootstrap([Sample(one.scores, one.weights, one.units) for one in chosen], seed=seed)

    def as_json(self) -> dict[str, Any]:
        """Plain data with every item's number; `from_json` reads it back."""
        tasks = {
            name: {
                "metric": [s.metric.name, s.metric.better, s.metric.unit, s.metric.chance],
                "scores": [round(float(x), 6) for x in s.scores],
                "weights": None if bool((s.weights == 1).all()) else [float(x) for x in s.weights],
                **({} if s.units is None else {"units": [int(x) for x in s.units]}),
                "unseen": s.unseen,
                **({"shift_of": s.shift_of} if s.shift_of else {}),
                **(
                    {} if s.confidence is None else {"confidence": [round(float(x), 4) for x in s.confidence]}
                ),
            }
            for name, s in self.tasks.items()
        }
        return {
            "name": self.name,
            "tasks": tasks,
            "spent": self.spent.as_json(),
            "settings": dict(self.settings),
            "log": [[dict(point), value] for point, value in self.log],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scorecard:
        """The card that `as_json` wrote."""
        tasks = {}
        for name, entry in data["tasks"].items():
            scores = numpy.array(entry["scores"], dtype=numpy.float64)
            given = entry["weights"]
            weights = numpy.ones(len(scores)) if given is None else numpy.array(given, dtype=numpy.float64)
            sure = numpy.array(entry["confidence"]) if "confidence" in entry else None
            units = numpy.array(entry["units"], dtype=numpy.int64) if "units" in entry else None
            shift_of = entry.get("shift_of", "")
            tasks[name] = TaskScore(
                Metric(*entry["metric"]), scores, weights, entry["unseen"], shift_of, sure, units
            )
        log = tuple((point, value) for point, value in data.get("log", ()))
        return cls(data["name"], tasks, Ledger(**data["spent"]), data["settings"], log)
