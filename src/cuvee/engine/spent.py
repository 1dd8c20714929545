"""Where the time of a run goes: each worker's stopwatch, and the account by tensor that they fill.

A stopwatch charges all time since its last lap to one phase, so that phases add up to the time that a worker was busy.
Knows no files; costs one look at the clock for each lap.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Phase = Literal["reading", "summarising", "combining", "writing"]
PHASES: tuple[Phase, ...] = ("reading", "summarising", "combining", "writing")


@dataclass(slots=True)
class Spent:
    """Seconds of workers: bytes fetched, figures of stages found, values computed, bytes hashed and written."""

    reading: float = 0.0
    summarising: float = 0.0
    combining: float = 0.0
    writing: float = 0.0

    @property
    def busy(self) -> float:
        """All phases together."""
        return self.reading + self.summarising + self.combining + self.writing

    def add(self, other: Spent) -> None:
        """Take the other's seconds on top."""
        for phase in PHASES:
            setattr(self, phase, getattr(self, phase) + getattr(other, phase))


@dataclass(frozen=True, slots=True)
class Row:
    """The time that one tensor took, and the chain of stages that made it (`copied` for none)."""

    tensor: str
    method: str
    nbytes: int
    spent: Spent


class Stopwatch:
    """The clock of one worker. `lap` charges the time since the last call of `start` or `lap` to a phase."""

    __slots__ = ("_last", "spent")

    def __init__(self) -> None:
        self.spent = Spent()
        self._last = time.perf_counter()

    def start(self) -> None:
        """Begin to count anew."""
        self.spent = Spent()
        self._last = time.perf_counter()

    def lap(self, phase: Phase) -> None:
        """The time since the last lap went into this phase."""
        now = time.perf_counter()
        setattr(self.spent, phase, getattr(self.spent, phase) + now - self._last)
        self._last = now

    def charge(self, phase: Phase, seconds: float) -> None:
        """So much of the time since the last lap went into this phase; the rest waits for the next lap."""
        setattr(self.spent, phase, getattr(self.spent, phase) + seconds)
        self._last += seconds


class Account:
    """What every tensor took so far; filled by all workers, each with its own stopwatch."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self._guard = threading.Lock()
        self._watches = threading.local()

    @property
    def watch(self) -> Stopwatch:
        """The stopwatch of the current thread."""
        if not hasattr(self._watches, "own"):
            self._watches.own = Stopwatch()
        own: Stopwatch = self._watches.own
        return own

    @contextmanager
    def charging(self, tensor: str, method: str, nbytes: int) -> Iterator[Stopwatch]:
        """What the current thread's stopwatch counts within the block is charged to the tensor."""
        watch = self.watch
        watch.start()
        try:
            yield watch
        finally:
            with self._guard:
                self.rows.setdefault(tensor, Row(tensor, method, nbytes, Spent())).spent.add(watch.spent)


def total(rows: Iterable[Row]) -> Spent:
    """All rows together."""
    found = Spent()
    for row in rows:
        found.add(row.spent)
    return found


def by_method(rows: Iterable[Row]) -> dict[str, Spent]:
    """Rows of the same chain of stages together, the dearest first."""
    found: dict[str, Spent] = {}
    for row in rows:
        found.setdefault(row.method, Spent()).add(row.spent)
    return dict(sorted(found.items(), key=lambda item: -item[1].busy))
