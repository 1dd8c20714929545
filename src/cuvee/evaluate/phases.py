"""Which data may be looked at now: the lock that keeps test items out of selection.

The process is in one of three phases. `closed` (the default): test parts are sealed. `selecting`: a method is being
tuned; test parts are sealed and nobody can open them. `scoring`: the referee, and it alone, reads test parts. The
phase belongs to the process, and test parts to the thread that scores, so that a thread started by a method finds the
doors shut, even one that outlives it. What was refused while a method chose ends its choice, whether or not the method
let the error pass. It catches mistakes and careless code; it is no wall against code that reads the
raw files of a data set itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from cuvee.errors import Diagnostic, LeakError

Phase = Literal["closed", "selecting", "scoring"]

_lock = threading.RLock()
_phase: Phase = "closed"
_scorer: int | None = None  # the thread that opened the scoring phase
_refused: list[tuple[Diagnostic, ...]] = []  # to any thread; no errors, whose frames would be kept alive


def current() -> Phase:
    """The phase of this process."""
    return _phase


@contextmanager
def selecting() -> Iterator[None]:
    """Run a method's choices; test parts stay sealed until it ends, whatever the method does.

    At its end LeakError for the first that was refused meanwhile, even where the method went on behind it, or failed of
    something else.
    """
    with _during("selecting"):
        before = len(_refused)
        try:
            yield
        except Exception as error:
            _demand_nothing_refused(before, error)
            raise
        else:
            _demand_nothing_refused(before)
        finally:
            del _refused[before:]


def _demand_nothing_refused(before: int, error: Exception | None = None) -> None:
    if _refused[before:]:
        raise LeakError.collected(list(_refused[before])) from error


def refused(error: LeakError, noted: list[tuple[Diagnostic, ...]] = _refused) -> LeakError:
    """The error to raise, noted so that a method that chooses cannot swallow it (nor by saying that it does not)."""
    noted.append(error.diagnostics)
    return error


@contextmanager
def scoring() -> Iterator[None]:
    """Read test parts; LeakError while a selection runs."""
    with _during("scoring"):
        yield


def demand_scoring(task: str) -> None:
    """LeakError unless the referee is scoring."""
    if _phase != "scoring" or _scorer != threading.get_ident():
        doing = {"selecting": "during selection", "scoring": "by another thread than the referee's"}.get(
            _phase, "outside of scoring"
        )
        raise refused(
            LeakError(
                "CV-B001",
                f"test items of the task `{task}` were asked for {doing}; a method may look at `train` and `selection`",
                hint="choose on `task.selection`; only `Referee.score` reads test items",
            )
        )


@contextmanager
def _during(wanted: Phase) -> Iterator[None]:
    global _phase, _scorer
    with _lock:
        before, scorer = _phase, _scorer
        if wanted == "scoring" and before == "selecting":
            raise refused(LeakError("CV-B002", "scoring on test items was asked for while a selection runs"))
        _phase, _scorer = wanted, threading.get_ident() if wanted == "scoring" else None
    try:
        yield
    finally:
        with _lock:
            _phase, _scorer = before, scorer
