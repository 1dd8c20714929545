"""What becomes of written pages: the device begins with them early, and where fresh ones are dear they are used again.

A page of an output usually stays in the page cache, where whoever loads the model next finds it. Where the system
has no free page at hand (the host of a virtual machine takes free ones back, a container's memory is full), each costs
several times the copy into it; then pages that have reached the device are given back, and the next write
takes them. Owns that choice, by measurement. It promises nothing and changes no byte: the sync at the end alone
makes a file durable, and pages that are not yet on the device stay. Only `core.disk` calls this.
"""

from __future__ import annotations

import contextlib
import os

from cuvee.core import linux_calls

PIECE = 4 << 20  # bytes of a file after which writing them to the device begins
KEPT = 8  # pieces behind the last complete one that the device may not be done with
WINDOW = 8 << 20  # bytes over which writes are timed
DEAR = 1e-9  # seconds of the processor for each byte; a copy into pages at hand takes a third of it
_LEAST = 64 << 10  # shorter writes tell what a call costs, not a page


class WriteBehind:
    """What one disk does with the pages of its files, from any thread; `dear` once fresh ones proved to be."""

    def __init__(self) -> None:
        self.dear = False
        # Threads may lose each other's sums, which makes a window longer and no byte wrong.
        self._nbytes, self._seconds = 0, 0.0

    def written(self, number: int, offset: int, count: int, seconds: float) -> None:
        """A write of `count` bytes at `offset` took `seconds` of the processor; failing is no failure."""
        if count >= _LEAST and not self.dear:
            self._time(count, seconds)
        first, past = offset // PIECE, (offset + count) // PIECE
        if past > first:
            linux_calls.begin_writing(number, first * PIECE, (past - first) * PIECE)
            if self.dear and past > KEPT:
                _give_back(number, max(0, first - KEPT) * PIECE, (past - KEPT) * PIECE)

    def _time(self, count: int, seconds: float) -> None:
        self._nbytes, self._seconds = self._nbytes + count, self._seconds + seconds
        if self._nbytes >= WINDOW:
            self.dear = self._seconds > DEAR * self._nbytes
            self._nbytes, self._seconds = 0, 0.0


def _give_back(number: int, start: int, stop: int) -> None:
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(number, start, stop - start, os.POSIX_FADV_DONTNEED)
