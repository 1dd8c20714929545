"""One look at a run of elements of a base and its experts: what changes, how much, and how often by how much.

`Reference` says what C does (`catalogue_scan.c`), which is used where it can be had and agrees. Must not know where
elements come from.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cuvee.core import native
from cuvee.core.lazy import numpy

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

SOURCE = Path(__file__).with_name("catalogue_scan.c")
KINDS = {"bfloat16": 0, "float16": 1, "float32": 2}
MOST = (
    1 << 16
)  # different magnitudes of a tensor that are told apart (besides those of 16 bits); a power of 2
_PLAIN, _NEAR, _FIRST, _TILE = 1 << 15, 1 << 16, (127 - 30) << 11, 512  # as the C has them
_SLOTS = _PLAIN + _NEAR
_EARLY, NEARLY = 8192, 7168
_ROOM = 1 << 12  # entries of a hash table at first
TABLE = 4 * _SLOTS + 8 * 4 * MOST  # bytes of `Table`
_PIECE = 1 << 16  # elements whose differences the reference holds at once


class _Table(ctypes.Structure):
    _fields_ = (
        ("slots", ctypes.c_void_p),
        ("entries", ctypes.c_void_p),
        ("room", ctypes.c_int64),
        ("widest", ctypes.c_int64),
        ("narrowest", ctypes.c_int64),
        ("used", ctypes.c_int64),
        ("most", ctypes.c_int64),
        ("seen", ctypes.c_int64),
        ("large", ctypes.c_int64),
    )


class _Expert(ctypes.Structure):
    _fields_ = (
        ("bits", ctypes.c_void_p),
        ("table", ctypes.POINTER(_Table)),
        ("moved", ctypes.c_int64),
        ("largest", ctypes.c_uint32),
        ("idle", ctypes.c_int32),
    )


class Magnitudes(Protocol):
    """How often each magnitude stands in a tensor, one tensor after the other."""

    def begin(self, numel: int) -> None:
        """The elements of a tensor of this size are counted from now on."""

    def found(self) -> tuple[Array, Array] | None:
        """Bits in ascending order, and counts; None where there are more than can be told apart."""

    @property
    def different(self) -> int:
        """How many different ones, besides the coarse ones, there are so far; more than MOST once they are given up."""


class Counts:
    """The reference's."""

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, numel: int) -> None:
        """See `Magnitudes`."""
        self._lost = bool(numel >> 32)  # as C, which counts in 32 bits
        self._seen, self._large = 0, numel > MOST
        self._keys, self._counts = numpy.zeros(0, numpy.uint32), numpy.zeros(0, numpy.int64)

    def add(self, keys: Array) -> None:
        """Count these bits."""
        early = max(0, _EARLY - self._seen)
        for part in (keys[:early], keys[early:]):
            self._seen += len(part)
            if len(part) and not self._lost:
                self._merge(part)
            if self._seen == _EARLY and self._large and int(numpy.count_nonzero(_far(self._keys))) > NEARLY:
                self._lost = True

    def _merge(self, keys: Array) -> None:
        new, counts = numpy.unique(keys, return_counts=True)
        both = numpy.concatenate([self._counts, counts])
        self._keys, places = numpy.unique(numpy.concatenate([self._keys, new]), return_inverse=True)
        self._counts = numpy.bincount(places, both, len(self._keys)).astype(numpy.int64)
        self._lost = int(numpy.count_nonzero(self._keys & 0xFFFF)) > MOST

    def found(self) -> tuple[Array, Array] | None:
        """See `Magnitudes`."""
        return None if self._lost else (self._keys, self._counts)

    @property
    def different(self) -> int:
        """See `Magnitudes`."""
        return MOST + 1 if self._lost else int(numpy.count_nonzero(_far(self._keys)))


class Table:
    """C's. Its memory is used again and again: fresh pages cost more than counting."""

    def __init__(self, tell: Any, empty: Any) -> None:
        self._tell, self._empty = tell, empty
        self._slots, self._entries = (
            numpy.zeros(_SLOTS, numpy.uint32),
            numpy.zeros(4 * MOST, numpy.uint64),
        )
        places, room = (self._slots.ctypes.data, self._entries.ctypes.data), min(_ROOM, 2 * MOST)
        self.held = _Table(*places, room, 2 * MOST, room, 0, MOST)

    def begin(self, numel: int) -> None:
        """See `Magnitudes`."""
        self.held.most = -1 if numel >> 32 else MOST
        self.held.seen, self.held.large = 0, numel > MOST

    def found(self) -> tuple[Array, Array] | None:
        """See `Magnitudes`."""
        many = self._tell(ctypes.byref(self.held), None)
        told = numpy.empty(max(0, many), numpy.uint64)
        if many > 0:
            self._tell(ctypes.byref(self.held), told.ctypes.data)
        self._empty(ctypes.byref(self.held))
        told.sort()
        keys, counts = (told >> 32).astype(numpy.uint32), (told & 0xFFFFFFFF).astype(numpy.int64)
        return None if many < 0 else (keys, counts)

    @property
    def different(self) -> int:
        """See `Magnitudes`."""
        return max(int(self.held.used), MOST + 1 if self.held.used > self.held.most else 0)


@dataclass(slots=True)
class Looked:
    """What was found so far of `count` experts' changes: how many elements have other bits, the bits of the largest
    float32 difference, and all products; and the sum of squares and the largest magnitude of the base.
    """

    count: int
    moved: Array = field(init=False)
    largest: Array = field(init=False)
    gram: Array = field(init=False)
    size: Array = field(init=False)

    def __post_init__(self) -> None:
        self.moved, self.largest = numpy.zeros(self.count, numpy.int64), numpy.zeros(self.count, numpy.uint32)
        self.gram, self.size = numpy.zeros((self.count, self.count)), numpy.zeros(2)


def _far(keys: Array) -> Array:
    """Which magnitudes C counts in its hash table."""
    near = (keys & 0xFFF == 0) & (keys >> 12 >= _FIRST) & (keys >> 12 < _FIRST + _NEAR)
    found: Array = (keys & 0xFFFF != 0) & ~near
    return found


def values(bits: Array, dtype: str) -> Array:
    """Elements as float32, from their bits."""
    if dtype == "bfloat16":
        bits = bits.astype("<u4") << 16
    found: Array = bits.view("<f2" if dtype == "float16" else "<f4").astype(numpy.float32, copy=False)
    return found


class Reference:
    """All in NumPy."""

    table = Counts

    @staticmethod
    def look(base: Array, tuned: Sequence[Array], dtype: str, tables: Sequence[Any], out: Looked) -> None:
        """Add what some elements, as bits, tell to `out` and to each expert's table."""
        for first in range(0, len(base), _PIECE):
            piece = slice(first, first + _PIECE)
            _look(base[piece], [bits[piece] for bits in tuned], dtype, tables, out)


def _look(base: Array, tuned: Sequence[Array], dtype: str, tables: Sequence[Any], out: Looked) -> None:
    with numpy.errstate(invalid="ignore", over="ignore"):
        ground = values(base, dtype)
        wide = ground.astype(numpy.float64)
        rows = numpy.empty((len(tuned), len(base)))
        for place, bits in enumerate(tuned):
            fine = values(bits, dtype)
            keys = (fine - ground).view(numpy.uint32) & 0x7FFFFFFF
            tables[place].add(keys)
            out.moved[place] += numpy.count_nonzero(base != bits)
            out.largest[place] = max(out.largest[place], keys.max(initial=0))
            rows[place] = fine.astype(numpy.float64) - wide
        out.gram += rows @ rows.T
        out.size[0] += wide @ wide
        out.size[1] = numpy.maximum(out.size[1], numpy.abs(wide).max(initial=0.0))  # NaN stays


class Native:
    """The same in C."""

    def __init__(self, path: Path) -> None:
        pointer, narrow = ctypes.c_void_p, ctypes.c_int32
        library = ctypes.CDLL(str(path))
        self._look, self._told, self._emptied = library.cuvee_look, library.cuvee_told, library.cuvee_emptied
        self._look.restype, self._told.restype, self._emptied.restype = None, ctypes.c_int64, None
        self._told.argtypes, self._emptied.argtypes = [pointer, pointer], [pointer]
        many = (pointer, pointer, narrow, ctypes.c_int64, narrow, pointer, pointer, pointer)
        self._look.argtypes = list(many)

    def table(self) -> Table:
        """See `Magnitudes`."""
        return Table(self._told, self._emptied)

    def look(
        self, base: Array, tuned: Sequence[Array], dtype: str, tables: Sequence[Any], out: Looked
    ) -> None:
        """See `Reference.look`."""
        experts = (_Expert * len(tuned))()
        for place, (own, bits) in enumerate(zip(experts, tuned, strict=True)):
            own.bits, own.table = bits.ctypes.data, ctypes.pointer(tables[place].held)
            own.largest = out.largest[place]
        rows = numpy.empty((len(tuned), _TILE + 9))
        given = (base.ctypes.data, experts, len(tuned), len(base), KINDS[dtype])
        self._look(*given, rows.ctypes.data, out.gram.ctypes.data, out.size.ctypes.data)
        for place, own in enumerate(experts):
            out.moved[place] += own.moved
            out.largest[place] = own.largest


def scanner() -> Any:
    """What looks: C where it can be had and agrees with the reference."""
    return native.agreed(SOURCE, Native, _agrees) or Reference


def _agrees(loaded: Native) -> bool:
    """Whether C finds what the reference finds in random bits, NaN and infinity among them, and in finite ones."""
    random = numpy.random.default_rng(11)
    finite = ((False, False), (True, True), (True, False))
    return all(_same(loaded, _bits(random, dtype, which), dtype) for dtype in KINDS for which in finite)


def _bits(random: Any, dtype: str, finite: tuple[bool, bool]) -> list[Array]:
    """Of a base, an expert that is near it, one that is not, one that is equal in some tiles, and one that is in all;
    `finite`: the base, and the expert that is not near it.
    """
    width = "u4" if dtype == "float32" else "u2"
    top = numpy.dtype(width).itemsize * 8
    count = 10 * _TILE + 3
    draw = [random.integers(0, 1 << top, count, dtype=numpy.uint64).astype(width) for _ in range(2)]
    calm = numpy.array((1 << top) - 1 - (1 << top - 3), width)  # the second highest bit of the exponent is 0
    base, other = (bits & calm if own else bits for bits, own in zip(draw, finite, strict=True))
    near = base ^ random.integers(0, 4, count).astype(width)
    some = numpy.where(numpy.arange(count) < 2 * _TILE, base, near)
    return [base, near, other, some, base.copy()]


def _same(loaded: Native, bits: list[Array], dtype: str) -> bool:
    tables = [[machine.table() for _ in bits[1:]] for machine in (Reference, loaded)]
    ours, theirs = Looked(len(bits) - 1), Looked(len(bits) - 1)
    Reference.look(bits[0], bits[1:], dtype, tables[0], ours)
    loaded.look(bits[0], bits[1:], dtype, tables[1], theirs)
    counted = [[table.found() for table in some] for some in tables]
    for one, two in zip(*counted, strict=True):
        if one is None or two is None or not all(map(numpy.array_equal, one, two)):
            return False
    exact = numpy.array_equal(ours.moved, theirs.moved) and numpy.array_equal(ours.largest, theirs.largest)
    sums = ((ours.gram, theirs.gram), (ours.size, theirs.size))
    # what cancels in a product is compared with the largest
    return exact and all(
        numpy.allclose(
            one, two, rtol=1e-12, atol=1e-12 * numpy.nanmax(numpy.abs(one), initial=0), equal_nan=True
        )
        for one, two in sums
    )
