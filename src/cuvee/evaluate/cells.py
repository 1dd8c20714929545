"""One cell of a benchmark: a method on a set of tasks of a track, under a seed and a budget; where results are kept.

A cell's address covers everything its scores depend on, so finished cells are never run again and a table only ever
joins what belongs together.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from cuvee.core import disk
from cuvee.core.digests import canonical_json
from cuvee.core.lazy import numpy
from cuvee.errors import EvaluationError, UsageError
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.kept import document, reading
from cuvee.evaluate.manifest import surroundings
from cuvee.evaluate.scorecard import Scorecard

MOST_SEED = 2**63 - 1
PROTOCOL = 2  # of how methods choose and are compared: cells of several are never joined
REFERENCES = ("base", "experts", "multitask", "last")  # scored beside the methods, not tuned
_EXPERT, _OWN = "expert ", "reference "
FAILED = "failed"  # the folder of what was said of failed cells


def is_reference(label: str) -> bool:
    """Whether a row is of a model that was there before any merge."""
    marked = label.startswith((_EXPERT, _OWN)) and not label.startswith((f"{_EXPERT}(", f"{_OWN}("))
    return marked or label in REFERENCES  # a method called `expert` stands as `expert (budget 4)`


def of_reference(name: str) -> str:
    """The label of one of a track's `references`: a name of its own is marked, so that no table ranks it."""
    return name if is_reference(name) else f"{_OWN}{name}"


def reference_of(label: str) -> str:
    """The name of a reference among those of its track."""
    return label.removeprefix(_OWN)


def clean(track: str) -> bool:
    """Whether a track is not under stress, by its name."""
    return "+" not in track


def of_expert(task: str) -> str:
    """The label of one expert on every task."""
    return f"{_EXPERT}{task}"


def expert_of(label: str) -> str | None:
    """The task of the expert that a label is of; None for another label."""
    return label.removeprefix(_EXPERT) if label.startswith(_EXPERT) and is_reference(label) else None


@dataclass(frozen=True, slots=True)
class Grid:
    """What a benchmark runs: every method on every subset of tasks of a track, for every seed, at one budget.

    `counts`: how many experts are merged; of counts below all, `subsets` random ones are drawn (the same for every
    method), of the checkpoints of one run the last are taken. `seeds` are those of the track (training order) and of
    random methods. `references`: which models are scored beside the merges (None: base, experts and all that the track
    offers, which may have to be trained first).
    `unseen`: whether tasks without an expert are scored too. `untuned`: whether methods are scored with their defaults
    as well. `tasks`: of these tasks' experts alone (empty: all). `transfer`: whether every expert is scored on every
    task, and not on its own alone.
    """

    track: str
    methods: tuple[Contender, ...]
    counts: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0,)
    budget: int = 16
    subsets: int = 3
    references: tuple[str, ...] | None = None
    unseen: bool = True
    untuned: bool = False
    tasks: tuple[str, ...] = ()
    transfer: bool = False

    def __post_init__(self) -> None:
        """UsageError CV-U397 for a seed that no generator, or no table, takes."""
        wrong = next((seed for seed in self.seeds if not 0 <= seed <= MOST_SEED), None)
        if wrong is not None:
            raise UsageError(
                "CV-U397", f"`{wrong}` is no seed", hint=f"take a whole number from 0 to {MOST_SEED}"
            )

    def sets(self, names: Sequence[str], seed: int, *, last: bool = False) -> Iterator[tuple[str, ...]]:
        """The sets of tasks for one seed, largest first; each in the track's order.

        `last`: of counts below all not random sets but the last names, as latest weight averaging takes checkpoints
        (LAWA, Kaddour, 2022).
        """
        for count in sorted(self.counts or (len(names),), reverse=True):
            if not 1 <= count <= len(names):
                raise EvaluationError(
                    "CV-B020", f"the track `{self.track}` has {len(names)} experts, {count} were asked for"
                )
            if last or count == len(names):
                yield tuple(names[-count:])
                continue
            drawn = random.Random(f"{seed}/{count}")
            seen: set[tuple[str, ...]] = set()
            while len(seen) < min(self.subsets, math.comb(len(names), count)):
                picked = set(drawn.sample(list(names), count))
                seen.add(tuple(n for n in names if n in picked))
            yield from sorted(seen)


@dataclass(frozen=True, slots=True)
class Cell:
    """One scored method: who, on what, and how it was tuned (`space`: over given ranges, None: the signature's).

    `protocol`: 1 took items one by one and tuned on plain means over wider ranges; 2 knows the groups of items, tunes
    on shares of the experts' scores, and sums of experts over ranges that depend on their number.
    """

    track: str
    digest: str  # of the track
    seed: int
    tasks: tuple[str, ...]
    method: str
    label: str
    settings: dict[str, Any] = field(default_factory=dict)
    search: str = ""
    budget: int = 0
    unseen: bool = True
    space: dict[str, Any] | None = None
    protocol: int = PROTOCOL

    @property
    def address(self) -> str:
        """Content address of the cell."""
        content = asdict(self)
        if self.unseen:
            del content["unseen"]  # so that cells of versions without these fields keep their address
        if self.space is None:
            del content["space"]
        if self.protocol == 1:
            del content["protocol"]
        return blake3(canonical_json(content)).hexdigest(length=16)


def space_of(contender: Contender, budget: int) -> dict[str, Any] | None:
    """The ranges a contender was given, as plain data; None without a budget, which would not be spent on them."""
    if contender.space is None or not budget:
        return None
    return {name: None if values is None else list(values) for name, values in contender.space.items()}


def label_of(contender: Contender) -> str:
    """How a contender is called in tables: the method and the settings it fixes."""
    fixed = ", ".join(f"{k}={v}" for k, v in contender.settings.items())
    return f"{contender.method}({fixed})" if fixed else contender.method


class Store:
    """The folder of a benchmark: `cells/<address>.json`, one file for each finished cell, written all or nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, cell: Cell) -> bool:
        """Whether the cell is finished; EvaluationError CV-B021 where its file was damaged since."""
        path = self._path(cell)
        return path.exists() and bool(document(path))

    def put(self, cell: Cell, card: Scorecard) -> None:
        """Keep a result, with the versions and the machine that made it."""
        disk.make_folders(self._path(cell).parent)
        data = {"made_with": surroundings(), "cell": asdict(cell), "card": card.as_json()}
        disk.write_file(self._path(cell), json.dumps(data, sort_keys=True).encode())

    def cells(self) -> Path:
        """The folder of finished cells, made where it is not there."""
        disk.make_folders(self.folder / "cells")
        return self.folder / "cells"

    def tellings(self) -> list[Path]:
        """Every folder and file in which test scores stand: cells, other programs' scores, tables and reports.

        What was said of failed cells is among them: a message may quote what a failing score was of.
        """
        made = (
            *self.folder.glob("results.*"),
            *self.folder.glob("leaderboard.*"),
            *self.folder.glob("study-*"),
        )
        return [self.cells(), self.folder / "scores", self.folder / FAILED, *made]

    def describe(self, track: Mapping[str, Any], seed: int) -> None:
        """Keep what a track is made of, beside the cells: `tracks/<name>-<seed>-<digest>.json`."""
        given = str(track["digest"])[:8]
        digest = given if given.isalnum() else blake3(str(track["digest"]).encode()).hexdigest(length=4)
        place = self.folder / "tracks" / f"{track['track']}-{seed}-{digest}.json"
        disk.make_folders(place.parent)
        content = {**track, "seed": seed, "made_with": surroundings()}
        disk.write_file(place, json.dumps(content, indent=1, sort_keys=True).encode())

    def results(self) -> list[tuple[Cell, Scorecard]]:
        """Every finished cell, in the order of their addresses; EvaluationError for a damaged file or none at all."""
        out = []
        for path, data in self._files():
            with reading(path):
                known = {"protocol": 1, **data["cell"], "tasks": tuple(data["cell"]["tasks"])}
                out.append((Cell(**known), _whole(known, Scorecard.from_json(data["card"]))))
        return out

    def origins(self) -> dict[str, Mapping[str, Any]]:
        """What made each finished cell (versions, machine), by the cell's address."""
        return {
            path.stem: data.get("made_with", {"cuvee": data.get("cuvee")}) for path, data in self._files()
        }

    def tracks(self) -> list[Mapping[str, Any]]:
        """What the tracks of the folder are made of; EvaluationError CV-B021 for a damaged file."""
        found = {path: document(path) for path in sorted((self.folder / "tracks").glob("*.json"))}
        for path, content in found.items():
            with reading(path):
                if not isinstance(content.get("track"), str):
                    raise KeyError("track")
        return list(found.values())

    def _files(self) -> Iterator[tuple[Path, Mapping[str, Any]]]:
        files = sorted((self.folder / "cells").glob("*.json"))
        if not files:
            failed = any((self.folder / FAILED).glob("*.json"))
            raise EvaluationError(
                "CV-B024",
                f"there are no results in `{self.folder}`",
                hint="all cells failed; its folder `failed` says why"
                if failed
                else "`cuvee bench run TRACK -m METHOD -o FOLDER` makes some",
            )
        for path in files:
            yield path, document(path)

    def _path(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.address}.json"


def _whole(cell: Mapping[str, Any], card: Scorecard) -> Scorecard:
    """The card of a cell; ValueError where it has not what every table asks of it."""
    missing = sorted({*cell["tasks"]} - {*card.tasks})
    if missing and not is_reference(str(cell["label"])):
        raise ValueError(f"it has no scores of the task {missing[0]}")
    for name, score in card.tasks.items():
        lengths = {
            len(score.scores),
            len(score.weights),
            len(score.scores if score.units is None else score.units),
        }
        if len(lengths) > 1 or not len(score.scores) or not numpy.isfinite(score.scores).all():
            raise ValueError(f"the scores of {name} are not one finite number for each item")
    if not card.tasks or not isinstance(card.settings, dict) or not isinstance(cell["seed"], int):
        raise ValueError("it has no tasks, no settings or no seed")
    return card
