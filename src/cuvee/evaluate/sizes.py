"""Normalised scores against the size of the base, where a folder holds tracks of several sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cuvee.charts import lines
from cuvee.evaluate.cells import clean
from cuvee.evaluate.pages import Section
from cuvee.evaluate.table import Board


def section(boards: Sequence[Board], tracks: Sequence[Mapping[str, Any]]) -> Section | None:
    """The largest board of each track, by its base's parameters; None for fewer than two sizes.

    `tracks` are their manifests.
    """
    known = {track["track"]: track.get("parameters", 0) for track in tracks}
    largest = {board.track: board for board in reversed(boards) if clean(board.track)}
    ordered = sorted((b for b in largest.values() if known.get(b.track)), key=lambda b: known[b.track])
    if len({known[board.track] for board in ordered}) < 2:
        return None
    labels = list(dict.fromkeys(row.label for board in ordered for row in board.rows))
    scores = [{row.label: 100 * row.normalised for row in board.rows} for board in ordered]
    series = {label: [found.get(label, float("nan")) for found in scores] for label in labels}
    shared = {label: values for label, values in series.items() if sum(v == v for v in values) > 1}
    if not shared:
        return None
    said = (
        "Score ÷ own expert's score with the most experts of each track, per cent. Tasks and training differ between "
        "tracks, too, so this shows no effect of size alone."
    )
    names = [f"{_size(known[board.track])} ({board.track}, {board.count} experts)" for board in ordered]
    chart = lines("Normalised score by size of the base", said, names, shared, column="base")
    return Section("Size of the base", (chart,))


def _size(parameters: int) -> str:
    for unit, one in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if parameters >= one:
            return f"{parameters / one:.3g} {unit}"
    return str(parameters)
