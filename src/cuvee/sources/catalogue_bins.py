"""Counting magnitudes of float32 differences in bins, and in some bins one by one.

`Reference` says what C does (`catalogue_ranks.c`), which is used where it can be had and agrees. Must not know where
elements come from.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cuvee.core import native
from cuvee.core.lazy import numpy
from cuvee.sources.catalogue_ranks import BINNED, BINS, FINE, IN_BIN, LEAST, bins_of

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

SOURCE = Path(__file__).with_name("catalogue_ranks.c")


class Counter(Protocol):
    """What counts; all arrays are whole and of the machine's order."""

    def binned(self, base: Array, tuned: Array, counts: Array) -> None:
        """Add how many differences of float32 lie in each bin to `counts` (BINNED numbers of 32 bits)."""

    def refined(self, base: Array, tuned: Array, rows: Array, counts: Array) -> None:
        """Add how often each magnitude is there, in bins that have a row in `counts` (by 512, 32 bits)."""


def _keys(base: Array, tuned: Array) -> Array:
    with numpy.errstate(invalid="ignore", over="ignore"):
        found: Array = (tuned - base).view(numpy.uint32) & 0x7FFFFFFF
    return found


class Reference:
    """All in NumPy."""

    def binned(self, base: Array, tuned: Array, counts: Array) -> None:
        """See `Counter`."""
        counts += numpy.bincount(bins_of(_keys(base, tuned)), minlength=BINNED).astype(numpy.uint32)

    def refined(self, base: Array, tuned: Array, rows: Array, counts: Array) -> None:
        """See `Counter`."""
        keys = _keys(base, tuned)
        own = rows[bins_of(keys)].astype(numpy.int64)
        there = own >= 0
        places = own[there] << FINE | keys[there] & (IN_BIN - 1)
        counts += numpy.bincount(places, minlength=counts.size).astype(numpy.uint32).reshape(counts.shape)


class Native:
    """The same in C."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self._binned, self._refined = library.cuvee_binned, library.cuvee_refined
        self._binned.restype = self._refined.restype = None
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        self._binned.argtypes = [pointer, pointer, count, pointer]
        self._refined.argtypes = [pointer, pointer, count, pointer, pointer]

    def binned(self, base: Array, tuned: Array, counts: Array) -> None:
        """See `Counter`."""
        self._binned(base.ctypes.data, tuned.ctypes.data, len(base), counts.ctypes.data)

    def refined(self, base: Array, tuned: Array, rows: Array, counts: Array) -> None:
        """See `Counter`."""
        given = base.ctypes.data, tuned.ctypes.data, len(base)
        self._refined(*given, rows.ctypes.data, counts.ctypes.data)


def counter() -> Counter:
    """What counts: C where it can be had and agrees with the reference."""
    return native.agreed(SOURCE, Native, _agrees) or Reference()


def _agrees(loaded: Native) -> bool:
    """Whether C counts what the reference counts: random bits, the ends of bins, 0, NaN and infinity among them."""
    random = numpy.random.default_rng(12)
    ends = (
        numpy.array([0, 1, LEAST - 1, LEAST, LEAST + BINS - 1, LEAST + BINS], numpy.int64) << FINE
    ).ravel()
    special = numpy.r_[ends, ends + 1, ends[1:] - 1, 0x7F800000, 0x7FC00000].astype(numpy.uint32)
    bits = random.integers(0, 1 << 32, 5003, dtype=numpy.uint64).astype(numpy.uint32)
    near = random.integers(0x3A000000, 0x3A040000, 5000).astype(numpy.uint32)
    tuned = numpy.concatenate([special, bits, near]).view(numpy.float32)
    base = numpy.where(numpy.arange(len(tuned)) % 3 == 2, tuned[::-1], numpy.float32(0))
    rows = numpy.full(BINNED, -1, numpy.int16)
    rows[bins_of(near[::2])] = numpy.arange(len(near[::2])) % 300
    told = []
    for machine in (Reference(), loaded):
        counts, fine = numpy.zeros(BINNED, numpy.uint32), numpy.zeros((300, IN_BIN), numpy.uint32)
        machine.binned(base, tuned, counts)
        machine.refined(base, tuned, rows, fine)
        told.append((counts, fine))
    return all(map(numpy.array_equal, *told))
