"""An analysis as a page: advice first, then every figure as a chart with its table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cuvee.analyze.advice import Advice
from cuvee.analyze.figures import joined
from cuvee.analyze.forecast import INDEPENDENT
from cuvee.analyze.interference import Remains
from cuvee.analyze.spectra import LEADING, SHARED, Spectrum
from cuvee.analyze.sums import SHARES
from cuvee.charts import Chart, Table, bars, fragment, heat, lines, page, prose
from cuvee.charts.page import listing
from cuvee.charts.svg import figure
from cuvee.core.lazy import numpy
from cuvee.core.names import printable

if TYPE_CHECKING:
    from cuvee.analyze.result import Analysis
    from cuvee.analyze.sums import Array

Part = str | Chart | Table
_LISTED = 40  # tensors of the table of matrices, and of what was left out


def report(found: Analysis) -> str:
    """The whole document."""
    parts = [
        *_summary(found),
        *_pairs(found),
        *_places(found),
        *_spectra(found),
        *_merge(found),
        *_left_out(found),
    ]
    return page("What the experts changed", parts)


def notebook(found: Analysis) -> str:
    """The advice and the figures of the whole model."""
    return fragment([*_summary(found), *_pairs(found)])


def _summary(found: Analysis) -> list[Part]:
    experts = ", ".join(printable(name) for name in found.experts)
    intro = f"Base: {printable(found.base)}. Experts: {experts}. {found.figures.numel:,} parameters were compared."
    sums = found.figures
    rows = [
        [printable(name), sums.norms[i], sums.relative[i], sums.base_cosines[i], found.coverage[i]]
        for i, name in enumerate(found.experts)
    ]
    header = ["expert", "norm of the change", "beside the base", "cosine with the base", "share compared"]
    return [
        prose("p", intro),
        prose("h2", "Advice"),
        listing([advice_text(one) for one in found.advice] or ["Nothing stands out."]),
        Table(header, rows),
    ]


def advice_text(one: Advice) -> str:
    """One finding as a sentence."""
    tried = f" Try {', '.join(f'`{name}`' for name in one.methods)}." if one.methods else ""
    left = f" Leave {', '.join(f'`{name}`' for name in one.avoid)}." if one.avoid else ""
    return f"{one.text[0].upper()}{one.text[1:]}. Reason: {one.reason}.{tried}{left}"


def _pairs(found: Analysis) -> list[Part]:
    if len(found.experts) < 2:
        return []
    sums, names = found.figures, _names(found)
    said = (
        f"Energy in opposite signs, Σ|δᵢδⱼ| / (‖δᵢ‖‖δⱼ‖) over those positions. Independent changes give "
        f"{INDEPENDENT:.3f}; here the mean is {figure(found.forecast.mean)}. "
        "By itself it did not order what merges of text pairs lose, all near 0.3."
    )
    more = (
        "How much more or less a pair opposes than its two experts do with others. Which partner costs an expert more "
        "in an average followed this on eight tasks of text, trained three times (ρ 0.53 to 0.77 over 28 pairs, 0.01 "
        "was 0.3 to 0.6 points); it is not shown for sums and for other tasks. Experimental."
    )
    return [
        prose("h2", "Pairs of experts"),
        heat("Opposition", said, names, names, _off_diagonal(found.forecast.pairs), largest=0.6),
        *(
            [heat("Mergeability forecast", more, names, names, found.forecast.beyond.tolist(), largest=0.03)]
            if found.forecast.extremes()
            else []
        ),
        heat(
            "Cosines of the changes",
            "1: the same change, 0: unrelated, −1: opposite.",
            names,
            names,
            sums.cosines.tolist(),
            largest=1.0,
        ),
        heat(
            "Conflicts of sign",
            "Share of positions with opposite signs, of those that both change; unrelated changes have 0.5.",
            names,
            names,
            _off_diagonal(sums.conflicts),
            largest=1.0,
        ),
        _overlap(found),
    ]


def _overlap(found: Analysis) -> Chart:
    count = len(found.experts)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    labels = [f"{found.experts[i]} and {found.experts[j]}" for i, j in pairs]
    jaccard = found.figures.jaccard
    series = {
        f"top {share:.0%}": [float(jaccard[s, i, j]) for i, j in pairs] for s, share in enumerate(SHARES)
    }
    said = (
        "Jaccard index of the positions of the largest changes of each tensor; unrelated selections of a share s "
        "have s / (2 − s)."
    )
    return bars("Overlap of the largest changes", said, labels, series, column="pair")


def _places(found: Analysis) -> list[Part]:
    layers, roles, names = found.layers, found.roles, _names(found)
    by_layer = {n: [float(s.relative[i]) for s in layers.values()] for i, n in enumerate(names)}
    by_role = {n: [float(s.relative[i]) for s in roles.values()] for i, n in enumerate(names)}
    parts: list[Part] = [
        prose("h2", "Where the changes are"),
        lines(
            "Change by layer",
            "‖δ‖ / ‖base‖ of each layer.",
            list(layers),
            by_layer,
            zero=True,
            column="layer",
        ),
        bars(
            "Change by role", "‖δ‖ / ‖base‖ of the tensors of each role.", list(roles), by_role, column="role"
        ),
    ]
    if len(names) > 1:
        parts.append(_conflict_map(found))
    return parts


def _conflict_map(found: Analysis) -> Chart:
    cells = joined(found.tensors, lambda spot: f"{spot.role}\0{spot.layer}")
    rows, columns = list(found.roles), list(found.layers)
    nan = float("nan")
    values = [[cells[f"{r}\0{c}"].conflict if f"{r}\0{c}" in cells else nan for c in columns] for r in rows]
    said = "Share of positions with changes of both signs, of those that at least two experts change."
    return heat(
        "Conflicts of sign by role and layer", said, rows, columns, values, largest=1.0, column="role"
    )


def _spectra(found: Analysis) -> list[Part]:
    if not found.spectra:
        return []
    names = _names(found)
    ranks = min(len(one.values[0]) for one in found.spectra)
    energy = _mean([one.cumulative[:, :ranks] for one in found.spectra])
    series = {name: [float(v) for v in energy[i]] for i, name in enumerate(names)}
    said = f"Share of ‖δ‖² in the first directions, mean over {len(found.spectra)} matrices."
    parts: list[Part] = [
        prose("h2", "Spectra"),
        lines("Energy by direction", said, [str(r + 1) for r in range(ranks)], series, column="directions"),
    ]
    if len(names) > 1:
        overlap = _mean([(one.left + one.right) / 2 for one in found.spectra])
        said = f"Overlap of the spans of the first {SHARED} singular vectors, left and right, mean over matrices."
        parts.append(heat("Overlap of leading subspaces", said, names, names, overlap.tolist(), largest=1.0))
    return [*parts, _ranks(found.spectra, names)]


def _ranks(spectra: Sequence[Spectrum], names: Sequence[str]) -> Table:
    rows: list[list[object]] = []
    for one in spectra[:_LISTED]:
        shown = [f"more than {LEADING}" if d is None else d for d in one.directions]
        rows.append([one.spot.name, *(float(v) for v in one.stable_ranks), *shown])
    header = ["matrix", *(f"stable rank, {n}" for n in names), *(f"directions of 90 %, {n}" for n in names)]
    return Table(header, rows)


def _merge(found: Analysis) -> list[Part]:
    if found.merge is None or found.remains is None:
        return []
    names, left = _names(found), found.remains
    groups: dict[str, Remains] = {}
    for one in found.merge:
        key = one.spot.layer
        groups[key] = groups[key] + one.remains if key in groups else one.remains
    series = {
        f"{n}, {when}": [float(getattr(g, attribute)[i]) for g in groups.values()]
        for i, n in enumerate(names)
        for when, attribute in (("plain sum", "opposed_before"), ("merged", "opposed"))
    }
    said = "Share of each expert's energy at positions where the sum of all changes, or the merge, moves the other way."
    rows = [
        [n, left.opposed_before[i], left.opposed[i], left.kept[i], left.distance[i]]
        for i, n in enumerate(names)
    ]
    header = ["expert", "opposed in the plain sum", "opposed in the merge", "kept (1: all)", "‖m − δ‖ / ‖δ‖"]
    return [
        prose("h2", "Interference, before and after merging"),
        lines("Opposed energy by layer", said, list(groups), series, zero=True, column="layer"),
        Table(header, rows),
    ]


def _left_out(found: Analysis) -> list[Part]:
    if not found.skipped:
        return []
    rows = [[printable(one.name), printable(one.reason)] for one in found.skipped[:_LISTED]]
    said = f"{len(found.skipped)} tensors were not compared" + (
        f"; the first {_LISTED} are shown." if len(found.skipped) > _LISTED else "."
    )
    return [prose("h2", "Left out"), prose("p", said), Table(["tensor", "reason"], rows)]


def _names(found: Analysis) -> list[str]:
    return [printable(name) for name in found.experts]


def _mean(arrays: Sequence[Array]) -> Array:
    """The mean of those that are not NaN, entry by entry; NaN where all are."""
    stacked = numpy.stack(arrays)
    known = ~numpy.isnan(stacked)
    count = known.sum(0)
    found: Array = numpy.where(
        count > 0, numpy.where(known, stacked, 0.0).sum(0) / numpy.maximum(count, 1), numpy.nan
    )
    return found


def _off_diagonal(matrix: Array) -> list[list[float]]:
    """The matrix without its diagonal, on which nothing stands against itself."""
    out = matrix.copy()
    numpy.fill_diagonal(out, numpy.nan)
    found: list[list[float]] = out.tolist()
    return found
