"""How much a method's score depends on which experts and which training it met: its cells one by one."""

from __future__ import annotations

from collections.abc import Mapping

from cuvee.charts import Table, lines
from cuvee.core.lazy import numpy
from cuvee.evaluate.leaderboard import percent
from cuvee.evaluate.pages import Part, Section
from cuvee.evaluate.paired import Results, by_place
from cuvee.evaluate.table import Board

_LINES = 16  # cells that a chart shows


def section(board: Board, results: Results) -> Section | None:
    """Normalised scores over sets and seeds; None where there is one cell. `results` are those of the board."""
    experts = by_place(results, "experts", board.count)
    found: dict[str, dict[tuple[object, ...], float]] = {}
    for row in board.rows:
        cards = by_place(results, row.label, board.count)
        found[row.label] = {
            place[2:]: card.normalised({n: experts[place].tasks[n].mean for n in card.held_in()})
            for place, card in cards.items()
            if place in experts
        }
    places = sorted({place for values in found.values() for place in values}, key=str)
    if len(places) < 2:
        return None
    said = (
        "Score ÷ own expert's score of every set and seed. Their spread is not in the intervals of the leaderboard, "
        "which draw test items alone. With few of them the deviation is a rough guess."
    )
    header = ("method", "sets and seeds", "mean", "standard deviation", "lowest", "highest")
    parts: list[Part] = [
        said,
        Table(header, [_row(label, values) for label, values in found.items() if values]),
    ]
    if len(places) <= _LINES:
        parts.append(_chart(found, places))
    return Section(f"Sets and seeds: {board.track}, {board.count} experts", tuple(parts))


def _row(label: str, values: Mapping[tuple[object, ...], float]) -> list[object]:
    known = numpy.array(list(values.values()))
    spread = percent(float(known.std(ddof=1))) if len(known) > 1 else "–"
    ends = [percent(float(known.min())), percent(float(known.max()))]
    return [label, len(known), percent(float(known.mean())), spread, *ends]


def _chart(found: Mapping[str, Mapping[tuple[object, ...], float]], places: list[tuple[object, ...]]) -> Part:
    names = [_named(place, places) for place in places]
    nan = float("nan")
    series = {label: [100 * values.get(p, nan) for p in places] for label, values in found.items() if values}
    said = "Score ÷ own expert's score, mean over the set's tasks, per cent."
    return lines("Normalised score by set and seed", said, names, series, column="seed, set")


def _named(place: tuple[object, ...], places: list[tuple[object, ...]]) -> str:
    """The seed, and the set by its number where there are several."""
    seed, tasks = place
    sets = sorted({other[1] for other in places}, key=str)
    return f"{seed}" if len(sets) == 1 else f"{seed}, {sets.index(tasks) + 1}"
