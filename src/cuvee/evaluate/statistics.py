"""Uncertainty: intervals of a mean, paired tests between methods, groups of methods that can be told apart.

Works on samples of items whose units say which of them belong together; knows no tasks and no models. Everything random
is seeded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cuvee.core.lazy import numpy
from cuvee.evaluate.units import (
    Sample,
    blocks,
    number_of,
    squared_error,
    sums_by_unit,
    tables_of,
    weighted_mean,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cuvee.evaluate.units import Scores


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the ends of its interval at `level`."""

    mean: float
    low: float
    high: float
    level: float = 0.95


@dataclass(frozen=True, slots=True)
class Comparison:
    """A paired comparison of two methods: mean difference, its interval and standard error, two-sided p-value.

    `unit` is what the difference is in; whoever scaled the scores knows it. `units`: how many units (groups of items)
    were drawn and flipped, of how many `items`.
    """

    difference: Interval
    error: float
    p_value: float
    unit: str = ""
    units: int = 0
    items: int = 0


def bootstrap(
    strata: Sequence[Sample],
    *,
    counts: Sequence[float] | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of the mean over strata (tasks) of their weighted means, whole units drawn with replacement.

    One stratum gives the interval of that task's mean. `counts`: how often each stratum counts in the mean (None:
    once). Units are drawn within each task; tasks that share units are drawn together, so that a unit is in all of
    them or in none. Quantiles are those of the expanded percentile interval (Hesterberg, 2015, arXiv:1411.5279), which
    lie further out the fewer units there are. The ends are NaN where a task has but one unit, which says nothing of
    others.
    """
    random = numpy.random.default_rng(seed)
    shares = _shares(len(strata), counts)
    mean = float(numpy.dot(shares, [weighted_mean(s.scores, s.weights) for s in strata]))
    parts = [
        _deviations([strata[i] for i in block], shares[block], draws, random) for block in blocks(strata)
    ]
    if any(size <= 1 + 1e-9 for _, size in parts):
        return Interval(mean, math.nan, math.nan, level)
    spread: Scores = numpy.sum([d for d, _ in parts], axis=0)
    tail = _tail([(float(d.var()), size) for d, size in parts], level)
    low, high = numpy.quantile(spread, [tail, 1 - tail])
    return Interval(mean, mean + float(low), mean + float(high), level)


def compare(
    ours: Sequence[Sample],
    theirs: Sequence[Sample],
    *,
    counts: Sequence[float] | None = None,
    draws: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Paired comparison over the same items of the same tasks: ours − theirs.

    The interval is bootstrapped over paired differences, whole units drawn as in `bootstrap`; the p-value is that of
    `sign_flips`. `counts` as in `bootstrap`.
    """
    differences = _differences(ours, theirs)
    interval = bootstrap(differences, counts=counts, draws=min(draws, 4000), level=level, seed=seed)
    error = math.sqrt(squared_error(differences, _shares(len(differences), counts)))
    p_value = sign_flips(ours, theirs, counts=counts, draws=draws, seed=seed)
    items = sum(len(d.scores) for d in differences)
    return Comparison(interval, error, p_value, units=number_of(differences), items=items)


def sign_flips(
    ours: Sequence[Sample],
    theirs: Sequence[Sample],
    *,
    counts: Sequence[float] | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p-value of a paired difference (the null hypothesis: methods are exchangeable on every unit).

    Random flips of the signs of the paired differences, of all items of a unit together: with dᵤ what a unit adds to
    the mean m, fewer than `draws` once so many come as far as m that p is known to a tenth (Besag and Clifford, 1991).
    Where none does, it is Hoeffding's bound of that tail, 2 exp(−m² / 2 Σ dᵤ²), if that is less than the draws can
    show: a correction for hundreds of pairs must not drown what is certain.
    """
    differences = _differences(ours, theirs)
    terms = sums_by_unit(differences, _shares(len(differences), counts))
    terms = terms[numpy.abs(terms) > _NOTHING]  # equal units are equal however they are flipped
    found = abs(float(terms.sum()))
    bound = 2 * math.exp(-(found**2) / (2 * float((terms**2).sum()))) if len(terms) else 1.0
    if bound < _CERTAIN / draws:
        return bound
    random = numpy.random.default_rng(seed + 1)
    extreme = drawn = 0
    while drawn < draws and extreme < _ENOUGH:
        count = min(500, draws - drawn)
        signs = random.integers(0, 2, (count, len(terms)), dtype=numpy.int8) * 2 - 1
        extreme += int((numpy.abs(signs @ terms) >= found - 1e-12).sum())
        drawn += count
    return (extreme + 1) / (drawn + 1) if extreme else min(1 / (drawn + 1), bound)


def _differences(ours: Sequence[Sample], theirs: Sequence[Sample]) -> list[Sample]:
    return [replace(a, scores=a.scores - b.scores) for a, b in zip(ours, theirs, strict=True)]


def _shares(strata: int, counts: Sequence[float] | None) -> Scores:
    """What each stratum is of the mean; they sum to 1."""
    given = numpy.ones(strata) if counts is None else numpy.asarray(counts, dtype=numpy.float64)
    shares: Scores = given / given.sum()
    return shares


def calibration_error(confidence: Scores, right: Scores, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599): Σ (n_b / n) |accuracy_b − mean confidence_b|.

    Over `bins` equal parts (low, high] of 0…1; 0 is calibrated. NaN for no items.
    """
    if len(right) == 0:
        return math.nan
    places = numpy.clip(numpy.ceil(confidence * bins) - 1, 0, bins - 1).astype(int)
    sums = [numpy.bincount(places, weights=w, minlength=bins) for w in (right, confidence)]
    return float(numpy.abs(sums[0] - sums[1]).sum() / len(right))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for their number by Holm's step-down rule."""
    ordered = sorted(p_values, key=lambda name: p_values[name])
    out: dict[str, float] = {}
    least = 0.0
    for rank, name in enumerate(ordered):
        least = max(least, min(1.0, (len(ordered) - rank) * p_values[name]))
        out[name] = least
    return out


def groups(order: Sequence[str], separated: Mapping[tuple[str, str], bool]) -> list[list[str]]:
    """Methods from best to worst cut into groups: a new one begins at the first that differs from its group's best.

    `separated[(a, b)]` says whether a and b, a before b in `order`, can be told apart.
    """
    out: list[list[str]] = []
    for name in order:
        if out and not separated[(out[-1][0], name)]:
            out[-1].append(name)
        else:
            out.append([name])
    return out


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Spearman's ρ and Kendall's τ_b of two lists of scores; NaN where one of them is constant."""
    rho, tau = rank_correlations(numpy.array([a], dtype=float), numpy.array([b], dtype=float))
    return float(rho[0]), float(tau[0])


def rank_correlations(a: Scores, b: Scores) -> tuple[Scores, Scores]:
    """ρ and τ_b of each row of two arrays (m, n); NaN where a row is constant or holds a NaN."""
    parts = []
    for first in range(0, len(a), _ROWS):
        x, y = (_signs(rows[first : first + _ROWS]) for rows in (a, b))
        ranks = x.sum(2, dtype=numpy.float64), y.sum(2, dtype=numpy.float64)  # twice the centred mean ranks
        parts.append(
            (
                _cosine((ranks[0] * ranks[1]).sum(1), *((r * r).sum(1) for r in ranks)),
                _cosine(
                    (x * y).sum((1, 2), dtype=float), *((s * s).sum((1, 2), dtype=float) for s in (x, y))
                ),
            )
        )
    unknown = numpy.isnan(a).any(1) | numpy.isnan(b).any(1)  # which is neither above nor below, but no tie
    rho, tau = (numpy.where(unknown, numpy.nan, numpy.concatenate([p[i] for p in parts])) for i in (0, 1))
    return rho, tau


def rank_intervals(
    a: Sequence[float], b: Sequence[float], *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[Interval, Interval]:
    """ρ and τ_b with percentile intervals, pairs drawn anew; draws in which a list is constant are left out.

    With few pairs such intervals are wide: they show how little a handful says. There is none (its ends are NaN) below
    four pairs, and at ±1, which drawing anew cannot leave.
    """
    rho, tau = rank_correlation(a, b)
    picked = numpy.random.default_rng(seed).integers(0, len(a), (draws if len(a) > 3 else 1, len(a)))
    found = rank_correlations(*(numpy.asarray(values, dtype=float)[picked] for values in (a, b)))
    out = []
    for mean, values in zip((rho, tau), found, strict=True):
        known = values[~numpy.isnan(values)]
        enough = len(a) > 3 and len(known) > 0 and abs(mean) < 1 - 1e-12
        low, high = (
            numpy.quantile(known, [(1 - level) / 2, (1 + level) / 2]) if enough else (math.nan, math.nan)
        )
        out.append(Interval(mean, float(low), float(high), level))
    return out[0], out[1]


_ENOUGH = 100  # flips that come as far as what was found, from which no more are drawn
_CERTAIN = 0.01  # a bound below this share of what draws can show needs none
_NOTHING = 1e-15  # a difference below is a rounding of zero
_ROWS = 256  # whose pairs are compared at once
_DRAWN = 200_000  # units drawn at once, over all samples: their counts stay in the cache


def _signs(rows: Scores) -> NDArray[numpy.int8]:
    """+1, 0 or −1 for each ordered pair of each row: (m, n, n)."""
    found: NDArray[numpy.int8] = (rows[:, :, None] > rows[:, None, :]).astype(numpy.int8)
    return found - numpy.swapaxes(found, 1, 2)


def _cosine(product: Scores, first: Scores, second: Scores) -> Scores:
    scale = numpy.sqrt(first * second)
    found: Scores = numpy.where(scale > 0, product / numpy.where(scale > 0, scale, 1.0), numpy.nan)
    return found


def _deviations(
    block: Sequence[Sample], shares: Scores, draws: int, random: numpy.random.Generator
) -> tuple[Scores, float]:
    """What drawing the units of tasks that share some adds to the mean in each of `draws` samples; how many they are.

    Units of unequal size count as fewer (Kish, 1965): (Σ w)² / Σ w², w what a unit weighs in the mean of all tasks or
    of one, whichever gives the fewest. A task that a sample has no item of keeps its mean.
    """
    tables = tables_of(block)
    totals = tables.weights.sum(0)
    weighed = numpy.column_stack([tables.weights, tables.weights @ (shares / totals)])
    size = float((weighed.sum(0) ** 2 / (weighed**2).sum(0)).min())
    centred = tables.sums - tables.weights * (tables.sums.sum(0) / totals)
    both = numpy.hstack([centred, tables.weights])
    count, out = len(both), numpy.empty(draws)
    step = max(1, min(500, _DRAWN // count))
    for first in range(0, draws, step):
        rows = min(step, draws - first)
        picked = random.integers(0, count, (rows, count)) + numpy.arange(rows)[:, None] * count
        times = numpy.bincount(picked.ravel(), minlength=rows * count).reshape(rows, count)
        over, under = numpy.hsplit(times.astype(numpy.float64) @ both, 2)
        moved = numpy.divide(over, under, out=numpy.zeros_like(under), where=under > 0)
        out[first : first + rows] = moved @ shares
    return out, size


def _tail(parts: Sequence[tuple[float, float]], level: float) -> float:
    """The share of draws to leave out at each end, for variances of parts of a mean, drawn from so many units each.

    Φ(−t √(s² / v)): v is the variance of the draws, s² the same without its bias (of each part G / (G − 1)), t the
    quantile of Student's distribution with the degrees of freedom of Satterthwaite (1946).
    """
    from scipy.special import ndtr, stdtrit

    unbiased = [variance * size / (size - 1) for variance, size in parts]
    below = sum(one**2 / (size - 1) for one, (_, size) in zip(unbiased, parts, strict=True))
    if not below:
        return (1 - level) / 2
    lift = math.sqrt(sum(unbiased) / sum(variance for variance, _ in parts))
    return float(ndtr(-lift * stdtrit(sum(unbiased) ** 2 / below, (1 + level) / 2)))
