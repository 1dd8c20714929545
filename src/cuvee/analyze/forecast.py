"""How badly models will merge, before merging: one number for each pair, from signs and magnitudes alone.

    opposition(i, j) = Σ over positions with opposite signs of |δᵢ δⱼ|  /  (‖δᵢ‖ ‖δⱼ‖)

0 where changes are disjoint or agree, 1 where one undoes the other; independent normal changes give 1/π = 0.318. The
forecast of a set is the mean over its pairs. EXPERIMENTAL: over the 28 pairs of the eight experts of the text track it
did not order what merges lose (Spearman's ρ 0.09 for averages, −0.06 for sums; `benchmarks/results`), nor provably on
those of vision (0.50, 0.19); pairs of a track are all alike in it, between 0.27 and 0.32. `cuvee bench study
mergeability` asks again on any track.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cuvee.core.lazy import numpy

if TYPE_CHECKING:
    from cuvee.analyze.sums import Array, Sums

INDEPENDENT = 1 / math.pi  # what independent changes, normally distributed, give
LOW, HIGH = 0.5 * INDEPENDENT, 1.1 * INDEPENDENT

Band = Literal["low", "moderate", "high", "none"]


@dataclass(frozen=True, slots=True)
class Forecast:
    """The opposition of each pair (n × n), their mean, the worst pair by index, and the band the mean is in."""

    pairs: Array
    mean: float
    worst: tuple[int, int] | None
    band: Band
    experimental: bool = True


def forecast(figures: Sums) -> Forecast:
    """The forecast from the figures of a whole model; band `none` for fewer than two experts that changed."""
    pairs = figures.opposition
    upper = [
        (i, j) for i in range(len(pairs)) for j in range(i + 1, len(pairs)) if math.isfinite(pairs[i, j])
    ]
    if not upper:
        return Forecast(pairs, math.nan, None, "none")
    mean = float(numpy.mean([pairs[at] for at in upper]))
    worst = max(upper, key=lambda at: float(pairs[at]))
    band: Band = "low" if mean < LOW else "high" if mean > HIGH else "moderate"
    return Forecast(pairs, mean, worst, band)


def figures_of_pairs(figures: Sums) -> dict[str, Array]:
    """Every figure that could forecast how a pair merges (n × n), by name, the forecast itself first.

    Cosines and overlaps are as they are, not turned: which way they point is for a validation to say.
    """
    norms = figures.norms
    larger, smaller = numpy.maximum.outer(norms, norms), numpy.minimum.outer(norms, norms)
    with numpy.errstate(divide="ignore", invalid="ignore"):
        unequal = larger / smaller
    return {
        "opposition": figures.opposition,
        "cosine": figures.cosines,
        "sign conflict": figures.conflicts,
        "overlap of the largest 1 %": figures.jaccard[0],
        "ratio of norms": unequal,
        "sum of norms": numpy.add.outer(norms, norms),
    }
