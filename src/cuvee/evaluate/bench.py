"""Runs a grid: every cell that is not finished, experts loaded once for each seed, candidates never written to disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cuvee.errors import CuveeError, EvaluationError
from cuvee.evaluate.cells import Cell, Grid, Store, label_of
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.referee import Choice, Referee
from cuvee.evaluate.scorecard import Scorecard
from cuvee.evaluate.track import Examinee, Track
from cuvee.methods import registry

if TYPE_CHECKING:
    from cuvee.evaluate.track import Weights


@dataclass(frozen=True, slots=True)
class Done:
    """Progress: a cell was scored, found finished, or could not be done."""

    cell: Cell
    number: int
    total: int
    seconds: float
    state: str  # scored, kept, failed
    mean: float = float("nan")
    problem: str = ""


Listener = Callable[[Done], None]


def run(
    grid: Grid, open_track: Callable[[str, int], Track], store: Store, tell: Listener = lambda done: None
) -> int:
    """Score every cell of the grid that the store lacks; how many failed.

    `open_track(name, seed)` gives the track. A method that cannot take this number of experts is left out of that set;
    one that fails is reported and the others go on.
    """
    failed = 0
    for seed in grid.seeds:
        track = open_track(grid.track, seed)
        examinee = track.examinee()
        waiting = list(_cells(grid, track, seed))
        for number, (cell, contender) in enumerate(waiting, 1):
            done = _one(cell, contender, track, examinee, grid.budget, store)
            failed += done.state == "failed"
            tell(replace(done, number=number, total=len(waiting)))
    return failed


def _cells(grid: Grid, track: Track, seed: int) -> Iterator[tuple[Cell, Contender | None]]:
    """The cells of one seed: references first, then the methods, set by set."""
    names = [n for n, task in track.tasks.items() if not task.unseen]
    for tasks in grid.sets(names, seed):
        common = {"track": track.name, "digest": track.digest, "seed": seed, "tasks": tasks}
        for reference in ("base", "experts", *track.references()):
            yield Cell(**common, method=reference, label=reference), None  # type: ignore[arg-type]
        for contender in grid.methods:
            least, most = registry.get(contender.method).inputs
            if len(tasks) < least or (most is not None and len(tasks) > most):
                continue
            cell = Cell(
                **common,  # type: ignore[arg-type]
                method=contender.method,
                label=label_of(contender),
                settings=dict(contender.settings),
                search=contender.search if grid.budget else "",
                budget=grid.budget,
            )
            yield cell, replace(contender, seed=seed)


def _one(
    cell: Cell, contender: Contender | None, track: Track, examinee: Examinee, budget: int, store: Store
) -> Done:
    if store.has(cell):
        return Done(cell, 0, 0, 0.0, "kept")
    began = time.monotonic()
    referee = Referee(track, cell.tasks, budget=budget, examinee=examinee)
    try:
        card = referee.judge(contender, cell.label) if contender else _reference(cell.method, referee)
    except (CuveeError, RuntimeError, ValueError) as error:
        return Done(cell, 0, 0, time.monotonic() - began, "failed", problem=str(error).splitlines()[0])
    store.put(cell, card)
    return Done(cell, 0, 0, time.monotonic() - began, "scored", card.mean())


def _reference(name: str, referee: Referee) -> Scorecard:
    """The base, the multi-task bound, or the experts, each on its own task."""
    track = referee.track
    if name == "base":
        return referee.score(Choice(track.base), name)
    if name != "experts":
        return referee.score(Choice(_named(track, name)), name)
    own = {
        task: referee.score(Choice(track.expert(task)), name, [task]).tasks[task] for task in referee.names
    }
    return Scorecard(name, own)


def _named(track: Track, name: str) -> Weights:
    found = track.references()
    if name not in found:
        raise EvaluationError("CV-B022", f"the track `{track.name}` has no reference `{name}`")
    return found[name]
