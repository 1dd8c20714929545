"""Cells joined so that methods can be compared: the places both stand at, items in common, one scale for all tasks.

Owns what a difference between two methods is: of shares of the own experts' scores, so that tasks of several metrics
have a common measure; of plain scores only where no expert was scored and all tasks have one metric.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cuvee.core.digests import canonical_json
from cuvee.core.lazy import numpy
from cuvee.core.names import printable
from cuvee.errors import EvaluationError
from cuvee.evaluate.cells import Cell, clean
from cuvee.evaluate.scorecard import Scorecard, TaskScore
from cuvee.evaluate.statistics import Comparison, compare, sign_flips
from cuvee.evaluate.units import Sample

Strata = list[Sample]
Results = Sequence[tuple[Cell, Scorecard]]
Cards = Mapping[tuple[Any, ...], Scorecard]  # by place

SHARE = "share of the expert"  # the unit of normalised scores


def pairs(
    results: Results, first: str, second: str, count: int | None = None, track: str | None = None
) -> Comparison:
    """The paired comparison of two methods on one track, over all sets and seeds that both have: first − second.

    `track`: its name, which may be left out where they share one alone (see `shared_tracks`). EvaluationError CV-B023
    where they share no place, CV-B397 for several tracks, CV-B396 for several metrics without experts' scores.
    """
    named = told_apart(results)
    first, second = (spelled(named, label) for label in (first, second))
    tracks = _tracks(named, first, second, count, track)
    if len(tracks) > 1:
        raise EvaluationError(
            "CV-B397",
            f"`{printable(first)}` and `{printable(second)}` were both scored on several tracks: "
            f"{', '.join(f'`{printable(name)}`' for name in tracks)}",
            hint="a mean over tracks weighs them by what happens to be in the folder; name one: `--track`, or `track`",
        )
    a, b, experts = (_on(tracks, by_place(named, label, count)) for label in (first, second, "experts"))
    return beside(a, b, experts)


def shared_tracks(results: Results, first: str, second: str) -> list[str]:
    """The tracks that two methods were both scored on; EvaluationError CV-B023 for none.

    Tracks under stress are named only where there are no others: their items are those of the clean track again. Of
    several protocols of a track the newest counts that both were scored by.
    """
    return _tracks(told_apart(results), first, second, None, None)


def _tracks(named: Results, first: str, second: str, count: int | None, track: str | None) -> list[str]:
    a, b = (by_place(named, label, count) for label in (first, second))
    protocols = {place_of(cell): cell.protocol for cell, _ in named}
    shared = {place for place in set(a) & set(b) if track in (None, place[0], _plain(place[0]))}
    if not shared:
        where = "any set of tasks" if track is None else f"any set of tasks of the track `{printable(track)}`"
        found = sorted({cell.label if track is None else cell.track for cell, _ in named})
        raise EvaluationError(
            "CV-B023",
            f"`{printable(first)}` and `{printable(second)}` were not both scored on {where}",
            hint="scored are " + ", ".join(found),
        )
    newest: dict[str, int] = {}
    for place in shared:
        newest[_plain(place[0])] = max(protocols[place], newest.get(_plain(place[0]), 0))
    kept = {place[0] for place in shared if protocols[place] == newest[_plain(place[0])]}
    return sorted({name for name in kept if clean(name)} or kept)


def _plain(track: str) -> str:
    """A track's own name, without the version or protocol that told it from another."""
    return track.partition(" (")[0]


def _on(tracks: Sequence[str], cards: Cards) -> dict[tuple[Any, ...], Scorecard]:
    return {place: card for place, card in cards.items() if place[0] in tracks}


def beside(first: Cards, second: Cards, experts: Cards) -> Comparison:
    """The paired comparison of cards over the places they share: first − second, in shares of the experts' scores.

    In the metric's own unit where not every place has its experts and all tasks have one metric. Where they have
    several, places without experts are left out; EvaluationError CV-B396 if that leaves none.
    """
    found = _scaled(first, second, experts)
    if found is None:
        raise EvaluationError(
            "CV-B396",
            "the tasks have several metrics and their experts were not scored, so that differences have no mean",
            hint="score the reference `experts` too: `cuvee bench run` on the same track and folder does",
        )
    ours, theirs, counts, unit = found
    return replace(compare(ours, theirs, counts=counts), unit=unit)


def on_tasks(first: Cards, second: Cards, names: Sequence[str]) -> Comparison | None:
    """The paired comparison on tasks of one metric, with experts or without, in its unit; None where nothing is shared.

    Differences are turned so that higher is better.
    """
    shared = sorted(set(first) & set(second))
    sides: list[Strata] = []
    for cards in (first, second):
        found: dict[str, Strata] = defaultdict(list)
        for place in shared:
            for name in names:
                if all(name in both[place].tasks for both in (first, second)):
                    found[name].append(cards[place].tasks[name].strata)
        sides.append([_mean(every) for every in found.values()])
    if not sides[0]:
        return None
    unit = first[shared[0]].tasks[names[0]].metric.unit
    return replace(compare(*sides), unit=unit)


def comparable(results: Results, first: str, second: str, count: int) -> bool:
    """Whether `pairs` has an answer for these methods, with their tuning in their labels."""
    a, b, experts = (by_place(results, label, count) for label in (first, second, "experts"))
    return _scaled(a, b, experts) is not None


def apart_by(first: Cards, second: Cards, experts: Cards) -> float:
    """The p-value of `beside` alone; 1 where the methods share no place, or none on one scale."""
    if (found := _scaled(first, second, experts)) is None:
        return 1.0
    ours, theirs, counts, _ = found
    return sign_flips(ours, theirs, counts=counts)


def _scaled(first: Cards, second: Cards, experts: Cards) -> tuple[Strata, Strata, list[int], str] | None:
    """Strata of both methods over the places they share, how often each task stands there, and the unit."""
    shared = sorted(set(first) & set(second))
    units = {first[place].tasks[name].metric.scale for place in shared for name in first[place].held_in()}
    if len(units) > 1:
        shared = [place for place in shared if place in experts]
    if not shared:
        return None
    whole = all(place in experts for place in shared)
    (ours, counts), (theirs, _) = (
        joined([(cards[place], experts[place] if whole else None) for place in shared])
        for cards in (first, second)
    )
    return ours, theirs, counts, SHARE if whole else units.pop()[2]


def joined(cards: Iterable[tuple[Scorecard, Scorecard | None]]) -> tuple[Strata, list[int]]:
    """A stratum for each task: every item's mean over the cards that have it, and how many they are.

    Where a card comes with its experts', scores are those of `shares`. Tasks of one name with another number of items
    are other tasks.
    """
    found: dict[tuple[str, int], Strata] = defaultdict(list)
    for card, experts in cards:
        for name in card.held_in():
            given = (
                card.tasks[name].strata if experts is None else shares(card.tasks[name], experts.tasks[name])
            )
            found[(name, len(given.scores))].append(given)
    return [_mean(every) for every in found.values()], [len(every) for every in found.values()]


def _mean(every: Strata) -> Sample:
    """The items of samples that are the same, each with its mean number."""
    return replace(every[0], scores=numpy.mean([one.scores for one in every], axis=0))


def shares(score: TaskScore, expert: TaskScore) -> Sample:
    """The items with numbers whose weighted mean is the normalised score.

    s ÷ e, where e is the expert's mean. Where lower is better the normalised score is e ÷ m of the mean m, no mean over
    items: each item counts by what it moves that quotient, e/m − (e/m²)(s − m). Plain scores, higher is better, where e
    is not above zero or, where lower is better, m is not.
    """
    best, own = expert.mean, score.mean
    higher = score.metric.better == "higher"
    if best <= 0 or (not higher and own <= 0):
        return score.strata
    found = score.scores / best if higher else best / own * (2 - score.scores / own)
    return replace(score.strata, scores=found)


def told_apart(results: Results) -> list[tuple[Cell, Scorecard]]:
    """The results with the tuning in the label of methods that were tuned in several ways (budget, search, ranges).

    A track of which a seed is there in two versions (its data or training have changed) becomes two tracks, as does
    one with cells of several protocols.
    """
    results = _by_protocol(results)
    tunings: dict[str, set[str]] = defaultdict(set)
    digests: dict[tuple[str, int], set[str]] = defaultdict(set)
    for cell, _ in results:
        tunings[cell.label].add(_tuning(cell, whole=True))
        digests[(cell.track, cell.seed)].add(cell.digest)
    mixed = {track for (track, _), found in digests.items() if len(found) > 1}
    out = []
    for cell, card in results:
        ways = tunings[cell.label]
        searched = len({way.partition(",")[2] for way in ways if "," in way}) > 1
        label = f"{cell.label} {_tuning(cell, whole=searched)}" if len(ways) > 1 else cell.label
        track = f"{cell.track} ({cell.digest[:8]})" if cell.track in mixed else cell.track
        out.append((replace(cell, label=label, track=track), card))
    return out


def spelled(named: Results, label: str) -> str:
    """The label that is meant: a name alone is the tuned method, where it was scored untuned and tuned in one way."""
    labels = {cell.label for cell, _ in named}
    tuned = [one for one in labels if one.startswith(f"{label} (budget ")]
    return tuned[0] if label not in labels and len(tuned) == 1 else label


def _by_protocol(results: Results) -> Results:
    """The results with the protocol in the track's name where a newer one was run too, under stress or not."""
    newest: dict[str, int] = {}
    for cell, _ in results:
        origin = cell.track.partition("+")[0]
        newest[origin] = max(cell.protocol, newest.get(origin, 0))
    return [
        (cell, card)
        if cell.protocol == newest[cell.track.partition("+")[0]] or " (protocol " in cell.track
        else (replace(cell, track=f"{cell.track} (protocol {cell.protocol})"), card)
        for cell, card in results
    ]


def _tuning(cell: Cell, *, whole: bool) -> str:
    """The budget; with `whole` how it was spent, too."""
    if not cell.budget:
        return "(untuned)"
    ranges = "" if cell.space is None else f" over {canonical_json(cell.space).decode()}"
    return f"(budget {cell.budget}, {cell.search}{ranges})" if whole else f"(budget {cell.budget})"


def by_place(results: Results, label: str, count: int | None = None) -> dict[tuple[Any, ...], Scorecard]:
    """The cards of one contestant by track, its digest, seed and set of tasks."""
    return {
        place_of(cell): card
        for cell, card in results
        if cell.label == label and (count is None or len(cell.tasks) == count)
    }


def place_of(cell: Cell) -> tuple[Any, ...]:
    """Where a cell stands: track, its digest, seed and set of tasks."""
    return cell.track, cell.digest, cell.seed, cell.tasks


def common_mean(card: Scorecard, names: Sequence[str]) -> float:
    """The mean over tasks of one metric; NaN for several."""
    return card.mean(names) if len({card.tasks[n].metric.scale for n in names}) == 1 else math.nan
