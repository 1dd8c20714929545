"""Which items are evidence of their own: samples of items with their units, and sums of what belongs together.

A unit is a group of items (a type family, a person, a document) or a single one; of the same name it is the same in
every task. Works on NumPy arrays; knows no tasks, no models and no tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cuvee.core.lazy import numpy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Scores = NDArray[numpy.float64]
    Units = NDArray[numpy.int64]


@dataclass(frozen=True, slots=True)
class Sample:
    """The items of one task: a number and a weight of each, and the unit it belongs to (None: each is its own).

    All three are equally long; units are whole numbers from 0 that mean the same in every sample.
    """

    scores: Scores
    weights: Scores
    units: Units | None = None


@dataclass(frozen=True, slots=True)
class Tables:
    """By unit (rows) and task (columns): Σ weight · score and Σ weight of its items there."""

    sums: Scores
    weights: Scores


def weighted_mean(scores: Scores, weights: Scores | None = None) -> float:
    """Σ w s / Σ w; weights of 1 where none are given. NaN for no items."""
    if len(scores) == 0:
        return math.nan
    return float(numpy.average(scores, weights=weights))


def blocks(samples: Sequence[Sample]) -> list[list[int]]:
    """Positions of samples, those that share units, directly or through others, together."""
    out: list[tuple[list[int], set[int]]] = []
    for position, sample in enumerate(samples):
        held = set() if sample.units is None else set(sample.units.tolist())
        apart = [one for one in out if not one[1] & held]
        joined = [one for one in out if one[1] & held]
        positions = sorted([position, *(p for one in joined for p in one[0])])
        out = [*apart, (positions, held.union(*(one[1] for one in joined)))]
    return sorted(positions for positions, _ in out)


def tables_of(samples: Sequence[Sample]) -> Tables:
    """Sums by unit of samples in common; units in the order of their numbers, or of the items."""
    places, count = _places(samples)
    sums, weights = (numpy.zeros((count, len(samples))) for _ in range(2))
    for column, (sample, at) in enumerate(zip(samples, places, strict=True)):
        sums[:, column] = numpy.bincount(at, weights=sample.weights * sample.scores, minlength=count)
        weights[:, column] = numpy.bincount(at, weights=sample.weights, minlength=count)
    return Tables(sums, weights)


def sums_by_unit(samples: Sequence[Sample], shares: Scores) -> Scores:
    """What each unit adds to the mean over samples of their weighted means, of which each counts by its share."""
    places, count = _places(samples)
    out = numpy.zeros(count)
    for sample, at, share in zip(samples, places, shares, strict=True):
        each = share * sample.scores * sample.weights / sample.weights.sum()
        out += numpy.bincount(at, weights=each, minlength=count)
    return out


def squared_error(samples: Sequence[Sample], shares: Scores) -> float:
    """The variance of the mean that `sums_by_unit` gives: Σ over units of what each adds to it, less tasks' means."""
    centred = [replace(s, scores=s.scores - weighted_mean(s.scores, s.weights)) for s in samples]
    return float(numpy.square(sums_by_unit(centred, shares)).sum())


def number_of(samples: Sequence[Sample]) -> int:
    """How many units the items of these samples are of."""
    return _places(samples)[1]


def _places(samples: Sequence[Sample]) -> tuple[list[Units], int]:
    """The row of each item's unit, for each sample, and how many rows there are."""
    named = [sample.units for sample in samples if sample.units is not None]
    known: Units = numpy.unique(numpy.concatenate(named)) if named else numpy.zeros(0, dtype=numpy.int64)
    count, out = len(known), []
    for sample in samples:
        if sample.units is None:
            out.append(numpy.arange(count, count + len(sample.scores)))
            count += len(sample.scores)
        else:
            out.append(numpy.searchsorted(known, sample.units))
    return out, count
