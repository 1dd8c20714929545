"""Runs a grid: every cell that is not finished, experts loaded once for each seed, candidates never written to disk."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cuvee.core.names import printable
from cuvee.errors import CuveeError, EvaluationError
from cuvee.evaluate import failures
from cuvee.evaluate.cells import (
    REFERENCES,
    Cell,
    Grid,
    Store,
    expert_of,
    label_of,
    of_expert,
    of_reference,
    reference_of,
    space_of,
)
from cuvee.evaluate.checks import summary
from cuvee.evaluate.choice import Choice
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.manifest import described
from cuvee.evaluate.paired import common_mean
from cuvee.evaluate.referee import Method, Referee, demand_experts
from cuvee.evaluate.scorecard import Scorecard, TaskScore
from cuvee.evaluate.track import Examinee, Track, count_handed, ordered
from cuvee.methods import registry

if TYPE_CHECKING:
    from cuvee.evaluate.track import Weights

OpenTrack = Callable[[str, int], Track]


@dataclass(frozen=True, slots=True)
class Done:
    """Progress: a cell was scored, found finished, or could not be done; `left` seconds of this seed are expected.

    `mean` is NaN where tasks have several metrics.
    """

    cell: Cell
    number: int
    total: int
    seconds: float
    state: str  # scored, kept, failed, left out
    mean: float = float("nan")
    unit: str = ""
    problem: str = ""
    left: float = float("nan")


Listener = Callable[[Done], None]


@dataclass(slots=True)
class Ring:
    """What the cells of one seed share: the track, its live model, and scores of references, each taken once.

    The live model is built for the first cell that is not finished.
    """

    track: Track
    store: Store
    held: list[Examinee] = field(default_factory=list)
    known: dict[tuple[str, str], TaskScore] = field(default_factory=dict)
    selected: dict[str, TaskScore] = field(default_factory=dict)  # experts on their selection parts
    settled: dict[str, Scorecard] = field(default_factory=dict)  # of methods that have nothing to tune

    def referee(self, cell: Cell) -> Referee:
        """The referee of a cell; a method's own process finds no finished cells, which hold test scores."""
        self.held = self.held or [self.track.examinee()]
        return Referee(
            self.track,
            cell.tasks,
            budget=cell.budget,
            examinee=self.held[0],
            unseen=cell.unseen,
            hidden=self.store.tellings(),
            selected=self.selected,
        )


def run(grid: Grid, open_track: OpenTrack, store: Store, tell: Listener = lambda done: None) -> int:
    """Score every cell of the grid that the store lacks; how many failed.

    `open_track(name, seed)` gives the track. A method that cannot take this number of experts is left out of that set,
    which is told; one that fails is reported and the others go on.
    EvaluationError CV-B006 for a task of the grid that the track has no expert for, before anything is made.
    """
    failed = 0
    for seed in grid.seeds:
        track = open_track(grid.track, seed)
        demand_experts(track, grid.tasks)
        store.describe(described(track), seed)
        _tell_of_unfit(grid, track, seed, tell)
        failed += score_all(Ring(track, store), list(_cells(grid, track, seed)), tell)
    return failed


def _tell_of_unfit(grid: Grid, track: Track, seed: int, tell: Listener) -> None:
    """Tell of methods that cannot take a set's number of experts."""
    sets = list(grid.sets(_merged_names(grid, track), seed, last=ordered(track)))
    for contender in grid.methods:
        unfit = [tasks for tasks in sets if not takes(contender, track, tasks)]
        least, most = registry.get(contender.method).inputs
        asked = f"{least} or more" if most is None else f"{least} to {most}" if least < most else f"{least}"
        for tasks in {len(tasks): tasks for tasks in unfit}.values():  # once for each number of experts
            cell = Cell(track.name, track.digest, seed, tasks, contender.method, label_of(contender))
            tell(Done(cell, 0, 0, 0.0, "left out", problem=f"it merges {asked} experts"))


def _merged_names(grid: Grid, track: Track) -> list[str]:
    return [n for n, task in track.tasks.items() if not task.unseen and (not grid.tasks or n in grid.tasks)]


def score_all(ring: Ring, waiting: Sequence[tuple[Cell, Method | None]], tell: Listener) -> int:
    """Score the cells of one seed that the store lacks and tell of each; how many failed."""
    failed, rates, others = 0, list[float](), list[float]()
    left = sum(_work(cell) for cell, _ in waiting if not ring.store.has(cell))
    for number, (cell, method) in enumerate(waiting, 1):
        done = _one(ring, cell, method)
        if done.state != "kept":
            left -= _work(cell)
            (rates if method else others).append(done.seconds / _work(cell))
        # references may train experts, which happens once: they say little of the methods
        rate = statistics.median(rates) if rates else min(others, default=float("nan"))
        failed += done.state == "failed"
        tell(replace(done, number=number, total=len(waiting), left=rate * left))
    return failed


def _work(cell: Cell) -> float:
    """How long a cell takes beside others: passes over its tasks, one for the test and one for each evaluation."""
    return len(cell.tasks) * (1.0 + cell.budget)


def _cells(grid: Grid, track: Track, seed: int) -> Iterator[tuple[Cell, Method | None]]:
    """The cells of one seed: references first, then the methods, set by set."""
    names = _merged_names(grid, track)
    asked = grid.references
    references = ("base", "experts", *_offered(track)) if asked is None else tuple(map(of_reference, asked))
    for tasks in grid.sets(names, seed, last=ordered(track)):
        place = Cell(track.name, track.digest, seed, tasks, "", "", unseen=grid.unseen)
        single = map(of_expert, tasks) if grid.transfer else ()
        for reference in (*references, *single):
            yield replace(place, method=reference, label=reference), None
        for contender in grid.methods:
            if not takes(contender, track, tasks):
                continue
            for budget in sorted({grid.budget, 0} if grid.untuned else {grid.budget}):
                cell = replace(
                    place,
                    method=contender.method,
                    label=label_of(contender),
                    settings=dict(contender.settings),
                    search=contender.search if budget else "",
                    budget=budget,
                    space=space_of(contender, budget),
                )
                yield cell, replace(contender, seed=seed)


def takes(contender: Contender, track: Track, tasks: Sequence[str]) -> bool:
    """Whether a method can merge as many experts as are handed out for these tasks."""
    least, most = registry.get(contender.method).inputs
    given = count_handed(track, tasks)
    return least <= given and (most is None or given <= most)


def _offered(track: Track) -> Sequence[str]:
    """Labels of the track's own references; EvaluationError for the name of a row that every table has, or no word."""
    found = tuple(track.references())
    strange = [name for name in found if name in REFERENCES[:2] or not re.fullmatch(r"[\w.-]+", name)]
    if strange:
        raise EvaluationError(
            "CV-B373",
            f"the track `{track.name}` calls a reference `{printable(strange[0])}`",
            hint="give it another name, of letters, digits, `_`, `-` and `.`",
        )
    return tuple(map(of_reference, found))


def _one(ring: Ring, cell: Cell, method: Method | None) -> Done:
    if ring.store.has(cell):
        return Done(cell, 0, 0, 0.0, "kept")
    began = time.monotonic()
    referee = ring.referee(cell)
    try:
        card = _judged(ring, cell, method, referee) if method else _reference(cell.method, referee, ring)
    except Exception as error:  # noqa: BLE001  # a method may be anybody's code; the others go on
        failures.keep(ring.store, cell, _said(error))
        return Done(cell, 0, 0, time.monotonic() - began, "failed", problem=_said(error))
    ring.store.put(cell, card)
    mean, unit = common_mean(card, card.held_in()), card.tasks[cell.tasks[0]].metric.unit
    return Done(cell, 0, 0, time.monotonic() - began, "scored", mean, unit)


def _judged(ring: Ring, cell: Cell, method: Method, referee: Referee) -> Scorecard:
    """A method's scores; with nothing to tune they are the same whatever the budget, and taken once."""
    if not isinstance(method, Contender) or method.tuned():
        return referee.judge(method, cell.label)
    same = replace(cell, budget=0, search="", space=None).address
    if same not in ring.settled:
        ring.settled[same] = referee.judge(method, cell.label)
    return ring.settled[same]


def _said(error: Exception) -> str:
    """The first line of an error; of one that is not ours, its kind too."""
    first = (str(error).splitlines() or [""])[0]
    return first if isinstance(error, CuveeError) else f"{type(error).__name__}: {first}"


def _reference(name: str, referee: Referee, ring: Ring) -> Scorecard:
    """The base, the multi-task bound, one expert on all tasks, or the experts, each on its own.

    A score that is known is not taken anew.
    """
    foreign = [] if name == "experts" else referee.unseen
    asked = [*referee.names, *foreign, *referee.shifted]
    own = expert_of(name)
    scores = {}
    for task in asked:
        key = ("experts", task) if own in (task, ring.track.tasks[task].shift_of) else (name, task)
        if key not in ring.known:
            card = referee.score(Choice(_weights(name, task, ring.track)), name, [task])
            ring.known[key] = card.tasks[task]
        scores[task] = ring.known[key]
    return Scorecard(name, scores, settings=_selection(referee) if name == "experts" else {})


def _selection(referee: Referee) -> dict[str, Any]:
    """The experts' own scores on selection items, for `checks`."""
    return {"selection": {name: summary(score) for name, score in referee.experts_on_selection().items()}}


def _weights(name: str, task: str, track: Track) -> Weights:
    """The weights of a reference for a task."""
    if name == "base":
        return track.base
    if name == "experts":
        return track.expert(track.tasks[task].shift_of or task)
    if (own := expert_of(name)) is not None:
        return track.expert(own)
    found = track.references()
    name = reference_of(name)
    if name not in found:
        raise EvaluationError(
            "CV-B022",
            f"the track `{track.name}` has no reference `{name}`",
            hint=f"it has {', '.join(('base', 'experts', *found))}",
        )
    return found[name]
