"""Weight files kept open, but never too many: checkpoints have thousands of shards, merges hundreds of checkpoints.

Owns opening, closing, the order of eviction, and the share of the process's open files that each source may have. Must
not know names of tensors.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakSet

from cuvee.errors import SourceError, Where
from cuvee.formats.file import TensorFile

OPEN_FILES = 64  # of one source
_UNKNOWN = 256  # of all sources, where the system does not say


@dataclass(slots=True)
class _Slot:
    file: TensorFile
    users: int = 0


class _Pools:
    """The pools of this process; together they keep open at most half of the files the system allows it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: WeakSet[FilePool] = WeakSet()

    def join(self, pool: FilePool) -> None:
        """Count one more pool; the others' shares get smaller."""
        with self._lock:
            others = list(self._all)
            self._all.add(pool)
        for other in others:
            other.shrink()

    def share(self) -> int:
        """How many files one pool may keep open, at least one."""
        return max(1, _allowed() // max(1, len(self._all)))


def _allowed() -> int:
    try:
        import resource
    except ImportError:
        return _UNKNOWN
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft // 2 if soft > 0 else _UNKNOWN


class FilePool:
    """Open files by path; the least recently used one that nobody reads makes room."""

    def __init__(self, opener: Callable[[Path], TensorFile], capacity: int = OPEN_FILES) -> None:
        self._open = opener
        self._capacity = capacity
        self._slots: OrderedDict[Path, _Slot] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        _POOLS.join(self)

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

    def shrink(self) -> None:
        """Close idle files that are more than this pool's share by now."""
        with self._lock:
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
        capacity = 0 if self._closed else min(self._capacity, _POOLS.share())
        idle = [path for path, slot in self._slots.items() if slot.users == 0]
        for path in idle[: max(0, len(self._slots) - capacity)]:
            self._slots.pop(path).file.close()


_POOLS = _Pools()
