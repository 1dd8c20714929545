"""How badly models will merge, before merging: one number for each pair, from signs and magnitudes alone.

    opposition(i, j) = Σ over positions with opposite signs of |δᵢ δⱼ|  /  (‖δᵢ‖ ‖δⱼ‖)

0 where changes are disjoint or agree, 1 where one undoes the other; independent normal changes give 1/π = 0.318.

What it forecasts is **which partner costs more**: of a pair's opposition, `beyond` is what is left when each expert has
its own to bring to all its pairs, and it orders what averages of pairs lose beyond the same: on text, 28 pairs of eight
experts, Spearman's ρ is 0.74 for the experts it was found on and 0.77 and 0.53 for the same tasks trained anew, and as
much for adapters. Over four sets of vision experts it is 0.40 (p 0.07), over two of language 0.23 (p 0.5), so that for
other tasks it is EXPERIMENTAL, as is the band. How much an expert loses whatever its partner is another question, of
which signs and magnitudes say nothing; `probes.py` asks it. `cuvee bench study mergeability` asks both on any track.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cuvee.core.additive import OwnParts
from cuvee.core.lazy import numpy

if TYPE_CHECKING:
    from cuvee.analyze.sums import Array, Sums

INDEPENDENT = 1 / math.pi  # what independent changes, normally distributed, give
LOW, HIGH = 0.5 * INDEPENDENT, 1.1 * INDEPENDENT

_FREE = 1e-6  # of a pair's own value that its experts' parts do not explain whatever it is

Band = Literal["low", "moderate", "high", "none"]


@dataclass(frozen=True, slots=True)
class Forecast:
    """The opposition of each pair (n × n), their mean, the worst pair by index, and the band the mean is in.

    `beyond` (n × n): how much more or less a pair opposes than its two experts do with others, by least squares over
    all pairs; NaN where that cannot be told, as for fewer than four experts.
    """

    pairs: Array
    mean: float
    worst: tuple[int, int] | None
    band: Band
    beyond: Array
    experimental: bool = True

    def extremes(self) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """The pairs furthest above and below what their experts bring along; None where none can be told.

        Of four experts, each pair stands as far off as the two others do together: five are needed, and some that
        differ.
        """
        every = itertools.combinations(range(len(self.beyond)), 2)
        known = [at for at in every if math.isfinite(self.beyond[at])]
        if len({i for at in known for i in at}) < 5 or not any(self.beyond[at] for at in known):
            return None
        ordered = sorted(known, key=lambda at: float(self.beyond[at]))
        return ordered[-1], ordered[0]


def forecast(figures: Sums) -> Forecast:
    """The forecast from the figures of a whole model; band `none` for fewer than two experts that changed."""
    pairs = figures.opposition
    upper = [at for at in itertools.combinations(range(len(pairs)), 2) if math.isfinite(pairs[at])]
    if not upper:
        return Forecast(pairs, math.nan, None, "none", numpy.full_like(pairs, math.nan))
    mean = float(numpy.mean([pairs[at] for at in upper]))
    worst = max(upper, key=lambda at: float(pairs[at]))
    band: Band = "low" if mean < LOW else "high" if mean > HIGH else "moderate"
    return Forecast(pairs, mean, worst, band, _beyond(pairs, upper))


def _beyond(pairs: Array, known: Sequence[tuple[int, int]]) -> Array:
    """What each known pair opposes beyond its experts' own parts; NaN where parts explain everything."""
    found = numpy.full_like(pairs, math.nan)
    own = OwnParts(known, len(pairs))
    left = own.taken_out(numpy.array([pairs[at] for at in known]))
    for at, value, free in zip(known, left, own.free(), strict=True):
        if free > _FREE:
            found[at] = found[at[::-1]] = value
    return found


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
