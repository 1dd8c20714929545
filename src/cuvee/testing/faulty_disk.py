"""A disk in memory that forgets, tears and fails: what `kill -9` cannot show and a power cut would.

    disk = FaultyDisk(crash_after=17)
    try:
        save(disk)                       # code under test, written against `cuvee.core.disk.Disk`
    except PowerCut:
        survivor = disk.crash(seed=3)    # a new disk with what a device might hold after that
        save(survivor)                   # recovery; may be cut again

The model, stricter than any real file system:

- Bytes: `sync` makes a file's bytes and size certain. Of the writes since, each one lands, vanishes or tears
  (a part of it lands), independently of the others.
- Names: `sync_folder` makes a folder's names certain. Of the changes of names since (make, rename, exchange,
  remove), with names="ordered" a prefix survives, as on a journalling file system, where `sync_folder` makes
  all earlier changes certain too; with names="subset" any of them survive. A rename never comes apart.
- Bytes and names know nothing of each other: a durable name may lead to an empty file.
- A failed operation (`fail_at`) has no effect, except that a failed write may have written a part. After a
  failed `sync` the unsynced bytes can still be read, but will be gone after a crash, and no later `sync`
  reports it: they have to be written again.

Operations that change something or make it certain are numbered from 1; `operations` counts them. Locks are
those of one machine: held per open file, gone after a crash. Owns nothing outside its memory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cuvee.core.digests import as_bytes
from cuvee.core.disk import Handle, Kind, Mode
from cuvee.core.disk_errors import run_error
from cuvee.testing.disk_model import (
    Change,
    File,
    Folder,
    LostSync,
    Names,
    PartialWrite,
    apply_write,
    surviving,
    survivor,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

_ENDLESS = 1 << 60


class PowerCut(BaseException):
    """The power went. Not an Exception, so that no handler can tidy up after it."""


class FaultyDisk:
    """A `Disk` whose crashes, errors and size are chosen by a test; deterministic in one thread.

    `crash_after`: the operation after which everything raises PowerCut. `fail_at`: the operation that fails
    with `error` (an errno), and with `persistent` every later one too. `capacity`: bytes until ENOSPC.
    `can_exchange` and `can_lock`: False for a file system without that call.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        crash_after: int | None = None,
        fail_at: int | None = None,
        error: int = errno.ENOSPC,
        persistent: bool = False,
        capacity: int = _ENDLESS,
    ) -> None:
        self.operations = 0
        self.log: list[str] = []  # what each operation was, for messages of tests
        self.crash_after, self.fail_at, self.error, self.persistent = crash_after, fail_at, error, persistent
        self.capacity = capacity
        self.can_exchange = self.can_lock = True
        self._random = random.Random(seed)
        self._nodes: list[File | Folder] = [Folder()]
        self._changes: list[Change] = []
        self._barrier = 0  # changes that are certain where order is kept
        self._open: dict[int, int] = {}
        self._locks: dict[int, int] = {}  # file → handle
        self._next = 3
        self._dead = False
        self._guard = threading.RLock()

    # What a test asks.

    def crash(self, *, seed: int = 0, names: Names = "subset") -> FaultyDisk:
        """A disk with one state this one may be found in after a power cut now; this one is unchanged."""
        chance = random.Random(seed)
        after = FaultyDisk(seed=seed, capacity=self.capacity)
        after.can_exchange, after.can_lock = self.can_exchange, self.can_lock
        after._nodes = [survivor(node, chance) for node in self._nodes]
        for change in surviving(self._changes, self._barrier, names, chance):
            for folder, name, node in change.edits:
                entries = after._folder_at(folder).durable
                if node is None:
                    entries.pop(name, None)
                else:
                    entries[name] = node
        for kept in after._nodes:
            if isinstance(kept, Folder):
                kept.current = dict(kept.durable)
        return after

    def tree(self, folder: Path) -> dict[str, bytes]:
        """Every file below a folder as a running program sees it, by relative path."""
        found: dict[str, bytes] = {}
        if self.kind(folder) == "folder":
            for name in self.listing(folder):
                inner = self._find(folder / name)
                if isinstance(inner, File):
                    found[name] = bytes(inner.current)
                else:
                    found |= {f"{name}/{rest}": data for rest, data in self.tree(folder / name).items()}
        return found

    def put(self, path: Path, data: bytes) -> None:
        """Place a durable file, parents included, without counting an operation."""
        folder = self._root()
        for part in path.parts[1:-1]:
            node = folder.current.setdefault(part, len(self._nodes))
            folder.durable[part] = node
            if node == len(self._nodes):
                self._nodes.append(Folder())
            folder = self._folder_at(node)
        folder.current[path.name] = folder.durable[path.name] = len(self._nodes)
        self._nodes.append(File(bytearray(data), bytearray(data)))

    # Reading: the protocol of `Disk`.

    def real_path(self, path: Path) -> Path:
        return Path(os.path.normpath(path if path.is_absolute() else Path("/") / path))

    def kind(self, path: Path) -> Kind | None:
        with self._alive():
            node = self._find(path)
            return None if node is None else "file" if isinstance(node, File) else "folder"

    def size(self, path: Path) -> int:
        with self._alive():
            return len(self._file(path).current)

    def allocated(self, path: Path) -> int:
        return self.size(path)

    def age(self, path: Path) -> float:
        self.size(path)
        return 0.0

    def free(self, path: Path) -> int:
        with self._alive():
            return self.capacity - self._used()

    def same_device(self, first: Path, second: Path) -> bool:
        return True

    def is_open_at(self, handle: Handle, path: Path) -> bool:
        with self._alive():
            return self._find(path) is self._nodes[self._open[handle.number]]

    def listing(self, folder: Path) -> list[str]:
        with self._alive():
            return sorted(self._folder(folder).current)

    def pread(self, handle: Handle, count: int, offset: int) -> bytes:
        with self._alive():
            return bytes(self._opened(handle).current[offset : offset + count])

    def forget(self, handle: Handle) -> None:
        with self._alive():
            file = self._opened(handle)
            if not file.pending:
                file.current[:] = file.durable

    # Opening: not counted, unless a file is made.

    def open_file(self, path: Path, mode: Mode = "read") -> Handle:
        with self._alive():
            if mode == "append" and self._find(path) is None:
                with self._operation("create", path):
                    self._add(path, File())
            return self._handle(path)

    def close(self, handle: Handle) -> None:
        with self._guard:  # also after a power cut: closing changes nothing
            self._open.pop(handle.number, None)
            self._locks = {file: holder for file, holder in self._locks.items() if holder != handle.number}

    def lock(self, handle: Handle) -> bool | None:
        with self._alive():
            if not self.can_lock:
                return None
            return self._locks.setdefault(self._open[handle.number], handle.number) == handle.number

    # Changing bytes.

    def create(self, path: Path, size: int) -> Handle:
        with self._operation("create", path):
            found = self._find(path)
            if isinstance(found, Folder):
                raise run_error(_os_error(errno.EISDIR), path)
            used = self._used() - (0 if found is None else len(found.current))
            if used + size > self.capacity:
                raise run_error(_os_error(errno.ENOSPC), path, size, self.capacity - used)
            if found is None:
                found = File()
                self._add(path, found)
            for length in (0, size):
                found.pending.append((length, None))
            found.current[:] = bytes(size)
            return self._handle(path)

    def pwrite(self, handle: Handle, data: Buffer, offset: int) -> None:
        content = bytes(as_bytes(data))
        file = self._opened(handle)
        with self._operation("pwrite", handle.path, PartialWrite(self._random, file, offset, content)):
            self._write(file, offset, content, handle.path)

    def append(self, handle: Handle, data: bytes) -> None:
        file = self._opened(handle)
        with self._operation(
            "append", handle.path, PartialWrite(self._random, file, len(file.current), data)
        ):
            self._write(file, len(file.current), data, handle.path)

    def sync(self, handle: Handle) -> None:
        file = self._opened(handle)
        with self._operation("sync", handle.path, LostSync(file)):
            for offset, data in file.pending:
                apply_write(file.durable, offset, data)
            file.pending.clear()

    # Changing names.

    def make_folder(self, folder: Path) -> None:
        with self._operation("make_folder", folder):
            found = self._find(folder)
            if isinstance(found, File):
                raise run_error(_os_error(errno.EEXIST), folder)
            if found is None:
                self._add(folder, Folder())

    def rename(self, old: Path, new: Path, *, replace: bool = True) -> None:
        with self._operation("rename", new):
            moved, there = self._find(old), self._find(new)
            if moved is None:
                raise run_error(_os_error(errno.ENOENT), old)
            if there is not None and not replace:
                raise run_error(_os_error(errno.EEXIST), new)
            if isinstance(there, Folder) and (there.current or isinstance(moved, File)):
                raise run_error(_os_error(errno.ENOTEMPTY if there.current else errno.EISDIR), new)
            if isinstance(there, File) and isinstance(moved, Folder):
                raise run_error(_os_error(errno.ENOTDIR), new)
            self._change(new, [(old, None), (new, self._number(moved))])

    def exchange(self, first: Path, second: Path) -> bool:
        if not self.can_exchange:
            return False
        with self._operation("exchange", second):
            one, two = self._find(first), self._find(second)
            if one is None or two is None:
                raise run_error(_os_error(errno.ENOENT), second)
            self._change(second, [(first, self._number(two)), (second, self._number(one))])
        return True

    def unlink(self, path: Path) -> None:
        with self._operation("unlink", path):
            self._file(path)
            self._change(path, [(path, None)])

    def remove_folder(self, folder: Path) -> None:
        with self._operation("remove_folder", folder):
            if self._folder(folder).current:
                raise run_error(_os_error(errno.ENOTEMPTY), folder)
            self._change(folder, [(folder, None)])

    def sync_folder(self, folder: Path) -> None:
        with self._operation("sync_folder", folder):
            number = self._number(self._folder(folder))
            self._barrier = len(self._changes)
            for change in self._changes:
                change.certain = change.certain or change.folder == number

    def sync_all(self, handles: Sequence[Handle], folders: Sequence[Path] = ()) -> None:
        for handle in handles:
            self.sync(handle)
        for folder in folders:
            self.sync_folder(folder)

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        with self._guard:
            if self._dead:
                raise PowerCut
            yield

    @contextlib.contextmanager
    def _operation(
        self, what: str, path: Path, on_failure: PartialWrite | LostSync | None = None
    ) -> Iterator[None]:
        with self._alive():
            self.operations += 1
            self.log.append(f"{what} {path}")
            due = self.fail_at is not None and self.operations >= self.fail_at
            if due and (self.persistent or self.operations == self.fail_at):
                if on_failure is not None:
                    on_failure.happen()
                raise run_error(_os_error(self.error), path, free=self.capacity - self._used())
            yield
            if self.operations == self.crash_after:
                self._dead = True
                raise PowerCut

    def _find(self, path: Path) -> File | Folder | None:
        node: File | Folder = self._nodes[0]
        for part in path.parts[1:]:
            if not isinstance(node, Folder) or part not in node.current:
                return None
            node = self._nodes[node.current[part]]
        return node

    def _folder(self, path: Path) -> Folder:
        node = self._find(path)
        if not isinstance(node, Folder):
            raise run_error(_os_error(errno.ENOENT if node is None else errno.ENOTDIR), path)
        return node

    def _file(self, path: Path) -> File:
        node = self._find(path)
        if not isinstance(node, File):
            raise run_error(_os_error(errno.ENOENT if node is None else errno.EISDIR), path)
        return node

    def _folder_at(self, number: int) -> Folder:
        node = self._nodes[number]
        if not isinstance(node, Folder):
            raise TypeError(f"node {number} is a file")
        return node

    def _root(self) -> Folder:
        return self._folder_at(0)

    def _number(self, node: File | Folder) -> int:
        return next(i for i, other in enumerate(self._nodes) if other is node)

    def _handle(self, path: Path) -> Handle:
        self._next += 1
        self._open[self._next] = self._number(self._file(path))
        return Handle(self._next, path)

    def _opened(self, handle: Handle) -> File:
        with self._alive():
            node = self._nodes[self._open[handle.number]]
            if not isinstance(node, File):
                raise TypeError(f"{handle.path} is a folder")
            return node

    def _used(self) -> int:
        return sum(len(data) for data in self._reachable(self._root()))

    def _reachable(self, folder: Folder) -> Iterator[bytearray]:
        for number in folder.current.values():
            node = self._nodes[number]
            if isinstance(node, Folder):
                yield from self._reachable(node)
            else:
                yield node.current

    def _add(self, path: Path, node: File | Folder) -> None:
        self._nodes.append(node)
        try:
            self._change(path, [(path, len(self._nodes) - 1)])
        except BaseException:
            self._nodes.pop()
            raise

    def _change(self, anchor: Path, edits: list[tuple[Path, int | None]]) -> None:
        numbered = tuple((self._number(self._folder(p.parent)), p.name, node) for p, node in edits)
        for folder, name, node in numbered:
            entries = self._folder_at(folder).current
            if node is None:
                entries.pop(name, None)
            else:
                entries[name] = node
        self._changes.append(Change(numbered, self._number(self._folder(anchor.parent))))

    def _write(self, file: File, offset: int, data: bytes, path: Path) -> None:
        grown = max(0, offset + len(data) - len(file.current))
        if grown and self._used() + grown > self.capacity:
            raise run_error(_os_error(errno.ENOSPC), path, len(data), self.capacity - self._used())
        apply_write(file.current, offset, data)
        file.pending.append((offset, data))


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
