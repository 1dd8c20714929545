"""What becomes of written pages: the device begins with them early, and where fresh ones are dear they are used again.

A page of an output usually stays in the page cache, where whoever loads the model next finds it. Where the host of a
virtual machine takes free pages back, a fresh one costs ten times the copy into it; then pages that have reached the
device are given back, and the next write takes them. Owns that choice, by measurement, anew for each file that is
opened. It promises nothing and changes no byte: the sync at the end alone makes a file durable and tells of errors,
and pages that are not yet on the device stay. Only `core.disk` calls this.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time

from cuvee.core import linux_calls

PIECE = 4 << 20  # bytes of a file after which writing them to the device begins
KEPT = 8  # pieces behind the last complete one that are left alone: the device is probably still at them
WINDOW = 4 << 20  # bytes over which writes are timed
WINDOWS = 3  # dear ones in a row that are believed: one alone may be the work of another program
DEAR = 1e-9  # seconds of the processor for each byte; a copy into pages at hand takes a third of it
_LEAST = 64 << 10  # shorter writes tell what a call costs, not a page
_POSSIBLE = hasattr(os, "posix_fadvise") and hasattr(time, "thread_time")


class WriteBehind:
    """What is done with the pages of files, from any thread; `dear` from when fresh ones proved to be."""

    def __init__(self) -> None:
        self.dear = False
        self._guard = threading.Lock()
        self._nbytes, self._seconds, self._windows = 0, 0.0, 0

    def begin(self, count: int) -> float | None:
        """The processor's time of this thread before a write of `count` bytes; None where it would tell nothing."""
        return time.thread_time() if _POSSIBLE and count >= _LEAST and not self.dear else None

    def written(self, number: int, offset: int, count: int, begun: float | None = None) -> None:
        """A write of `count` bytes at `offset`, begun at that time, is over; failing is no failure."""
        if begun is not None:
            self._time(count, time.thread_time() - begun)
        first, past = offset // PIECE, (offset + count) // PIECE
        if past > first:
            linux_calls.begin_writing(number, first * PIECE, (past - first) * PIECE)
            if self.dear and past > KEPT:  # pieces that were late are tried again
                start = max(0, first - 2 * KEPT) * PIECE
                give_back(number, start, (past - KEPT) * PIECE - start)

    def _time(self, count: int, seconds: float) -> None:
        with self._guard:
            self._nbytes, self._seconds = self._nbytes + count, self._seconds + seconds
            if self._nbytes >= WINDOW:
                self._windows = self._windows + 1 if self._seconds > DEAR * self._nbytes else 0
                self._nbytes, self._seconds = 0, 0.0
            if self._windows >= WINDOWS:
                self.dear = True


def give_back(number: int, start: int, count: int) -> None:
    """Drop what the cache holds of a file's bytes and the device has too; a count of 0 means all of the file."""
    if not _POSSIBLE:
        return
    with contextlib.suppress(OSError):
        os.posix_fadvise(number, start, count, os.POSIX_FADV_DONTNEED)
