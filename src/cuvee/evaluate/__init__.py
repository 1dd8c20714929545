"""The referee of merging: tasks with sealed test data, everything spent counted, scores with their uncertainty.

Names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {
    "ACCURACY": "task",
    "BITS_PER_BYTE": "task",
    "EXACT_MATCH": "task",
    "Answers": "track",
    "Choice": "choice",
    "Contender": "contender",
    "Examinee": "track",
    "Grid": "cells",
    "Item": "task",
    "Ledger": "ledger",
    "Metric": "task",
    "Provenance": "task",
    "Referee": "referee",
    "Scorecard": "scorecard",
    "Selection": "selection",
    "Store": "cells",
    "Task": "task",
    "Track": "track",
    "boards": "table",
    "pairs": "table",
    "run": "bench",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
