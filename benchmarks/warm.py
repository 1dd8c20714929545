"""Files that stay in the page cache while they are measured.

The kernel of a virtual machine may hand pages back to its host although memory is free: of files just read, a tenth was
gone after three seconds here, four tenths after thirty, so that a merge with warm caches waited for the disk. A
locked mapping keeps them, for every program alike, where there is memory for that and the system allows it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_SHARE = 2  # at most one part of so many of what is available
_PIECE = 4 << 20
Identity = tuple[int, int, int, int]  # device, file, bytes, time of the last change
_locked: dict[Identity, mmap.mmap] = {}
_refused: list[str] = []  # why nothing is locked; asked once, so that no series has both kinds


def keep(files: Sequence[Path]) -> bool:
    """Bring these files into the page cache, and lock them there, no others; False where they are only read."""
    wanted = {_identity(path): path for path in files if path.stat().st_size}
    for old in _locked.keys() - wanted.keys():
        _locked.pop(old).close()
    new = {key: path for key, path in wanted.items() if key not in _locked}
    if not _refused and sum(key[2] for key in new) * _SHARE > _available():
        _refused.append("there is too little memory")
    for key, path in new.items():
        if not _refused:
            _lock(key, path)
    if not _refused:
        return True
    if _locked or len(_refused) == 1:
        release()
        _refused.append(f"note: warm files are read before each run, not locked in memory: {_refused[0]}")
        print(_refused[-1], file=sys.stderr)
    for path in wanted.values():
        _read(path)
    return False


def release() -> None:
    """Lock nothing any more; a page cache that is dropped afterwards is cold."""
    for mapped in _locked.values():
        mapped.close()
    _locked.clear()


def _identity(path: Path) -> Identity:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _lock(key: Identity, path: Path) -> None:
    with path.open("rb") as file:  # shared: the pages of the cache themselves
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _locked[key] = mapped
    address = ctypes.c_void_p(np.frombuffer(mapped, np.uint8).ctypes.data)
    if ctypes.CDLL(None, use_errno=True).mlock(address, ctypes.c_size_t(len(mapped))):
        _refused.append(os.strerror(ctypes.get_errno()))


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
