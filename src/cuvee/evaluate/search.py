"""Searchers by ask and tell: grid, random, Sobol and optuna's TPE, all under the same budget of evaluations.

A searcher proposes points (parameter values by name) until it has none left or the budget ends. Seeded; knows no
models.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from cuvee.core.lazy import numpy
from cuvee.errors import UsageError
from cuvee.evaluate.space import Dimension

Kind = Literal["grid", "random", "sobol", "optuna"]
Point = dict[str, Any]


class Searcher(Protocol):
    """Proposes points and hears how they did (higher is better)."""

    def ask(self) -> Point | None:
        """The next point; None when there is nothing left to try."""
        ...

    def tell(self, point: Mapping[str, Any], value: float) -> None:
        """The value of a point that was asked for."""
        ...


def searcher(kind: Kind, dimensions: Sequence[Dimension], budget: int, seed: int = 0) -> Searcher:
    """The searcher of this kind for at most `budget` points."""
    if kind == "optuna":
        return _Optuna(dimensions, budget, seed)
    if kind == "grid":
        return _Listed(_grid(dimensions, budget))
    if kind == "random":
        shares = numpy.random.default_rng(seed).random((budget, len(dimensions)))
    elif kind == "sobol":
        from scipy.stats import qmc

        engine = qmc.Sobol(max(1, len(dimensions)), scramble=True, seed=seed)
        shares = engine.random_base2(max(0, (budget - 1).bit_length()))[:budget]
    else:
        raise UsageError("CV-U032", f"`{kind}` is no searcher", hint="use grid, random, sobol or optuna")
    return _Listed(
        [{d.name: d.at(float(s)) for d, s in zip(dimensions, row, strict=False)} for row in shares]
    )


class _Listed:
    """Points known beforehand, each once."""

    def __init__(self, points: Sequence[Point]) -> None:
        unique = {repr(sorted(p.items())): p for p in points}
        self._left = list(unique.values())

    def ask(self) -> Point | None:
        return self._left.pop(0) if self._left else None

    def tell(self, point: Mapping[str, Any], value: float) -> None:
        """A list does not learn."""


def _grid(dimensions: Sequence[Dimension], budget: int) -> list[Point]:
    """The finest grid of at most `budget` points with equally many levels for each interval."""
    if not dimensions:
        return [{}]
    count = 1
    while _size(dimensions, count + 1) <= budget:
        count += 1
    levels = [d.levels(count) for d in dimensions]
    points = [
        dict(zip((d.name for d in dimensions), values, strict=True)) for values in itertools.product(*levels)
    ]
    if len(points) <= budget or budget < 2:
        return points[:budget]
    # more combinations of choices than may be tried: evenly through all of them, not the first value of the first list
    return [points[round(i * (len(points) - 1) / (budget - 1))] for i in range(budget)]


def _size(dimensions: Sequence[Dimension], count: int) -> int:
    size = 1
    for dimension in dimensions:
        size *= len(dimension.choices) or count
    return size if any(not d.choices for d in dimensions) else size + count**9  # nothing to refine


class _Optuna:
    """Tree-structured Parzen estimator."""

    def __init__(self, dimensions: Sequence[Dimension], budget: int, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._dimensions, self._left = dimensions, budget
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(4, budget // 4))
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._open: dict[str, Any] = {}

    def ask(self) -> Point | None:
        if self._left == 0 or not self._dimensions:
            return None
        self._left -= 1
        trial = self._study.ask()
        point = {d.name: self._suggest(trial, d) for d in self._dimensions}
        self._open[repr(point)] = trial
        return point

    def tell(self, point: Mapping[str, Any], value: float) -> None:
        trial = self._open.pop(repr(dict(point)), None)
        if trial is not None:
            self._study.tell(trial, value)

    @staticmethod
    def _suggest(trial: Any, dimension: Dimension) -> Any:
        if dimension.choices:
            return trial.suggest_categorical(dimension.name, list(dimension.choices))
        if dimension.whole:
            return trial.suggest_int(
                dimension.name, int(dimension.low), int(dimension.high), log=dimension.log
            )
        return trial.suggest_float(dimension.name, dimension.low, dimension.high, log=dimension.log)
