"""Task pools in FusionBench's manner, an object with `evaluate(model) -> report`: read as scores, and made of a track.

Nothing of FusionBench is imported: both ways only agree on the shape of the object and of the report.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

from cuvee.evaluate.adapters.outcome import Outcome, checked
from cuvee.evaluate.choice import Choice
from cuvee.evaluate.referee import Referee
from cuvee.evaluate.track import Track

_OVERALL = "average"


class Pool(Protocol):
    """What a task pool is."""

    def evaluate(self, model: Any) -> Mapping[str, Any]:
        """Figures by task."""
        ...


def scored(pool: Pool, model: Any, name: str = "model") -> Outcome:
    """The report of a pool as an outcome: numbers by task and metric.

    Its `average`, parameter counts and texts are left out. Raises EvaluationError CV-B312 where it holds no number.
    """
    began = time.monotonic()
    report = pool.evaluate(model)
    scores = {
        task: found for task, values in report.items() if task != _OVERALL and (found := _numbers(values))
    }
    checked(type(pool).__name__, scores)
    return Outcome(
        "task pool", name, scores, settings={"pool": type(pool).__name__}, seconds=time.monotonic() - began
    )


def _numbers(values: Any) -> dict[str, float]:
    if not isinstance(values, Mapping):
        return {}
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and "param" not in key
    }


class TrackPool:
    """A track as a task pool: scores of a module, or of tensors by name, on the test parts, and their average.

    The module's tensors go into the track's own live model, so it must have the base's names.
    """

    def __init__(self, track: Track) -> None:
        self._referee = Referee(track, budget=0)

    def evaluate(self, model: Any) -> dict[str, dict[str, float]]:
        """Test scores by task, unseen and shifted ones included; `average` is over tasks with experts."""
        weights = model.state_dict() if hasattr(model, "state_dict") else model
        card = self._referee.score(Choice(weights), "model")
        report = {name: {score.metric.name: score.mean} for name, score in card.tasks.items()}
        return {**report, _OVERALL: {"score": card.mean()}}
