"""The command line: thin, every command one file in `commands/`, imported only when it is called."""

from __future__ import annotations

import gc
import sys

from cuvee.cli.app import app
from cuvee.cli.failure import run_guarded

_FIRST = 100_000  # containers made before the first look for cycles; a start makes hardly more, and all of them stay


def main() -> None:
    """Entry point of the `cuvee` command.

    The cyclic garbage collector begins once more is allocated than a start needs, and leaves the end to the system.
    """
    usual = gc.get_threshold()

    def begin(phase: str, details: dict[str, int]) -> None:
        gc.set_threshold(*usual)
        gc.callbacks.remove(begin)

    gc.set_threshold(_FIRST)
    gc.callbacks.append(begin)
    code = run_guarded(app)
    gc.freeze()  # nothing is searched for cycles that the end of the process frees anyway
    sys.exit(code)
