"""Whether to merge, and how, from scores of single models on selection data: rules beside those of the weights.

A change of which half gains half as much as the whole is linear; an average of n scales every change by 1 / n. What
halving costs orders what averages of two lose, on tracks of text, languages and pictures (means over sets of experts:
Spearman's ρ 0.52 to 0.84); for more than two it was not asked, so the rule only suggests.
"""

from __future__ import annotations

from collections.abc import Iterator

from cuvee.analyze.advice import Advice, nothing_to_merge
from cuvee.analyze.probes import Probes
from cuvee.core.lazy import numpy
from cuvee.core.names import printable

KEPT = 0.5  # of what an expert gained: what half of a linear change keeps


def advise_by_scores(probes: Probes) -> tuple[Advice, ...]:
    """Every rule that speaks, the gravest first."""
    useless = list(_useless(probes))
    if len(probes.tasks) - len(useless) < 2:
        found = len(probes.tasks) - len(useless)
        said = f"{found} of {len(probes.tasks)} scores better than the base on its own task"
        return (nothing_to_merge(said), *useless)
    return (*useless, *_weak_at_half(probes))


def _useless(probes: Probes) -> Iterator[Advice]:
    for i in numpy.flatnonzero(~(probes.gain > 0)):
        yield Advice(
            "gains_nothing",
            "warn",
            f"leave `{printable(probes.tasks[i])}` out: it is no better than the base on its own task",
            f"it scores {probes.own[i]:.3g} there, the base {probes.base[i]:.3g}",
        )


def _weak_at_half(probes: Probes) -> Iterator[Advice]:
    error = numpy.zeros(len(probes.tasks)) if probes.bend_error is None else probes.bend_error
    bend = probes.halving - KEPT * probes.gain
    weak = [i for i in numpy.flatnonzero(probes.gain > 0) if bend[i] > error[i]]
    if weak:
        lost = probes.told_halvings()
        named = ", ".join(f"`{printable(probes.tasks[i])}` {lost[i]}" for i in weak)
        yield Advice(
            "weak_at_half",
            "suggest",
            "score sums with a coefficient near 1 beside averages",
            "at half their change these experts lose more than half of their gain, in shares of their score "
            f"(experimental): {named}",
            ("task_arithmetic",),
        )
