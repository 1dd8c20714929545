"""Whether files lie in the page cache: asked of the system page by page, without reading anything.

Where the system does not tell, the answer is None, never a guess. Must not know what the files hold.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from contextlib import suppress

from cuvee.core.limits import MIB
from cuvee.core.tensors import Extent

_LOOKS = 64  # bytes that are asked for
_PROBES = 2  # runs that are read to find out how fast
_RUN = 8 * MIB
SLOW = 200e6  # bytes a second: below it a catalogue costs less than the waiting


def resident(number: int, offset: int) -> bool | None:
    """Whether the page cache holds the byte of an open file; None where the system does not tell."""
    flag = getattr(os, "RWF_NOWAIT", None)
    if flag is None:
        return None
    try:
        return os.preadv(number, [bytearray(1)], offset, flag) == 1
    except OSError as error:
        return False if error.errno == errno.EAGAIN else None


def missing(extents: Sequence[Extent]) -> list[Extent] | None:
    """Of runs spread evenly over the extents, those whose first byte is not in the page cache.

    None where that is not known.
    """
    total = sum(extent.nbytes for extent in extents)
    step, found, begin, wanted = max(1, total // _LOOKS), [], 0, 0
    for extent in extents:
        places = []
        while wanted < begin + extent.nbytes:
            places.append(extent.offset + wanted - begin)
            wanted += step
        told = _looked(extent, places)
        if told is None:
            return None
        found += told
        begin += extent.nbytes
    return found


def _looked(extent: Extent, places: Sequence[int]) -> list[Extent] | None:
    if not places:
        return []
    end, found = extent.offset + extent.nbytes, []
    try:
        number = os.open(extent.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        for place in places:
            told = resident(number, place)
            if told is None:
                return None
            if not told:
                found.append(Extent(extent.path, place, min(_RUN, end - place)))
    finally:
        os.close(number)
    return found


def slow(extents: Sequence[Extent]) -> bool:
    """Whether these extents, which are not in the page cache, come slower than `SLOW`; a few of them are read."""
    chosen = extents[:: max(1, len(extents) // _PROBES)][:_PROBES]
    began, got = time.monotonic(), 0
    for extent in chosen:
        with suppress(OSError):
            number = os.open(extent.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                got += len(os.pread(number, extent.nbytes, extent.offset))
            finally:
                os.close(number)
    return 0 < got < SLOW * (time.monotonic() - began)


def cold(extents: Sequence[Extent]) -> bool:
    """Whether most of the extents have to be read from a disk that is slower than `SLOW`; False where nobody knows."""
    lacking = missing(extents)
    return lacking is not None and 2 * len(lacking) > _LOOKS and slow(lacking)
