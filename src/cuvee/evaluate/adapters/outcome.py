"""What another program said of a model: scores by task and metric, items where it tells them, versions and prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from cuvee.charts import Table
from cuvee.core import disk
from cuvee.core.lazy import numpy
from cuvee.core.names import printable
from cuvee.errors import CuveeError, EvaluationError
from cuvee.evaluate.kept import reading
from cuvee.evaluate.manifest import surroundings
from cuvee.evaluate.pages import Section
from cuvee.evaluate.statistics import bootstrap
from cuvee.evaluate.units import Sample

SCHEMA = "cuvee.scores/1"
FOLDER = "scores"  # of a benchmark's folder


@dataclass(frozen=True, slots=True)
class Outcome:
    """Scores of one model by one program.

    `scores` are by task and metric; `items` hold a task's single numbers of its first metric, in order, where the
    program tells them; `prompts` one prompt of each task as it was sent; `settings` what the program was asked for.
    """

    program: str
    model: str
    scores: Mapping[str, Mapping[str, float]]
    items: Mapping[str, Sequence[float]] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain data (schema `cuvee.scores/1`)."""
        return {
            "schema": SCHEMA,
            "program": self.program,
            "model": self.model,
            "scores": {task: dict(found) for task, found in self.scores.items()},
            "items": {task: list(found) for task, found in self.items.items()},
            "versions": dict(self.versions),
            "settings": dict(self.settings),
            "prompts": dict(self.prompts),
            "seconds": self.seconds,
            "made_with": dict(surroundings()),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        """The outcome that `as_json` wrote."""
        return cls(**{key: data[key] for key in cls.__slots__})

    def keep(self, folder: Path) -> Path:
        """Write it into a benchmark's folder, under its content's address."""
        content = json.dumps(self.as_json(), indent=1, sort_keys=True, default=str).encode()
        place = folder / FOLDER / f"{blake3(content).hexdigest(length=16)}.json"
        disk.make_folders(place.parent)
        disk.write_file(place, content)
        return place


@contextmanager
def failing(program: str) -> Iterator[None]:
    """What the program raises, or ends with, as EvaluationError CV-B311; our own errors pass."""
    try:
        yield
    except CuveeError:
        raise
    except (Exception, SystemExit) as error:
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise EvaluationError("CV-B311", f"`{printable(program)}` failed: {printable(said)}") from error


def checked(
    program: str, scores: Mapping[str, Mapping[str, Any]], items: Mapping[str, Any] | None = None
) -> None:
    """EvaluationError CV-B312 unless each task has a score, and all scores and numbers of items are finite."""
    wrong = [v for found in scores.values() for v in found.values() if not _finite(v)]
    if wrong or not scores or not all(scores.values()):
        said = f"gave {printable(repr(wrong[0]))} as a score" if wrong else "gave no score"
        raise EvaluationError(
            "CV-B312", f"`{printable(program)}` {said}; a finite number is expected for each task"
        )
    for task, numbers in (items or {}).items():
        if not isinstance(numbers, (list, tuple)) or not all(map(_finite, numbers)):
            raise EvaluationError(
                "CV-B312",
                f"`{printable(program)}` gave items of `{printable(task)}` that are no list of finite numbers",
            )


def _finite(value: Any) -> bool:
    """Whether a value is a number that a float holds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def kept(folder: Path) -> list[Outcome]:
    """The outcomes in a benchmark's folder, by model and program; EvaluationError for a damaged file."""
    found = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        with reading(path, again="score"):
            found.append(Outcome.from_json(json.loads(path.read_text())))
    return sorted(found, key=lambda one: (one.model, one.program))


def section(outcomes: Sequence[Outcome]) -> Section | None:
    """A table of all scores with what made them; intervals where items are known."""
    if not outcomes:
        return None
    rows = [
        [one.model, one.program, task, metric, _score(one, task, metric, value), _versions(one)]
        for one in outcomes
        for task, found in one.scores.items()
        for metric, value in found.items()
    ]
    header = ("model", "program", "task", "metric", "score (95 %)", "versions")
    said = (
        "These scores were not taken under the protocol: nothing kept their items from whoever chose the models. "
        "Prompts and settings are in the files of the folder `scores`."
    )
    return Section("Scores by other programs", (said, Table(header, rows)))


def _score(one: Outcome, task: str, metric: str, value: float) -> str:
    items = one.items.get(task, ())
    known = isinstance(items, (list, tuple)) and len(items) > 1 and all(map(_finite, items))
    if not known or metric != next(iter(one.scores[task])):
        return f"{value:.4g}"
    values = numpy.asarray(items, dtype=numpy.float64)
    interval = bootstrap([Sample(values, numpy.ones(len(values)))])
    return f"{value:.4g} ({interval.low:.4g} … {interval.high:.4g})"


def _versions(one: Outcome) -> str:
    return ", ".join(f"{name} {version}" for name, version in one.versions.items())
