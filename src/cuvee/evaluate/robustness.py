"""What methods lose when one of the experts they are handed should not be there: stressed tracks beside their own.

Knows tracks by their names alone: `NAME+KIND` is NAME under stress.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from cuvee.charts import Table, heat
from cuvee.evaluate.cells import clean
from cuvee.evaluate.leaderboard import difference, percent, probability
from cuvee.evaluate.pages import Part, Section
from cuvee.evaluate.paired import Cards, Results, beside, by_place, told_apart
from cuvee.evaluate.statistics import holm
from cuvee.evaluate.table import Board


def section(boards: Sequence[Board], results: Results) -> Section | None:
    """Normalised scores with and without each stress, and paired tests of what was lost; None without both."""
    named = told_apart(results)
    every = {(board.track, board.count): board for board in boards}
    found = [board for board in boards if not clean(board.track) and (_origin(board), board.count) in every]
    if not found:
        return None
    said = (
        "The same tasks and experts, but methods are handed one expert more that should not be there, or one out of "
        "proportion. Scores are means over the sets and seeds that a method has on both sides; differences are "
        "stressed − clean of normalised scores on the same items, in points, p with Holm's correction over each table. "
        "Where methods were tuned, they were tuned under stress."
    )
    parts: list[Part] = [said, *_overview(found, every, named)]
    parts += [_table(every[(_origin(board), board.count)], board, named) for board in found]
    return Section("Stress", tuple(parts))


def _origin(board: Board) -> str:
    """The clean track of the same protocol, which stands after the name where a newer one was run too."""
    track, _, kind = board.track.partition("+")
    return track + "".join(re.findall(r" \(protocol \d+\)", kind))


def _overview(found: Sequence[Board], every: dict[tuple[str, int], Board], named: Results) -> list[Part]:
    """The normalised score of every method under every stress, for each track at its largest number of experts.

    A line holds means over the sets and seeds that the method has on the clean track and under each of its stresses.
    """
    out: list[Part] = []
    for track in dict.fromkeys(_origin(board) for board in found):
        count = max(board.count for board in found if _origin(board) == track)
        columns = [every[(track, count)], *(b for b in found if (_origin(b), b.count) == (track, count))]
        names = ["clean", *(board.track.partition("+")[2] for board in columns[1:])]
        experts = _cards(columns[0], "experts", named)
        lines = {}
        for row in columns[0].rows:
            cards = [_cards(board, row.label, named) for board in columns]
            shared = set.intersection(*(set(one) for one in cards if one), set(experts))
            if shared and any(cards[1:]):
                lines[row.label] = [100 * _normalised(one, experts, shared) for one in cards]
        said = f"Score ÷ own expert's score with {count} experts, mean over tasks, per cent."
        if lines:
            title = f"Under stress: {track}"
            out.append(
                heat(title, said, list(lines), names, [*lines.values()], largest=100.0, column="method")
            )
    return out


def _table(origin: Board, stressed: Board, named: Results) -> Table:
    """One stress: each method before, after, and the test of the difference, over the places that have both."""
    experts = _cards(origin, "experts", named)
    tests, scores = {}, {}
    for row in stressed.rows:
        under, without = (_cards(board, row.label, named) for board in (stressed, origin))
        if shared := set(under) & set(without) & set(experts):
            tests[row.label] = beside(under, without, experts)
            scores[row.label] = [_normalised(cards, experts, shared) for cards in (without, under)]
    adjusted = holm({label: test.p_value for label, test in tests.items()})
    lines = [
        [label, *map(percent, scores[label]), difference(test), probability(adjusted[label])]
        for label, test in tests.items()
    ]
    title = f"{stressed.track}, {stressed.count} tasks"
    return Table((title, "clean", "stressed", "difference (95 %), points", "p (Holm)"), lines)


def _normalised(cards: Cards, experts: Cards, places: AbstractSet[tuple[Any, ...]]) -> float:
    """The mean over these places of the normalised score; NaN where one has no card or no experts."""
    if any(place not in cards or place not in experts for place in places):
        return math.nan
    own = {place: {n: experts[place].tasks[n].mean for n in cards[place].held_in()} for place in places}
    return sum(cards[place].normalised(own[place]) for place in places) / len(places)


def _cards(board: Board, label: str, named: Results) -> Cards:
    """The cards of a method on a board by seed and set, so that both tracks have the same places."""
    here = [(cell, card) for cell, card in named if cell.track == board.track]
    return {place[2:]: card for place, card in by_place(here, label, board.count).items()}
