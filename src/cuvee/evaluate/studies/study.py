"""What a study is, how it is run, and what its report begins with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cuvee.errors import EvaluationError
from cuvee.evaluate.bench import Listener, OpenTrack, run
from cuvee.evaluate.cells import Grid, Store
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.pages import Section
from cuvee.evaluate.paired import Results
from cuvee.evaluate.table import Board, boards
from cuvee.evaluate.track import Track
from cuvee.methods import registry


@dataclass(frozen=True, slots=True)
class Study:
    """A study of the literature as far as a track allows.

    `methods` that this version lacks are left out and named in the report. `counts`: numbers of experts (0: all; those
    that the track has too few for are left out). `answers` makes the report's sections; `limits` says what the paper
    asked and a track cannot. `variants` are endings of the track's name: the grid is run on
    each. `transfer`: whether every expert is scored on every task.
    """

    name: str
    title: str
    source: str
    questions: tuple[str, ...]
    methods: tuple[Contender, ...]
    counts: tuple[int, ...]
    answers: Callable[[Results, Sequence[Board]], list[Section]]
    limits: str
    track: str = "text"
    tasks: tuple[str, ...] = ()
    budget: int = 8
    subsets: int = 3
    untuned: bool = True
    unseen: bool = True
    references: tuple[str, ...] | None = ("base", "experts")
    variants: tuple[str, ...] = ("",)
    transfer: bool = False

    def available(self) -> tuple[Contender, ...]:
        """The methods that this version has."""
        return tuple(one for one in self.methods if one.method in registry.names())

    def missing(self) -> list[str]:
        """Names of the methods that it has not."""
        return [one.method for one in self.methods if one.method not in registry.names()]


def perform(
    study: Study,
    open_track: OpenTrack,
    store: Store,
    *,
    seeds: Sequence[int] = (0,),
    tell: Listener = lambda d: None,
) -> int:
    """Run the study's grid into a store, resuming what is there; how many cells failed.

    Raises EvaluationError CV-B314 where the track has not the tasks that the study is about.
    """
    failed = 0
    for seed in seeds:
        for ending in study.variants:
            track = open_track(f"{study.track}{ending}", seed)
            opened = {(f"{study.track}{ending}", seed): track}
            grid = _grid(study, track, f"{study.track}{ending}", seed)
            failed += run(grid, lambda name, seed, opened=opened: opened[name, seed], store, tell)  # type: ignore[misc]
    return failed


def _grid(study: Study, track: Track, name: str, seed: int) -> Grid:
    """The study's grid for one seed on one track."""
    seen = [n for n, task in track.tasks.items() if not task.unseen]
    chosen = [n for n in seen if n in study.tasks] if study.tasks else seen
    if len(chosen) < 2:
        raise EvaluationError(
            "CV-B314",
            f"the study `{study.name}` needs at least two of the tasks {', '.join(study.tasks)}; the track "
            f"`{track.name}` has {', '.join(seen)}",
            hint="leave `--track` out, or name a track that has them",
        )
    counts = sorted({count or len(chosen) for count in study.counts if count <= len(chosen)})
    return Grid(
        name,
        study.available(),
        tuple(counts),
        (seed,),
        study.budget,
        study.subsets,
        study.references,
        study.unseen,
        study.untuned and study.budget > 0,
        tuple(chosen),
        study.transfer,
    )


def report(study: Study, results: Results) -> list[Section]:
    """The questions, what cannot be asked here, and the answers."""
    parts = [
        f"After {study.source}.",
        *(f"Question {i}: {question}" for i, question in enumerate(study.questions, 1)),
        f"Not asked here: {study.limits}",
    ]
    if study.missing():
        parts.append(f"Methods of the paper that this version has not: {', '.join(study.missing())}.")
    scored = {cell.method for cell, _ in results}
    absent = [one.method for one in study.available() if one.method not in scored]
    if absent:
        parts.append(f"Methods of the study that were not scored here: {', '.join(absent)}.")
    return [Section("What is asked", tuple(parts)), *study.answers(results, boards(results))]


def on(
    study: Study,
    track: str | None = None,
    budget: int | None = None,
    subsets: int | None = None,
    *,
    counts: Sequence[int] = (),
    untuned: bool | None = None,
) -> Study:
    """The study on another track, or with another budget, numbers of sets or of experts, without untuned defaults."""
    changes = {
        "track": track,
        "budget": budget,
        "subsets": subsets,
        "counts": tuple(counts) or None,
        "untuned": untuned,
    }
    return replace(study, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]
