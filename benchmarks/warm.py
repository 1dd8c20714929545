"""Files that stay in the page cache while they are measured.

The kernel of a virtual machine may hand pages back to its host although memory is free: of files just read, a tenth was
gone after three seconds here, four tenths after thirty, so that a merge with warm caches waited for the disk. A
locked mapping keeps them, for every program alike.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_SHARE = 2  # at most one part of so many of what is available
_PIECE = 4 << 20
_locked: dict[Path, mmap.mmap] = {}
_said: list[str] = []


def keep(files: Sequence[Path]) -> bool:
    """Bring these files into the page cache, and lock them there, no others, where there is room and it is allowed."""
    for path in _locked.keys() - set(files):
        _locked.pop(path).close()
    nbytes = sum(path.stat().st_size for path in files if path not in _locked)
    if nbytes * _SHARE <= _available() and all(_lock(path) for path in files):
        return True
    release()
    for path in files:
        _read(path)
    if not _said:
        _said.append(f"note: {len(files)} files are read before each run, not locked in memory")
        print(_said[0], file=sys.stderr)
    return False


def release() -> None:
    """Lock nothing any more; a page cache that is dropped afterwards is cold."""
    for mapped in _locked.values():
        mapped.close()
    _locked.clear()


def _lock(path: Path) -> bool:
    if path in _locked:
        return True
    with path.open("rb") as file:
        mapped = mmap.mmap(
            file.fileno(), 0, access=mmap.ACCESS_READ
        )  # shared: the pages of the cache themselves
    address = np.frombuffer(mapped, np.uint8).ctypes.data
    if ctypes.CDLL(None).mlock(ctypes.c_void_p(address), ctypes.c_size_t(len(mapped))):
        return False
    _locked[path] = mapped
    return True


def _available() -> int:
    """Bytes that may be taken without anything else having to give way."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")), 0)


def _read(path: Path) -> None:
    buffer = bytearray(_PIECE)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
