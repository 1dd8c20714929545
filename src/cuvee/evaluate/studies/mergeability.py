"""Does a forecast made before merging order sets of experts by what their merge loses?

The forecast is handed in: figures of pairs of experts, by name. Observed is what a fixed merge lost: one minus the
normalised score. Sets that share an expert are not independent, so the p-value comes from exchanging experts (Mantel's
test): the figures of all pairs move together, and a correlation counts only where it depends on which expert is which.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuvee.charts import Table, lines
from cuvee.core.lazy import numpy
from cuvee.evaluate.cells import is_reference
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.pages import Drawn, Part, Section
from cuvee.evaluate.paired import Results, by_place
from cuvee.evaluate.published import ranged
from cuvee.evaluate.statistics import Interval, rank_correlations, rank_intervals
from cuvee.evaluate.studies.study import Study

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[numpy.float64]

EXCHANGES = 2000
SETS = 56  # all pairs of eight experts, and all their triples

STUDY = Study(
    name="mergeability",
    title="Can it be forecast which experts merge badly?",
    source="the mergeability forecast of `cuvee analyze`",
    questions=("Do figures of the weights alone order sets of experts by what their merge loses?",),
    methods=(Contender("average"), Contender("task_arithmetic", {"lambda": 1.0})),
    counts=(2, 3),
    answers=lambda results, boards: [],
    limits="other tracks, tuned methods, and experts that were made to be hard to merge.",
    budget=0,
    subsets=SETS,
    untuned=False,
    unseen=False,
)


@dataclass(frozen=True, slots=True)
class Validation:
    """How far one figure orders the losses of one merge: correlations over sets, and the share of exchanges as good."""

    figure: str
    method: str
    count: int
    sets: int
    spearman: Interval
    kendall: Interval
    p_value: float


def losses(results: Results, method: str, count: int) -> dict[tuple[str, ...], float]:
    """1 − normalised score of a method for each set of that many experts, mean over seeds."""
    experts = by_place(results, "experts", count)
    found: dict[tuple[str, ...], list[float]] = {}
    for place, card in by_place(results, method, count).items():
        if place in experts:
            own = {name: experts[place].tasks[name].mean for name in card.held_in()}
            found.setdefault(place[3], []).append(1 - card.normalised(own))
    return {tasks: sum(values) / len(values) for tasks, values in found.items()}


def validate(
    names: Sequence[str], figures: Mapping[str, Matrix], results: Results, *, seed: int = 0
) -> list[Validation]:
    """Every figure against the losses of every method and number of experts in the results."""
    out = []
    kinds = sorted({(len(c.tasks), c.label) for c, _ in results if not is_reference(c.label)})
    for count, method in kinds:
        observed = losses(results, method, count)
        if len(observed) < 4:
            continue
        for figure, pairs in figures.items():
            out.append(_validated(names, figure, pairs, observed, method, seed))
    return out


def _validated(
    names: Sequence[str],
    figure: str,
    pairs: Matrix,
    observed: Mapping[tuple[str, ...], float],
    method: str,
    seed: int,
) -> Validation:
    sets = [[names.index(name) for name in tasks] for tasks in observed]
    lost = list(observed.values())
    expected = _forecasts(pairs, sets).tolist()
    rho, tau = rank_intervals(expected, lost, seed=seed)
    return Validation(
        figure, method, len(sets[0]), len(sets), rho, tau, _exchanged(pairs, sets, lost, rho.mean, seed)
    )


def forecast(pairs: Matrix, members: Sequence[int]) -> float:
    """The mean of a figure over the pairs of a set."""
    return float(_forecasts(pairs, [members])[0])


def _forecasts(pairs: Matrix, sets: Sequence[Sequence[int]]) -> Matrix:
    """The mean over pairs of each set; the sets are equally large."""
    places = numpy.array([list(itertools.combinations(members, 2)) for members in sets])
    means: Matrix = pairs[places[..., 0], places[..., 1]].mean(1)
    return means


def _exchanged(
    pairs: Matrix, sets: Sequence[Sequence[int]], lost: Sequence[float], found: float, seed: int
) -> float:
    """Two-sided p-value over random exchanges of the experts."""
    if math.isnan(found):
        return math.nan
    random = numpy.random.default_rng(seed)
    orders = [random.permutation(len(pairs)) for _ in range(EXCHANGES)]
    moved = numpy.array([_forecasts(pairs[numpy.ix_(order, order)], sets) for order in orders])
    rho, _ = rank_correlations(moved, numpy.tile(numpy.asarray(lost), (EXCHANGES, 1)))
    extreme = int((numpy.abs(rho) >= abs(found) - 1e-12).sum())
    return (extreme + 1) / (EXCHANGES + 1)


def sections(names: Sequence[str], figures: Mapping[str, Matrix], results: Results) -> list[Section]:
    """The report: correlations of every figure, and each set with its forecast and its loss."""
    found = validate(names, figures, results)
    header = ("experts", "merge", "sets", "figure", "Spearman ρ (95 %)", "Kendall τ (95 %)", "p")
    rows = [
        [v.count, v.method, v.sets, v.figure, ranged(v.spearman), ranged(v.kendall), f"{v.p_value:.4f}"]
        for v in found
    ]
    said = (
        "Loss: one minus the normalised score. A positive correlation means that sets with a larger figure lose more. "
        "Intervals draw sets anew and are too narrow, as sets share experts; p exchanges experts (Mantel's test), not "
        f"corrected for the {len(found)} rows."
    )
    few = "No number of experts has four sets or more, which a correlation needs: raise `--subsets`, or add experts."
    parts: list[Part] = [said, Table(header, rows)] if rows else [few]
    return [Section("Forecast against what merges lose", tuple(parts)), *_lists(names, figures, results)]


def _lists(names: Sequence[str], figures: Mapping[str, Matrix], results: Results) -> list[Section]:
    first = next(iter(figures))
    out = []
    for count, method in sorted({(len(c.tasks), c.label) for c, _ in results if not is_reference(c.label)}):
        observed = losses(results, method, count)
        ordered = sorted(
            observed, key=lambda tasks: forecast(figures[first], [names.index(n) for n in tasks])
        )
        places = [" + ".join(tasks) for tasks in ordered]
        expected = [forecast(figures[first], [names.index(n) for n in tasks]) for tasks in ordered]
        chart = lines(
            f"{method}, {count} experts: loss by {first}",
            "Sets in the order of the forecast; the line shows what their merge lost, in points.",
            [str(i + 1) for i in range(len(ordered))],
            {"loss": [100 * observed[tasks] for tasks in ordered]},
            column=f"place by {first}",
        )
        rows = [
            [place, value, f"{100 * observed[tasks]:.2f}"]
            for place, value, tasks in zip(places, expected, ordered, strict=True)
        ]
        out.append(
            Section(
                f"{method}, {count} experts", (Drawn(chart), Table(("experts", first, "loss, points"), rows))
            )
        )
    return out
