"""Runs work in a process that ends with all it left running, wherever that hid, and with nothing else.

Owns the keeper: a process whose only child is the work, and to which Linux gives whatever below it loses its parent. So
nobody else's process can be among those that are ended. Knows nothing of the work.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

_ADOPTS = 36  # PR_SET_CHILD_SUBREAPER
_ROUNDS = 1000  # what starts processes faster than they are ended is left
_FAILED = 70


def run_and_end(work: Callable[[], None]) -> NoReturn:
    """Run `work` in a child with a session of its own, end what it left running, and end as it ended.

    For a process that was forked for this and does nothing else. SIGTERM ends all of it at once. Where there is no
    Linux, only the session of the work is ended.
    """
    with suppress(OSError):
        os.setsid()
    signal.signal(signal.SIGTERM, _stop)
    _adopt()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if (child := os.fork()) == 0:
        _work(work, before)
    status: int | None = None
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        status = _wait(child)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        status = _end(child, status)
    _as(os.waitstatus_to_exitcode(status))


def _stop(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _work(work: Callable[[], None], mask: Iterable[int]) -> NoReturn:
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.setsid()
        work()
        os._exit(0)
    except BaseException:  # noqa: BLE001  # whatever it is, it must not reach the caller of the fork
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(_FAILED)


def _wait(child: int) -> int | None:
    """Wait until a child ends. It is not reaped, so that its number stays its own, where the system can leave it."""
    if not hasattr(os, "waitid"):
        return os.waitpid(child, 0)[1]
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    return None


def _adopt() -> None:
    import ctypes

    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).prctl(_ADOPTS, ctypes.c_ulong(1), *[ctypes.c_ulong(0)] * 3)


def _end(child: int, status: int | None) -> int:
    """End the work's session, then whatever came to this process, until nothing comes; how the work ended."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1] if status is None else status
    for _ in range(_ROUNDS):
        found = _children()
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for pid in found:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        if not found:
            break
    return status


def _children() -> list[int]:
    """The processes whose parent is this one."""
    found = []
    with suppress(OSError):
        for place in Path("/proc").iterdir():
            if place.name.isdecimal():
                with suppress(OSError, IndexError, ValueError):
                    if int(_state(place)[1]) == os.getpid():
                        found.append(int(place.name))
    return found


def _state(place: Path) -> list[str]:
    """What /proc says of a process after its name, which may hold anything: state, parent, group, session, …"""
    return (place / "stat").read_text(errors="replace").rpartition(")")[2].split()


def _as(code: int) -> NoReturn:
    """End with this code, or by the signal that it stands for."""
    if code < 0:
        with suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(max(code, 1) if code < 0 else code)
