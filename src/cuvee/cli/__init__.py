"""The command line: thin, every command one file in `commands/`, imported only when it is called."""

from __future__ import annotations

import gc
import signal
import sys

_FIRST = 100_000  # containers made before the first look for cycles; a start makes hardly more, and all of them stay
_STOPPED = 128 + signal.SIGINT


def main() -> None:
    """Entry point of the `cuvee` command."""
    _collect_late()
    try:
        from cuvee.cli.app import app
        from cuvee.cli.failure import run_guarded
    except KeyboardInterrupt:  # nothing has begun
        code = _STOPPED
    else:
        code = run_guarded(app)
    gc.freeze()  # nothing is searched for cycles that the end of the process frees anyway
    if code == _STOPPED and hasattr(signal, "pthread_sigmask"):
        # An interrupt that arrived while Python ran text, as `dataclass` has it do, makes it end by sending itself the
        # signal once more, whatever became of the exception; the exit code is part of what is promised.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    sys.exit(code)


def _collect_late() -> None:
    """The cyclic garbage collector begins once more is allocated than a start needs."""
    usual = gc.get_threshold()

    def begin(phase: str, details: dict[str, int]) -> None:
        gc.set_threshold(*usual)
        gc.callbacks.remove(begin)

    gc.set_threshold(_FIRST)
    gc.callbacks.append(begin)
