"""Uncertainty: intervals of a mean, paired tests between methods, groups that can be told apart.

Works on one number for each item (NumPy arrays); knows no tasks and no models. Everything random is seeded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuvee.core.lazy import numpy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Scores = NDArray[numpy.float64]


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

    `unit` is what the difference is in; whoever scaled the scores knows it.
    """

    difference: Interval
    error: float
    p_value: float
    unit: str = ""


def weighted_mean(scores: Scores, weights: Scores | None = None) -> float:
    """Σ w s / Σ w; weights of 1 where none are given. NaN for no items."""
    if len(scores) == 0:
        return math.nan
    return float(numpy.average(scores, weights=weights))


def bootstrap(
    strata: Sequence[tuple[Scores, Scores]],
    *,
    counts: Sequence[float] | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the mean over strata (tasks) of their weighted means, items drawn within each stratum.

    `strata`: (scores, weights) of each task, equally long. One stratum gives the interval of that task's mean.
    `counts`: how often each stratum counts in the mean (None: once).
    """
    random = numpy.random.default_rng(seed)
    shares = _shares(len(strata), counts)
    totals = numpy.zeros(draws)
    for share, (scores, weights) in zip(shares, strata, strict=True):
        totals += share * _resampled(scores, weights, draws, random)
    mean = float(numpy.dot(shares, [weighted_mean(s, w) for s, w in strata]))
    tail = (1 - level) / 2
    low, high = numpy.quantile(totals, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), level)


def compare(
    ours: Sequence[tuple[Scores, Scores]],
    theirs: Sequence[tuple[Scores, Scores]],
    *,
    counts: Sequence[float] | None = None,
    draws: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Paired comparison over the same items of the same tasks: ours − theirs.

    The interval is bootstrapped over paired differences within each task; the p-value is that of `sign_flips`.
    `counts` as in `bootstrap`.
    """
    differences = _differences(ours, theirs)
    interval = bootstrap(differences, counts=counts, draws=min(draws, 4000), level=level, seed=seed)
    variance = 0.0
    for each, (difference, weights) in zip(_shares(len(differences), counts), differences, strict=True):
        centred = difference - weighted_mean(difference, weights)
        variance += float(((each * weights / weights.sum() * centred) ** 2).sum())
    p_value = sign_flips(ours, theirs, counts=counts, draws=draws, seed=seed)
    return Comparison(interval, math.sqrt(variance), p_value)


def sign_flips(
    ours: Sequence[tuple[Scores, Scores]],
    theirs: Sequence[tuple[Scores, Scores]],
    *,
    counts: Sequence[float] | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p-value of a paired difference (the null hypothesis: methods are exchangeable on every item).

    Random flips of the signs of the paired differences dᵢ, fewer than `draws` once so many come as far as the mean m
    that p is known to a tenth (Besag and Clifford, 1991). Where none does, it is Hoeffding's bound of that tail,
    2 exp(−m² / 2 Σ dᵢ²), if that is less than the draws can show: a correction for hundreds of pairs must not drown
    what is certain.
    """
    differences = _differences(ours, theirs)
    shares = _shares(len(differences), counts)
    terms = numpy.concatenate(
        [each * d * w / w.sum() for each, (d, w) in zip(shares, differences, strict=True)]
    )
    terms = terms[terms != 0]  # equal items are equal however they are flipped
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


def _differences(
    ours: Sequence[tuple[Scores, Scores]], theirs: Sequence[tuple[Scores, Scores]]
) -> list[tuple[Scores, Scores]]:
    return [(a - b, w) for (a, w), (b, _) in zip(ours, theirs, strict=True)]


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
    """ρ and τ_b of each row of two arrays (m, n)."""
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
    return numpy.concatenate([p[0] for p in parts]), numpy.concatenate([p[1] for p in parts])


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
_ROWS = 256  # whose pairs are compared at once


def _signs(rows: Scores) -> NDArray[numpy.int8]:
    """+1, 0 or −1 for each ordered pair of each row: (m, n, n)."""
    found: NDArray[numpy.int8] = (rows[:, :, None] > rows[:, None, :]).astype(numpy.int8)
    return found - numpy.swapaxes(found, 1, 2)


def _cosine(product: Scores, first: Scores, second: Scores) -> Scores:
    scale = numpy.sqrt(first * second)
    found: Scores = numpy.where(scale > 0, product / numpy.where(scale > 0, scale, 1.0), numpy.nan)
    return found


def _resampled(scores: Scores, weights: Scores, draws: int, random: numpy.random.Generator) -> Scores:
    """Weighted means of `draws` samples with replacement."""
    out = numpy.empty(draws)
    for first in range(0, draws, 500):
        count = min(500, draws - first)
        picked = random.integers(0, len(scores), (count, len(scores)))
        chosen = weights[picked]
        out[first : first + count] = (scores[picked] * chosen).sum(1) / chosen.sum(1)
    return out
