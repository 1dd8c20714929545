"""One new method against a stored table: the same sets, seeds, budget and items, then paired tests with every other.

Knows how a table was made from its cells alone; opens the tracks again to score the newcomer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cuvee.core.names import printable
from cuvee.errors import EvaluationError, UsageError
from cuvee.evaluate.apart import apart, possible
from cuvee.evaluate.bench import Listener, OpenTrack, Ring, score_all, takes
from cuvee.evaluate.cells import PROTOCOL, Cell, Store, is_reference, label_of, space_of
from cuvee.evaluate.choice import Choice
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.paired import Results, pairs, place_of, shared_tracks, told_apart
from cuvee.evaluate.referee import Method
from cuvee.evaluate.search import Kind
from cuvee.evaluate.selection import Selection
from cuvee.evaluate.statistics import Comparison, holm
from cuvee.evaluate.track import Track
from cuvee.methods import registry

if TYPE_CHECKING:
    from cuvee.evaluate.track import Weights


@dataclass(frozen=True, slots=True)
class Duel:
    """The newcomer beside one contestant on one track: newcomer − other, p adjusted over all duels of the newcomer."""

    newcomer: str
    other: str
    track: str
    comparison: Comparison
    adjusted: float

    @property
    def apart(self) -> bool:
        """Whether they can be told apart at the 95 % level."""
        return self.adjusted < 0.05


@dataclass(frozen=True, slots=True)
class Newcomer:
    """Who is added: a method of the registry, or any function of a `Selection` under a name of its own."""

    label: str
    method: Method

    @property
    def name(self) -> str:
        """What its cells say of it: a method's name, or the module and name of a function."""
        if isinstance(self.method, Contender):
            return self.method.method
        return f"{self.method.module}:{self.method.name}" if isinstance(self.method, Function) else self.label

    @classmethod
    def registered(cls, contender: Contender) -> Newcomer:
        """A method of the registry."""
        return cls(label_of(contender), contender)


@dataclass(frozen=True, slots=True)
class Function:
    """A function by its module and name, imported where it is called: in the method's own process, if it has one.

    So what a module does when it is imported is done where no test item is.
    """

    module: str
    name: str

    def __call__(self, room: Selection) -> tuple[Weights, Mapping[str, Any]]:
        chosen: tuple[Weights, Mapping[str, Any]] = self.found()(room)
        return chosen

    def found(self) -> Callable[..., Any]:
        """The function; UsageError CV-U310 where there is none."""
        name = printable(f"{self.module}:{self.name}")
        try:
            found = getattr(importlib.import_module(self.module), self.name)
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(
                "CV-U310",
                f"the method `{name}` cannot be imported: {printable(str(error))}",
                hint="write `module:function`; the module must be installed or on PYTHONPATH",
            ) from error
        if not callable(found):
            raise UsageError("CV-U310", f"`{name}` is no function")
        made: Callable[..., Any] = found
        return made


def newcomer_of(name: str, search: Kind = "sobol") -> Newcomer:
    """A method of the registry by name, or the function `module:function`; UsageError CV-U310 where there is none.

    CV-U395: a function that is called like a registered method or a reference would pass for it.
    """
    if ":" not in name:
        return Newcomer.registered(Contender(registry.get(name).name, search=search))
    module, _, attribute = name.partition(":")
    if attribute in registry.names() or is_reference(attribute):
        raise UsageError(
            "CV-U395",
            f"the function `{printable(name)}` would stand in tables as `{attribute}`, which has a meaning there",
            hint="give the function a name of its own",
        )
    function = Function(module, attribute)
    if possible():
        apart(lambda: Choice({}, {"found": function.found() is not None}), ())
    else:
        function.found()
    return Newcomer(attribute, function)


def add(newcomer: Newcomer, open_track: OpenTrack, store: Store, tell: Listener = lambda done: None) -> int:
    """Score the newcomer wherever the table's methods were scored, with their budgets; how many cells failed.

    What the newcomer's cells hold already is kept: a function whose code has changed needs another name. Raises
    EvaluationError CV-B310 where a track or the protocol is no longer what the table was made on, CV-B024 for an empty
    folder.
    """
    results = store.results()
    _check_protocol(results)
    _refuse_namesake(results, newcomer)
    places = _places([r for r in results if r[0].protocol == PROTOCOL], newcomer)
    failed = 0
    for track_name, seed in sorted({(cell.track, cell.seed) for cell in places}):
        track = open_track(track_name, seed)
        here = [cell for cell in places if (cell.track, cell.seed) == (track_name, seed)]
        _check(track.digest, here)
        ring = Ring(track, store)
        method = _seeded(newcomer.method, seed)
        waiting = [(cell, method) for cell in here if _fits(method, track, cell)]
        failed += score_all(ring, waiting, tell)
    return failed


def duels(results: Results, newcomer: str) -> list[Duel]:
    """The newcomer against every other method it shares a track with, track by track, the strongest opponent first."""
    named = told_apart(results)
    ours = sorted({cell.label for cell, _ in named if _is(cell.label, newcomer)})
    out = []
    for label in ours:
        found = {
            (other, track): pairs(named, label, other, track=track)
            for other in _others(named, label, ours)
            for track in shared_tracks(named, label, other)
        }
        adjusted = holm({f"{other}\0{track}": test.p_value for (other, track), test in found.items()})
        out += [Duel(label, *key, test, adjusted["\0".join(key)]) for key, test in found.items()]
    return sorted(out, key=lambda d: (d.newcomer, d.track, d.comparison.difference.mean))


def _others(named: Results, label: str, ours: Sequence[str]) -> list[str]:
    places = {place_of(cell) for cell, _ in named if cell.label == label}
    shared = {cell.label for cell, _ in named if place_of(cell) in places}
    return sorted(label for label in shared - {*ours} if not is_reference(label))


def _is(label: str, newcomer: str) -> bool:
    return label == newcomer or label in (f"{newcomer} (untuned)",) or label.startswith(f"{newcomer} (budget")


def _refuse_namesake(results: Results, newcomer: Newcomer) -> None:
    """UsageError CV-U395 where another function of this name stands in the table."""
    made = {cell.method for cell, _ in results if cell.label == newcomer.label}
    others = made - {newcomer.name, newcomer.label}  # earlier versions kept the label alone
    if others:
        raise UsageError(
            "CV-U395",
            f"`{printable(newcomer.label)}` stands in the table already, made by `{printable(min(others))}`",
            hint="give the function a name of its own",
        )


def _places(results: Results, newcomer: Newcomer) -> list[Cell]:
    """A cell of the newcomer for each set, seed and budget that a method of the table has."""
    contender = newcomer.method if isinstance(newcomer.method, Contender) else None
    found: dict[str, Cell] = {}
    earlier = any(cell.label == cell.method == newcomer.label for cell, _ in results)
    for cell, _ in results:
        if is_reference(cell.label) or cell.label == newcomer.label:
            continue
        own = replace(
            cell,
            method=newcomer.label if earlier and not contender else newcomer.name,
            label=newcomer.label,
            settings=dict(contender.settings) if contender else {},
            search=contender.search if contender and cell.budget else "",
            space=space_of(contender, cell.budget) if contender else None,
        )
        found[own.address] = own
    return list(found.values())


def _fits(method: Method, track: Track, cell: Cell) -> bool:
    return not isinstance(method, Contender) or takes(method, track, cell.tasks)


def _seeded(method: Method, seed: int) -> Method:
    return replace(method, seed=seed) if isinstance(method, Contender) else method


def _check_protocol(results: Results) -> None:
    newest = max(cell.protocol for cell, _ in results)
    if newest < PROTOCOL:
        raise EvaluationError(
            "CV-B310",
            f"the table was made by protocol {newest}, this version judges by protocol {PROTOCOL}",
            hint="run the whole benchmark again: its finished cells are of other tuning and other intervals",
        )


def _check(digest: str, cells: Sequence[Cell]) -> None:
    strangers = [cell for cell in cells if cell.digest != digest]
    if strangers:
        first = strangers[0]
        raise EvaluationError(
            "CV-B310",
            f"the track `{first.track}` with seed {first.seed} has the digest `{digest}` now, the table was made on "
            f"`{first.digest}`",
            hint="run the whole benchmark again in another folder: data, base or training have changed",
        )
