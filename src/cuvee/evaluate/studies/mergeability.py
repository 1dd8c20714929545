"""Does a forecast made before merging order sets of experts by what their merge loses?

The forecast is handed in: figures of pairs of experts, by name. Observed is what a fixed merge lost: one minus the
normalised score. Sets that share an expert are not independent, so the p-value comes from exchanging experts (Mantel's
test): the figures of all pairs move together, and a correlation counts only where it depends on which expert is which.
Each figure is asked twice: for the loss itself, and for what is left of it when every expert is given a loss of its own
that it takes into each set, which is what concerns the combination.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cuvee.charts import Table, lines
from cuvee.core.additive import OwnParts
from cuvee.core.lazy import numpy
from cuvee.evaluate.cells import is_reference
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.leaderboard import probability
from cuvee.evaluate.ledger import Ledger
from cuvee.evaluate.pages import Drawn, Part, Section
from cuvee.evaluate.paired import Results, by_place
from cuvee.evaluate.published import ranged
from cuvee.evaluate.statistics import Interval, holm, rank_correlation, rank_correlations, rank_intervals
from cuvee.evaluate.studies.study import Study

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cuvee.evaluate.track import Track, Weights
    from cuvee.evaluate.units import Scores

    Matrix = NDArray[numpy.float64]

EXCHANGES = 2000
SETS = 56  # all pairs of eight experts, and all their triples

STUDY = Study(
    name="mergeability",
    title="Can it be forecast which experts merge badly?",
    source="the mergeability forecast of `cuvee analyze`",
    questions=(
        "Do figures of the weights alone order sets of experts by what their merge loses?",
        "Do scores of single models on selection data, before anything is merged?",
    ),
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
    """How far one figure orders the losses of one merge: correlations over sets, and the share of exchanges as good.

    `critical`: the |ρ| that 5 % of the exchanges reach, what a figure must show to be told from none. `adjusted`: the
    p-value for the number of all figures, merges and numbers of experts that were asked (Holm). `apart`: Spearman's ρ
    when every expert's own part is taken out of both, NaN where nothing is left of one; `apart_p_value` as `p_value`.
    """

    figure: str
    method: str
    count: int
    sets: int
    spearman: Interval
    kendall: Interval
    p_value: float
    critical: float
    apart: float
    apart_p_value: float
    adjusted: float = math.nan


def losses(results: Results, method: str, count: int) -> dict[tuple[str, ...], float]:
    """1 − normalised score of a method for each set of that many experts, mean over seeds.

    Sets that were not scored with every seed are left out: what forecasts them is a mean over all seeds.
    """
    experts = by_place(results, "experts", count)
    found: dict[tuple[str, ...], list[float]] = {}
    for place, card in by_place(results, method, count).items():
        if place in experts:
            own = {name: experts[place].tasks[name].mean for name in card.held_in()}
            found.setdefault(place[3], []).append(1 - card.normalised(own))
    seeds = len({cell.seed for cell, _ in results})
    return {tasks: sum(values) / seeds for tasks, values in found.items() if len(values) == seeds}


def validate(
    names: Sequence[str], figures: Mapping[str, Matrix], results: Results, *, seed: int = 0
) -> list[Validation]:
    """Every figure against the losses of every method and number of experts in the results."""
    out = []
    for count, method in _kinds(results):
        observed = losses(results, method, count)
        if len(observed) < 4:
            continue
        for figure, pairs in figures.items():
            out.append(_validated(names, figure, pairs, observed, method, seed))
    known = {str(at): one.p_value for at, one in enumerate(out) if not math.isnan(one.p_value)}
    adjusted = holm(known)
    return [replace(one, adjusted=adjusted.get(str(at), math.nan)) for at, one in enumerate(out)]


def _kinds(results: Results) -> list[tuple[int, str]]:
    """Numbers of experts and merges that were scored."""
    return sorted({(len(c.tasks), c.label) for c, _ in results if not is_reference(c.label)})


def _validated(
    names: Sequence[str],
    figure: str,
    pairs: Matrix,
    observed: Mapping[tuple[str, ...], float],
    method: str,
    seed: int,
) -> Validation:
    sets = [[names.index(name) for name in tasks] for tasks in observed]
    lost = numpy.array(list(observed.values()))
    expected = _forecasts(pairs, sets)
    rho, tau = rank_intervals(expected.tolist(), lost.tolist(), seed=seed)
    p_value, critical = _exchanged(pairs, sets, lost, rho.mean, seed)
    rest = OwnParts(sets, len(names))
    apart, _ = rank_correlation(*(_centred(rest, values).tolist() for values in (expected, lost)))
    apart_p_value, _ = _exchanged(pairs, sets, lost, apart, seed, rest)
    return Validation(
        figure, method, len(sets[0]), len(sets), rho, tau, p_value, critical, apart, apart_p_value
    )


def forecast(pairs: Matrix, members: Sequence[int]) -> float:
    """The mean of a figure over the pairs of a set."""
    return float(_forecasts(pairs, [members])[0])


def _forecasts(pairs: Matrix, sets: Sequence[Sequence[int]]) -> Matrix:
    """The mean over pairs of each set; the sets are equally large."""
    places = numpy.array([list(itertools.combinations(members, 2)) for members in sets])
    means: Matrix = pairs[places[..., 0], places[..., 1]].mean(1)
    return means


def _centred(rest: OwnParts | None, values: Matrix) -> Matrix:
    """What is left of values (… × sets) when members' own parts are taken out, if that is asked."""
    return values if rest is None else rest.taken_out(values)


def _exchanged(
    pairs: Matrix,
    sets: Sequence[Sequence[int]],
    lost: Matrix,
    found: float,
    seed: int,
    rest: OwnParts | None = None,
) -> tuple[float, float]:
    """Two-sided p-value over random exchanges of the experts, and the |ρ| that 5 % of them reach."""
    if math.isnan(found):
        return math.nan, math.nan
    random = numpy.random.default_rng(seed)
    orders = [random.permutation(len(pairs)) for _ in range(EXCHANGES)]
    moved = numpy.array([_forecasts(pairs[numpy.ix_(order, order)], sets) for order in orders])
    rho, _ = rank_correlations(_centred(rest, moved), numpy.tile(_centred(rest, lost), (EXCHANGES, 1)))
    known = numpy.abs(rho[~numpy.isnan(rho)])  # an exchange may bring in a pair that has no figure
    if not len(known):
        return math.nan, math.nan
    extreme = int((known >= abs(found) - 1e-12).sum())
    return (extreme + 1) / (len(known) + 1), float(numpy.quantile(known, 0.95))


def item_scores(track: Track) -> Callable[[Weights, str], Scores]:
    """Scores weights on a task of the track: one number for each selection item, never of the test part."""
    examinee, ledger = track.examinee(), Ledger()

    def score(weights: Weights, name: str) -> Scores:
        task = track.tasks[name]
        examinee.load({**track.base, **weights})
        return numpy.asarray(examinee.answer(task, task.selection, ledger), dtype=numpy.float64)

    return score


def sections(names: Sequence[str], figures: Mapping[str, Matrix], results: Results) -> list[Section]:
    """The report: correlations of every figure, and each set with its forecast and its loss."""
    found = validate(names, figures, results)
    shown = ("experts", "merge", "sets", "figure", "Spearman ρ (95 %)", "Kendall τ (95 %)", "p", "p, Holm")
    header = (*shown, "|ρ| at 5 %", "ρ apart", "p apart")
    rows = [
        [v.count, v.method, v.sets, v.figure, ranged(v.spearman), ranged(v.kendall), *_told(v)] for v in found
    ]
    said = (
        "Loss: one minus the normalised score. A positive correlation means that sets with a larger figure lose more. "
        "Intervals draw sets anew and are too narrow, as sets share experts; p exchanges experts (Mantel's test), "
        f"corrected for the {len(found)} rows by Holm's rule. |ρ| at 5 %: what such exchanges reach one time in twenty "
        "by chance, so that less could not have been seen. Apart: the same when every expert may bring a loss of its "
        "own to all its sets; – where the figure is nothing but such a sum."
    )
    few = "No number of experts has four sets or more, which a correlation needs: raise `--subsets`, or add experts."
    parts: list[Part] = [said, Table(header, rows)] if rows else [few]
    return [Section("Forecast against what merges lose", tuple(parts)), *_lists(names, figures, results)]


def _told(one: Validation) -> list[str]:
    """The p-values, what could have been seen, and what is left apart from the experts' own parts."""
    correlations = ("–" if math.isnan(v) else f"{v:.2f}".replace("-", "−") for v in (one.critical, one.apart))
    chances = map(probability, (one.p_value, one.adjusted))
    return [*chances, *correlations, probability(one.apart_p_value)]


def _lists(names: Sequence[str], figures: Mapping[str, Matrix], results: Results) -> list[Section]:
    first = next(iter(figures))
    out = []
    for count, method in _kinds(results):
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
