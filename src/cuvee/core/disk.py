"""The only module that changes the file system; all else asks a `Disk`, so tests can swap in one that fails.

Owns the durable replacement of a file. Must not know what is written. New files and folders get the modes
that the umask allows.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from cuvee.core import linux_calls, write_behind
from cuvee.core.digests import as_bytes
from cuvee.core.disk_errors import OUT_OF_SPACE, run_error
from cuvee.core.write_behind import WriteBehind
from cuvee.errors import RunError

if TYPE_CHECKING:
    from typing_extensions import Buffer

Kind = Literal["file", "folder", "other"]
Mode = Literal["read", "write", "append"]

_PIECE = 1 << 20
_SYNCS = 16  # at once
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_NOREPLACE, _EXCHANGE = 1, 2


@dataclass(frozen=True, slots=True)
class Handle:
    """An open file of a disk: its number there, and the path it was opened by (for messages)."""

    number: int
    path: Path


class Disk(Protocol):
    """What a commit protocol needs of a file system. Every failure is a RunError that names the path.

    A change is certain to survive a power cut only after `sync` (bytes and size of a file) or `sync_folder`
    (names in a folder). All operations may be called from any thread.
    """

    def real_path(self, path: Path) -> Path:
        """The absolute path with links followed; what does not exist is kept as written."""

    def kind(self, path: Path) -> Kind | None:
        """What is there, links not followed; None for nothing."""

    def size(self, path: Path) -> int:
        """Bytes in a file."""

    def allocated(self, path: Path) -> int:
        """Bytes of the disk that a file really takes."""

    def age(self, path: Path) -> float:
        """Seconds since a file was last written."""

    def free(self, path: Path) -> int:
        """Bytes an ordinary user may still write to the file system of `path` (or its nearest parent)."""

    def same_device(self, first: Path, second: Path) -> bool:
        """Whether both lie on one mounted file system, so that one can be renamed to the other."""

    def is_open_at(self, handle: Handle, path: Path) -> bool:
        """Whether `path` still names the file that `handle` has open."""

    def listing(self, folder: Path) -> list[str]:
        """Names in a folder, sorted."""

    def make_folder(self, folder: Path) -> None:
        """Make one folder; nothing happens when it exists."""

    def create(self, path: Path, size: int) -> Handle:
        """A file of `size` zero bytes, its space reserved where the system can; replaces an old one."""

    def open_file(self, path: Path, mode: Mode = "read") -> Handle:
        """Open a file as it is; `append` makes it when missing."""

    def close(self, handle: Handle) -> None:
        """Give the handle back; this makes nothing durable."""

    def pread(self, handle: Handle, count: int, offset: int) -> bytes:
        """Up to `count` bytes from `offset`; fewer only at the end of the file."""

    def forget(self, handle: Handle) -> None:
        """Have synced bytes that are read from now on come from the device, where the system can do that."""

    def pwrite(self, handle: Handle, data: Buffer, offset: int) -> None:
        """Write all bytes at `offset`."""

    def append(self, handle: Handle, data: bytes) -> None:
        """Write all bytes at the end of a file opened to append."""

    def sync(self, handle: Handle) -> None:
        """Return when the file's bytes are on the device."""

    def sync_folder(self, folder: Path) -> None:
        """Return when the folder's names are on the device."""

    def sync_all(self, handles: Sequence[Handle], folders: Sequence[Path] = ()) -> None:
        """As `sync` for each file and `sync_folder` for each folder, in any order."""

    def rename(self, old: Path, new: Path, *, replace: bool = True) -> None:
        """Move in one step, over a file or an empty folder of the same kind; never with replace=False."""

    def exchange(self, first: Path, second: Path) -> bool:
        """Swap two names in one step; False, with nothing changed, where the system cannot."""

    def unlink(self, path: Path) -> None:
        """Remove a file."""

    def remove_folder(self, folder: Path) -> None:
        """Remove an empty folder."""

    def lock(self, handle: Handle) -> bool | None:
        """Take the file's lock, held until `close` or death; False: another has it, None: no locks here."""


class RealDisk:
    """The operating system's file systems."""

    def __init__(self) -> None:
        self._behind = WriteBehind()  # of the files opened last

    def real_path(self, path: Path) -> Path:
        return Path(os.path.realpath(path))

    def kind(self, path: Path) -> Kind | None:
        try:
            mode = path.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise run_error(error, path) from error
        return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"

    def size(self, path: Path) -> int:
        with _reporting(path):
            return path.stat().st_size

    def allocated(self, path: Path) -> int:
        with _reporting(path):
            return path.stat().st_blocks * 512

    def age(self, path: Path) -> float:
        import time

        with _reporting(path):
            return max(0.0, time.time() - path.stat().st_mtime)

    def free(self, path: Path) -> int:
        while not path.exists() and path != path.parent:
            path = path.parent
        with _reporting(path):
            found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def same_device(self, first: Path, second: Path) -> bool:
        with _reporting(first):
            return first.stat().st_dev == second.stat().st_dev

    def is_open_at(self, handle: Handle, path: Path) -> bool:
        with _reporting(path):
            mine = os.fstat(handle.number)
            try:
                there = path.lstat()
            except FileNotFoundError:
                return False
            return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)

    def listing(self, folder: Path) -> list[str]:
        with _reporting(folder):
            return sorted(entry.name for entry in os.scandir(folder))

    def make_folder(self, folder: Path) -> None:
        with _reporting(folder):
            folder.mkdir(exist_ok=True)

    def create(self, path: Path, size: int) -> Handle:
        self._behind = WriteBehind()
        with _reporting(path, needed=size):
            number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            try:
                _reserve(number, size)
            except BaseException:
                os.close(number)
                raise
        return Handle(number, path)

    def open_file(self, path: Path, mode: Mode = "read") -> Handle:
        if mode == "write":
            self._behind = WriteBehind()
        flags = {"read": os.O_RDONLY, "write": os.O_RDWR, "append": os.O_WRONLY | os.O_APPEND | os.O_CREAT}
        with _reporting(path):
            return Handle(os.open(path, flags[mode] | os.O_CLOEXEC, 0o666), path)

    def close(self, handle: Handle) -> None:
        with _reporting(handle.path):
            os.close(handle.number)

    def pread(self, handle: Handle, count: int, offset: int) -> bytes:
        pieces: list[bytes] = []
        with _reporting(handle.path):
            while count > 0 and (piece := os.pread(handle.number, count, offset)):
                pieces.append(piece)
                offset, count = offset + len(piece), count - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def forget(self, handle: Handle) -> None:
        write_behind.give_back(handle.number, 0, 0)

    def pwrite(self, handle: Handle, data: Buffer, offset: int) -> None:
        view = as_bytes(data)
        with _reporting(handle.path, needed=len(view)):
            while view:
                begun = self._behind.begin(len(view))
                done = os.pwrite(handle.number, view, offset)
                self._behind.written(handle.number, offset, done, begun)
                view, offset = view[done:], offset + done

    def append(self, handle: Handle, data: bytes) -> None:
        view = memoryview(data)
        with _reporting(handle.path, needed=len(view)):
            while view:
                view = view[os.write(handle.number, view) :]

    def sync(self, handle: Handle) -> None:
        with _reporting(handle.path):
            if full := getattr(fcntl, "F_FULLFSYNC", None):  # macOS: fsync alone stops at the drive's cache
                fcntl.fcntl(handle.number, full)
            else:
                os.fsync(handle.number)

    def sync_folder(self, folder: Path) -> None:
        with _reporting(folder):
            number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(number)
            finally:
                os.close(number)

    def sync_all(self, handles: Sequence[Handle], folders: Sequence[Path] = ()) -> None:
        from concurrent.futures import ThreadPoolExecutor

        files = [functools.partial(self.sync, handle) for handle in handles]
        calls = [*files, *(functools.partial(self.sync_folder, folder) for folder in folders)]
        # At once, because the file system then brings what they have in common to the device once, not for each.
        with ThreadPoolExecutor(max(1, min(len(calls), _SYNCS))) as pool:
            for done in [pool.submit(call) for call in calls]:
                done.result()

    def rename(self, old: Path, new: Path, *, replace: bool = True) -> None:
        with _reporting(new):
            if replace or not linux_calls.renameat2(old, new, _NOREPLACE):
                if not replace and new.exists():  # the system has no call that looks and moves in one step
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
                old.rename(new)

    def exchange(self, first: Path, second: Path) -> bool:
        with _reporting(second):
            return linux_calls.renameat2(first, second, _EXCHANGE)

    def unlink(self, path: Path) -> None:
        with _reporting(path):
            path.unlink()

    def remove_folder(self, folder: Path) -> None:
        with _reporting(folder):
            folder.rmdir()

    def lock(self, handle: Handle) -> bool | None:
        with _reporting(handle.path):
            try:
                fcntl.flock(handle.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    return None
                raise
        return True


REAL: Disk = RealDisk()


def write_file(path: Path, data: Buffer, disk: Disk = REAL) -> None:
    """Replace a small file durably: after a crash at any time it holds the old bytes or all the new ones."""

    def fill(handle: Handle) -> None:
        disk.pwrite(handle, data, 0)

    _replace(path, len(as_bytes(data)), fill, disk)


def copy_file(source: Path, target: Path, disk: Disk = REAL) -> None:
    """Copy a file's bytes (not its mode) with the durability of `write_file`, a MiB at a time."""
    reading = REAL.open_file(source)
    size = REAL.size(source)

    def fill(handle: Handle) -> None:
        for offset in range(0, size, _PIECE):
            piece = REAL.pread(reading, min(_PIECE, size - offset), offset)
            disk.pwrite(handle, piece.ljust(min(_PIECE, size - offset), b"\0"), offset)

    try:
        _replace(target, size, fill, disk)
    finally:
        REAL.close(reading)


def read_bytes(path: Path, disk: Disk = REAL) -> bytes:
    """All bytes of a file of this disk."""
    handle = disk.open_file(path)
    try:
        return disk.pread(handle, disk.size(path), 0)
    finally:
        disk.close(handle)


def make_folders(folder: Path, disk: Disk = REAL) -> None:
    """Make a folder and its missing parents, each durably."""
    missing = []
    while disk.kind(folder) is None and folder != folder.parent:
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        disk.make_folder(path)
        disk.sync_folder(path.parent)


def keep_from_others(path: Path) -> None:
    """Take the right to write to a file or folder of this user from everybody else, its group as well."""
    with _reporting(path):
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))


def remove_tree(path: Path, disk: Disk = REAL) -> None:
    """Remove a file, link or folder with all it holds, if there; links are removed, never followed."""
    kind = disk.kind(path)
    if kind == "folder":
        for name in disk.listing(path):
            remove_tree(path / name, disk)
        disk.remove_folder(path)
    elif kind is not None:
        disk.unlink(path)


@contextlib.contextmanager
def _reporting(path: Path, needed: int | None = None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        free = None
        with contextlib.suppress(OSError, RunError):
            free = REAL.free(path) if error.errno in OUT_OF_SPACE else None
        raise run_error(error, path, needed, free) from error


def _reserve(number: int, size: int) -> None:
    if size and (fallocate := getattr(os, "posix_fallocate", None)):
        try:
            fallocate(number, 0, size)
            return
        except OSError as error:
            if error.errno not in linux_calls.NO_SUCH_CALL:
                raise
    os.ftruncate(number, size)


def _replace(path: Path, size: int, fill: Callable[[Handle], None], disk: Disk) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.cuvee-tmp")
    try:
        handle = disk.create(temporary, size)  # reserving the bytes first: a full disk is noticed here
        try:
            fill(handle)
            disk.sync(handle)  # else the new name could outlive the bytes
        finally:
            disk.close(handle)
        disk.rename(temporary, path)
    except Exception:
        with contextlib.suppress(RunError):
            disk.unlink(temporary)
        raise
    disk.sync_folder(path.parent)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A new folder where the system keeps temporary ones, removed afterwards with all that is in it."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="cuvee-") as name:
        yield Path(name)
