"""Whether to merge, and how: rules with stated thresholds over the figures, each with the numbers that made it speak.

Owns the thresholds. They come from geometry (independent changes, strangers of equal size), not from a study, so the
advice is a place to begin, not a verdict on scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cuvee.analyze.forecast import HIGH, INDEPENDENT, LOW, Forecast
from cuvee.core.lazy import numpy
from cuvee.core.names import printable

if TYPE_CHECKING:
    from cuvee.analyze.spectra import Spectrum
    from cuvee.analyze.sums import Sums

STRANGER_COSINE = 0.5  # of base and expert weights; separately trained models of one shape are near 0
STRANGER_CHANGE = 1.0  # ‖δ‖ / ‖base‖; strangers of equal size have √2
COVERED = 0.9  # share of the base's parameters that an expert has in the same shape
FAR_CHANGE = 0.3  # ‖δ‖ / ‖base‖ beyond which arithmetic on weights may leave the basin
SAME = 0.99  # cosine of task vectors that are one and the same
COMMON = 0.8  # cosine of all pairs from which the base is probably not the nearest ancestor
UNEQUAL = 3.0  # largest ‖δ‖ beside the smallest
THIN = 16.0  # median stable rank up to which the changes count as low-rank
WIDE = 64  # rows and columns from which a spectrum says something about advice; small ones are always thin
ALIGNED = 0.5  # mean overlap of leading subspaces from which they count as shared
OPPOSED = 0.01  # beyond the experts' own: 0.3 to 0.6 points of an average's score on text

Kind = Literal["stop", "warn", "suggest"]


@dataclass(frozen=True, slots=True)
class Advice:
    """One finding: the rule that spoke, what to do, why, methods to try, and methods to leave."""

    rule: str
    kind: Kind
    text: str
    reason: str
    methods: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the rules look at."""

    experts: Sequence[str]
    figures: Sums
    coverage: Sequence[float]
    forecast: Forecast
    spectra: Sequence[Spectrum] | None = None


def advise(evidence: Evidence) -> tuple[Advice, ...]:
    """Every rule that speaks, the gravest first; methods are suggested only where nothing says stop."""
    stops = [*_strangers(evidence), *_alone(evidence), *_unchanged(evidence)]
    warnings = [*_far(evidence), *_same(evidence), *_unequal(evidence)]
    if any(one.kind == "stop" for one in stops):
        return (*stops, *warnings)
    return (*stops, *warnings, *_by_forecast(evidence), *_by_pair(evidence), *_by_spectra(evidence))


def _is_stranger(e: Evidence, i: int) -> bool:
    """Whether an expert is not to be merged at all, so that no advice says how."""
    far = e.figures.base_cosines[i] < STRANGER_COSINE or e.figures.relative[i] >= STRANGER_CHANGE
    return bool(far or e.coverage[i] < COVERED)


def _strangers(e: Evidence) -> Iterator[Advice]:
    for i, name in enumerate(e.experts):
        cosine, change, covered = e.figures.base_cosines[i], e.figures.relative[i], e.coverage[i]
        if _is_stranger(e, i):
            is_near = cosine >= STRANGER_COSINE and change < STRANGER_CHANGE
            why = "too little of it can be compared" if is_near else "it has no common base with the others"
            yield Advice(
                "no_common_base",
                "stop",
                f"do not merge `{printable(name)}` by its weights: {why}",
                f"cosine with the base {cosine:.2f} (a fine-tune: at least {STRANGER_COSINE:g}), change "
                f"{change:.2f} of the base's norm (below {STRANGER_CHANGE:g}), {covered:.0%} of the parameters in "
                f"the same shape (at least {COVERED:.0%})",
            )


def _alone(e: Evidence) -> Iterator[Advice]:
    changed = sum(bool(norm != 0) for norm in e.figures.norms)
    if changed < 2:
        yield nothing_to_merge(f"{changed} of {len(e.experts)} differs from the base, and merging needs two")


def nothing_to_merge(reason: str) -> Advice:
    """The rule that says stop where fewer than two models have something to bring."""
    return Advice("nothing_to_merge", "stop", "do not merge these models", reason)


def _unchanged(e: Evidence) -> Iterator[Advice]:
    for name, norm in zip(e.experts, e.figures.norms, strict=True):
        if norm == 0:
            yield Advice(
                "unchanged",
                "warn",
                f"leave `{printable(name)}` out: it equals the base",
                "its change has norm 0",
            )


def _far(e: Evidence) -> Iterator[Advice]:
    for i, (name, change) in enumerate(zip(e.experts, e.figures.relative, strict=True)):
        if FAR_CHANGE <= change < STRANGER_CHANGE and not _is_stranger(e, i):
            yield Advice(
                "far_from_base",
                "warn",
                f"score the line from the base to `{printable(name)}` first (`analyze.path`), and merge with "
                "coefficients below 1",
                f"its change is {change:.2f} of the base's norm (usual for fine-tunes: below {FAR_CHANGE:g})",
            )


def _same(e: Evidence) -> Iterator[Advice]:
    pairs = _pairs(e)
    for a, b, cosine in pairs:
        if cosine > SAME:
            yield Advice(
                "same_change",
                "warn",
                f"leave one of `{printable(a)}` and `{printable(b)}` out, or average them first",
                f"their changes have cosine {cosine:.3f} (above {SAME:g})",
            )
    if pairs and min(c for _, _, c in pairs) > COMMON:
        yield Advice(
            "nearer_ancestor",
            "suggest",
            "look for a nearer common ancestor and use it as the base; without one, average",
            f"all changes have cosines above {COMMON:g}, so they share a change that the base lacks",
            ("average",),
        )


def _unequal(e: Evidence) -> Iterator[Advice]:
    every = enumerate(zip(e.experts, e.figures.norms, strict=True))
    norms = {n: float(v) for i, (n, v) in every if v > 0 and not _is_stranger(e, i)}
    if len(norms) < 2:
        return
    small, large = min(norms, key=lambda n: norms[n]), max(norms, key=lambda n: norms[n])
    if norms[large] / norms[small] > UNEQUAL:
        yield Advice(
            "unequal_norms",
            "warn",
            f"give `{printable(large)}` a smaller weight, else it drowns `{printable(small)}`",
            f"their changes have norms {norms[large]:.3g} and {norms[small]:.3g} (ratio above {UNEQUAL:g})",
            avoid=(
                "wudi",
                "swudi",
                "emr",
                "emr_expert",
            ),  # they lose most under unequal norms (arXiv:2508.01148)
        )


def _by_forecast(e: Evidence) -> Iterator[Advice]:
    found = e.forecast
    if found.band == "none":
        return
    said = f"opposition {found.mean:.2f}, where independent changes give {INDEPENDENT:.2f} (experimental)"
    if found.band == "low":
        text = "add the changes; little stands against it"
        methods: tuple[str, ...] = ("task_arithmetic", "average")
        reason = f"{said}; low is below {LOW:.2f}"
    elif found.band == "moderate":
        text = "use a method that settles conflicts of sign or of directions"
        methods, reason = ("ties", "dare_ties", "tsv_m", "iso_c"), f"{said}; moderate is up to {HIGH:.2f}"
    else:
        text = (
            "expect a merged model well below its experts: merge fewer, or keep a part for each task (`emr_expert`, "
            "`cuvee package`)"
        )
        methods, reason = ("ties", "pcb", "emr_expert"), f"{said}; high is above {HIGH:.2f}"
    yield Advice(f"{found.band}_opposition", "suggest", text, reason, methods)


def _by_pair(e: Evidence) -> Iterator[Advice]:
    extremes = e.forecast.extremes()
    if extremes is None or e.forecast.beyond[extremes[0]] < OPPOSED:
        return
    (a, b), (c, d) = ([printable(e.experts[i]) for i in pair] for pair in extremes)
    most, least = (e.forecast.beyond[pair] for pair in extremes)
    yield Advice(
        "opposed_pair",
        "suggest",
        f"if only some of these are merged, keep `{a}` and `{b}` apart rather than `{c}` and `{d}`",
        f"they oppose each other by {most:+.3f} beyond what they do with others, the latter by {least:+.3f}; which "
        "partner costs more in an average followed that on tasks of text (experimental)",
    )


def _by_spectra(e: Evidence) -> Iterator[Advice]:
    wide = [s for s in e.spectra or () if min(s.spot.shape[0], math.prod(s.spot.shape[1:])) >= WIDE]
    ranks = numpy.array([rank for s in wide for rank in s.stable_ranks])
    if not numpy.isfinite(ranks).any():
        return
    rank = float(numpy.nanmedian(ranks))
    if rank <= THIN:
        yield Advice(
            "thin_changes",
            "suggest",
            "merge in the space of the directions that the changes span",
            f"the median stable rank of the changes is {rank:.1f} (at most {THIN:g}, matrices of {WIDE} directions up)",
            ("knots_ties", "core_space_ties", "tsv_m"),
            avoid=("iso_c",),  # flattening spreads a few directions over all (arXiv:2505.19892)
        )
    overlaps = [v for s in wide for side in (s.left, s.right) for v in _above_diagonal(side)]
    if overlaps and sum(overlaps) / len(overlaps) > ALIGNED:
        yield Advice(
            "shared_directions",
            "suggest",
            "flatten the shared directions, else they crowd out what is particular to each expert",
            f"leading subspaces overlap by {sum(overlaps) / len(overlaps):.2f} (above {ALIGNED:g})",
            ("iso_c", "iso_cts"),
        )


def _pairs(e: Evidence) -> list[tuple[str, str, float]]:
    cosines = e.figures.cosines
    asked = [i for i in range(len(e.experts)) if not _is_stranger(e, i)]
    every = [(e.experts[i], e.experts[j], float(cosines[i, j])) for i in asked for j in asked if i < j]
    return [one for one in every if math.isfinite(one[2])]


def _above_diagonal(matrix: object) -> list[float]:
    values = numpy.asarray(matrix)
    found = values[numpy.triu_indices(len(values), 1)]
    return [float(v) for v in found if math.isfinite(v)]
