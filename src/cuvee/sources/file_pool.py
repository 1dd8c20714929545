"""Weight files kept open, but never more than a few dozen: a checkpoint may have thousands of shards.

Owns opening, closing and the order of eviction. Must not know names of tensors.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cuvee.errors import SourceError, Where
from cuvee.formats.file import TensorFile

OPEN_FILES = 64


@dataclass(slots=True)
class _Slot:
    file: TensorFile
    users: int = 0


class FilePool:
    """Open files by path; the least recently used one that nobody reads makes room."""

    def __init__(self, opener: Callable[[Path], TensorFile], capacity: int = OPEN_FILES) -> None:
        self._open = opener
        self._capacity = capacity
        self._slots: OrderedDict[Path, _Slot] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False

    def adopt(self, file: TensorFile) -> None:
        """Take over a file that is open already."""
        with self._lock:
            self._slots[file.path] = _Slot(file)
            self._shrink()

    @contextmanager
    def using(self, path: Path) -> Iterator[TensorFile]:
        """The open file; it stays open at least until the block ends."""
        slot = self._take(path)
        try:
            yield slot.file
        finally:
            with self._lock:
                slot.users -= 1
                self._shrink()

    def close(self) -> None:
        """Close every file that is not being read, and the others when their readers are done."""
        with self._lock:
            self._closed = True
            self._shrink()

    def _take(self, path: Path) -> _Slot:
        with self._lock:
            if self._closed:
                raise SourceError("CV-S045", "the source was closed", where=Where(file=str(path)))
            slot = self._slots.get(path)
            if slot is None:
                slot = self._slots[path] = _Slot(self._open(path))
            self._slots.move_to_end(path)
            slot.users += 1
            return slot

    def _shrink(self) -> None:
        """Close idle files, oldest first, until the pool fits (all of them once it is closed)."""
        capacity = 0 if self._closed else self._capacity
        idle = [path for path, slot in self._slots.items() if slot.users == 0]
        for path in idle[: max(0, len(self._slots) - capacity)]:
            self._slots.pop(path).file.close()
