"""Reading ahead across tensors: one thread asks the system for the bytes that workers will come to next.

Bounded: at most `window` bytes are asked for beyond what workers have read. What the page cache holds already is not
asked for, so that a warm run pays for one look at each piece. Advice only: it changes no byte, and no failure of it
is an error.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from cuvee.core.tensors import Extent
from cuvee.errors import CuveeError

PIECE = 4 << 20  # bytes asked for at once
LEAST, MOST = 16 << 20, 256 << 20
_OPEN_FILES = 32


class Ahead:
    """A thread that keeps up to `window` bytes of the inputs on their way, from `with` to its end.

    `batches`: for each tensor, in the order in which they will be taken, where its inputs lie.
    """

    def __init__(self, batches: Iterable[Sequence[Extent]], window: int, *, exactly: bool = False) -> None:
        self._batches = batches
        self._exactly = exactly
        self._window = min(MOST, max(LEAST, window))
        self._files: dict[Path, int] = {}
        self._read = 0
        self._over = False
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="cuvee-ahead", daemon=True)

    def consumed(self, nbytes: int) -> None:
        """Workers have read this much more; bytes that they read again do not count."""
        with self._moved:
            self._read += nbytes
            self._moved.notify()

    def __enter__(self) -> Ahead:
        if hasattr(os, "posix_fadvise"):
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._moved:
            self._over = True
            self._moved.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            with contextlib.suppress(OSError, CuveeError):  # a damaged source is told by who reads it
                self._ask()
        finally:
            self._close()

    def _ask(self) -> None:
        asked = 0
        for batch in self._batches:
            for extent in pieces(batch):
                with self._moved:
                    while not self._over and asked > self._read + self._window:
                        self._moved.wait()
                    if self._over:
                        return
                    behind = asked + extent.nbytes <= self._read
                asked += extent.nbytes
                if not behind:
                    self._want(extent)

    def _want(self, extent: Extent) -> None:
        number = self._files.get(extent.path)
        if number is None:
            if len(self._files) >= _OPEN_FILES:
                self._close()
            number = self._files[extent.path] = open_input(extent.path, self._exactly)
        if not cached(number, extent.offset + extent.nbytes - 1):
            os.posix_fadvise(number, extent.offset, extent.nbytes, os.POSIX_FADV_WILLNEED)

    def _close(self) -> None:
        for number in self._files.values():
            os.close(number)
        self._files.clear()


def open_input(path: Path, exactly: bool) -> int:
    """A descriptor for reading; `exactly`: the system is asked not to read ahead of what is asked for.

    Else it may read megabytes into what a plan leaves out.
    """
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if exactly and hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_RANDOM)
    return number


def pieces(extents: Sequence[Extent]) -> Iterator[Extent]:
    """The extents cut up and interleaved, as blocks of a tensor take them: a piece of each, then the next of each."""
    for at in range(0, max((extent.nbytes for extent in extents), default=0), PIECE):
        for extent in extents:
            if at < extent.nbytes:
                yield Extent(extent.path, extent.offset + at, min(PIECE, extent.nbytes - at))


def cached(number: int, offset: int) -> bool:
    """Whether the page cache holds the byte; False where the system does not tell."""
    flag = getattr(os, "RWF_NOWAIT", None)
    if flag is None:
        return False
    try:
        return os.preadv(number, [bytearray(1)], offset, flag) == 1
    except OSError:
        return False
