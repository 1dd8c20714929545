"""The pass that makes a catalogue: every block of base and experts is read once, hashed and compared.

`changes` is the reference of what C does (`catalogue_scan.c`), which is used where it can be had and agrees. Must not
know where catalogues are kept.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from cuvee.core import native
from cuvee.core.lazy import numpy
from cuvee.core.tensors import TensorMeta
from cuvee.sources.bits import bits_of
from cuvee.sources.catalogue import DIGEST, Change, Found, Sketch, step_of
from cuvee.sources.source import Source

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

SOURCE = Path(__file__).with_name("catalogue_scan.c")
KINDS = {"bfloat16": 0, "float16": 1, "float32": 2}
MOST = 1 << 16  # different magnitudes of a tensor that are told apart (besides those of 16 bits)
TABLE = 8 * (1 << 15) + 12 * 2 * MOST  # bytes of `Magnitudes`
_PIECE = 1 << 16  # elements whose differences are held at once


class _Table(ctypes.Structure):
    _fields_ = (
        ("plain", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("room", ctypes.c_int64),
        ("used", ctypes.c_int64),
    )


@dataclass(slots=True)
class Magnitudes:
    """How often each magnitude stands in a tensor, as far as there are not too many different ones."""

    plain: Array = field(default_factory=lambda: numpy.zeros(1 << 15, numpy.uint64))
    keys: Array = field(default_factory=lambda: numpy.zeros(2 * MOST, numpy.uint32))
    counts: Array = field(default_factory=lambda: numpy.zeros(2 * MOST, numpy.uint64))
    used: int = 0

    def found(self) -> tuple[Array, Array] | None:
        """Bits in ascending order, and counts; None where there are more than can be told apart."""
        if self.used > MOST:
            return None
        high, rest = numpy.flatnonzero(self.plain), numpy.flatnonzero(self.keys)
        keys = numpy.concatenate([(high << 16).astype(numpy.uint32), self.keys[rest]])
        counts = numpy.concatenate([self.plain[high], self.counts[rest]]).astype(numpy.int64)
        order = numpy.argsort(keys)
        return keys[order], counts[order]

    def add(self, keys: Array) -> None:
        """Count these bits."""
        plain = keys[keys & 0xFFFF == 0] >> 16
        self.plain += numpy.bincount(plain, minlength=1 << 15).astype(numpy.uint64)
        if self.used <= MOST:
            self._merge(*numpy.unique(keys[keys & 0xFFFF != 0], return_counts=True))

    def _merge(self, keys: Array, counts: Array) -> None:
        both = numpy.concatenate([self.keys[: self.used], keys])
        known, places = numpy.unique(both, return_inverse=True)
        summed = numpy.bincount(places, numpy.concatenate([self.counts[: self.used], counts]), len(known))
        self.used = len(known)
        if self.used <= MOST:
            self.keys[: self.used], self.counts[: self.used] = known, summed.astype(numpy.uint64)


def values(bits: Array, dtype: str) -> Array:
    """Elements as float32, from their bits."""
    if dtype == "bfloat16":
        bits = bits.astype("<u4") << 16
    found: Array = bits.view("<f2" if dtype == "float16" else "<f4").astype(numpy.float32)
    return found


def changes(base: Array, tuned: Array, dtype: str, table: Magnitudes, out: Array) -> tuple[int, int]:
    """Differences into `out` in float64; how many bits differ, and the bits of the largest float32 difference."""
    with numpy.errstate(invalid="ignore", over="ignore"):
        ground, fine = values(base, dtype), values(tuned, dtype)
        out[:] = fine.astype(numpy.float64) - ground
        keys = (fine - ground).view(numpy.uint32) & 0x7FFFFFFF
    table.add(keys)
    return int(numpy.count_nonzero(base != tuned)), int(keys.max(initial=0))


def products(deltas: Array, count: int) -> Array:
    """All products of the rows' first `count` elements."""
    total = numpy.zeros((len(deltas), len(deltas)))
    with numpy.errstate(invalid="ignore", over="ignore"):
        for first in range(0, count, _PIECE):
            part = deltas[:, first : min(first + _PIECE, count)]
            total += part @ part.T
    return total


def ground(bits: Array, dtype: str) -> tuple[float, float]:
    """The sum of squares and the largest magnitude."""
    with numpy.errstate(invalid="ignore", over="ignore"):
        wide = values(bits, dtype).astype(numpy.float64)
        return float(wide @ wide), float(numpy.abs(wide).max(initial=0.0))


class Native:
    """The same in C."""

    def __init__(self, path: Path) -> None:
        pointer = ctypes.c_void_p
        library, wide, narrow = ctypes.CDLL(str(path)), ctypes.c_int64, ctypes.c_int32
        self._scan, self._products = library.cuvee_scan, library.cuvee_products
        self._scan.restype, self._products.restype = wide, None
        self._scan.argtypes = [pointer, pointer, wide, narrow, pointer, pointer, pointer]
        self._ground = library.cuvee_ground
        self._ground.restype, self._ground.argtypes = None, [pointer, wide, narrow, pointer]
        self._products.argtypes = [pointer, wide, narrow, wide, pointer]

    def changes(
        self, base: Array, tuned: Array, dtype: str, table: Magnitudes, out: Array
    ) -> tuple[int, int]:
        """See `changes`."""
        largest = ctypes.c_uint32()
        where = (table.plain.ctypes.data, table.keys.ctypes.data, table.counts.ctypes.data)
        held = _Table(*where, len(table.keys), table.used)
        given = (base.ctypes.data, tuned.ctypes.data, len(base), KINDS[dtype], out.ctypes.data)
        moved = self._scan(*given, ctypes.byref(held), ctypes.byref(largest))
        table.used = held.used
        return moved, largest.value

    def ground(self, bits: Array, dtype: str) -> tuple[float, float]:
        """See `ground`."""
        found = numpy.empty(2)
        self._ground(bits.ctypes.data, len(bits), KINDS[dtype], found.ctypes.data)
        return float(found[0]), float(found[1])

    def products(self, deltas: Array, count: int) -> Array:
        """See `products`."""
        total = numpy.zeros((len(deltas), len(deltas)))
        self._products(deltas.ctypes.data, deltas.shape[1], len(deltas), count, total.ctypes.data)
        return total


class Reference:
    """All in NumPy."""

    changes = staticmethod(changes)
    products = staticmethod(products)
    ground = staticmethod(ground)


def scanner() -> Any:
    """What finds changes: C where it can be had and agrees with the reference."""
    return native.agreed(SOURCE, Native, _agrees) or Reference


def _agrees(loaded: Native) -> bool:
    """Whether C finds what the reference finds in random bits, NaN and infinity among them."""
    random = numpy.random.default_rng(11)
    for dtype in KINDS:
        width = "u4" if dtype == "float32" else "u2"
        base = random.integers(0, 1 << (32 if width == "u4" else 16), 3001, dtype=width)
        tuned = base + random.integers(0, 3, len(base)).astype(width)
        ours, theirs = Magnitudes(), Magnitudes()
        one, two = numpy.empty(len(base)), numpy.empty(len(base))
        if changes(base, tuned, dtype, ours, one) != loaded.changes(base, tuned, dtype, theirs, two):
            return False
        same = numpy.array_equal(one, two, equal_nan=True)
        rows = numpy.stack(
            [numpy.where(numpy.isfinite(one), numpy.clip(one, -1e30, 1e30), 0.0), numpy.arange(3001.0)]
        )
        near = numpy.allclose(products(rows, 2999), loaded.products(rows, 2999), rtol=1e-12)
        finite = numpy.nan_to_num(values(base, dtype)).view(numpy.uint32)
        sizes = ground(finite, "float32"), loaded.ground(finite, "float32")
        if not (same and near and numpy.allclose(*sizes, rtol=1e-12)) or any(
            not numpy.array_equal(a, b) for a, b in zip(_told(ours), _told(theirs), strict=True)
        ):
            return False
    return True


def _told(table: Magnitudes) -> tuple[Array, Array]:
    found = table.found()
    assert found is not None  # 3001 magnitudes are few
    return found


def scan(base: Source, experts: Sequence[Source], threads: int) -> Found:
    """One pass over base and experts. Memory: a block of each and a piece of its float64, for each thread."""
    sources = (base, *experts)
    sketches: dict[str, Sketch] = {}
    digests_of: tuple[dict[str, Array], ...] = tuple({} for _ in sources)
    names = list(dict.fromkeys(name for source in sources for name in source.tensors))

    def one(name: str) -> None:
        metas = [source.tensors.get(name) for source in sources]
        there = [place for place, meta in enumerate(metas) if place and meta is not None and meta == metas[0]]
        like = metas[0]
        measured = None
        if like is not None and there and measurable(like):
            measured = Measuring(like, len(experts), there)
            for block in range(measured.blocks):
                start, stop = block * measured.step, min((block + 1) * measured.step, like.numel)
                measured.take(block, {p: bits_of(sources[p], name, start, stop) for p in (0, *there)})
            sketches[name] = measured.sketch()
            for place, digests in measured.digests.items():
                digests_of[place][name] = digests
        for place, meta in enumerate(metas):
            if meta is not None and (measured is None or place not in measured.digests):
                digests_of[place][name] = _hashed(sources[place], name)

    with ThreadPoolExecutor(threads, thread_name_prefix="cuvee-scan") as pool:
        list(pool.map(one, names))
    ordered = {name: sketches[name] for name in names if name in sketches}
    digests = tuple({name: part[name] for name in names if name in part} for part in digests_of)

    def magnitudes(place: int, name: str) -> tuple[Array, Array] | None:
        change = ordered[name].changes[place]
        return (
            None
            if change is None or change.keys is None or change.counts is None
            else (change.keys, change.counts)
        )

    return Found(ordered, digests, magnitudes)


def _hashed(source: Source, name: str) -> Array:
    meta = source.tensors[name]
    step = step_of(meta.dtype.size)
    starts = range(0, meta.numel, step)
    found = [digest(bits_of(source, name, start, min(start + step, meta.numel))) for start in starts]
    return numpy.frombuffer(b"".join(found), numpy.uint8).reshape(len(found), DIGEST)


def digest(bits: Array) -> bytes:
    """What is kept of a block's bytes."""
    return blake3(bits.view(numpy.uint8).data).digest(DIGEST)


class Measuring:
    """A tensor of float type that the base has and some experts share, on its way block by block.

    `there` are the places of these experts (the base is place 0) among `count` of them. Memory: a piece of the
    differences, and a table of magnitudes for each expert. Not thread-safe.
    """

    def __init__(self, meta: TensorMeta, count: int, there: Sequence[int]) -> None:
        self.step = step_of(meta.dtype.size)
        self.blocks = -(-meta.numel // self.step)
        self.there = tuple(there)
        self._kind = meta.dtype.name
        self._sketch = Sketch(
            numpy.zeros((count, self.blocks), bool),
            numpy.full((self.blocks, count, count), numpy.nan),
            numpy.zeros(self.blocks),
            numpy.zeros(self.blocks),
            [None] * count,
        )
        self.digests = {place: numpy.zeros((self.blocks, DIGEST), numpy.uint8) for place in (0, *self.there)}
        self._tables = {place: Magnitudes() for place in self.there}
        self._largest = {place: numpy.zeros(self.blocks, numpy.uint32) for place in self.there}
        self._moved = {place: numpy.zeros(self.blocks, numpy.int64) for place in self.there}
        self._deltas = numpy.empty((len(self.there), min(_PIECE, meta.numel)))
        self._machine = scanner()

    def take(self, block: int, bits: Mapping[int, Array]) -> None:
        """One block, as bits by place; each block once."""
        sketch, machine = self._sketch, self._machine
        sketch.ground[block], sketch.peak[block] = machine.ground(bits[0], self._kind)
        for place, own in bits.items():
            self.digests[place][block] = numpy.frombuffer(digest(own), numpy.uint8)
        total = numpy.zeros((len(self.there), len(self.there)))
        for first in range(0, len(bits[0]), _PIECE):
            count = min(_PIECE, len(bits[0]) - first)
            for row, place in enumerate(self.there):
                pair = bits[0][first : first + count], bits[place][first : first + count]
                out = self._deltas[row, :count]
                moved, most = machine.changes(*pair, self._kind, self._tables[place], out)
                self._moved[place][block] += moved
                self._largest[place][block] = max(most, self._largest[place][block])
            total += machine.products(self._deltas, count)
        places = numpy.array(self.there) - 1
        sketch.gram[block][numpy.ix_(places, places)] = total
        for place in self.there:
            sketch.same[place - 1, block] = not self._moved[place][block]

    def sketch(self) -> Sketch:
        """What was found, when every block was taken."""
        for place in self.there:
            energy = self._sketch.gram[:, place - 1, place - 1].copy()
            told = self._tables[place].found() or (None, None)
            change = Change(energy, self._largest[place], self._moved[place], *told)
            self._sketch.changes[place - 1] = change
        return self._sketch


def measurable(meta: TensorMeta | None) -> bool:
    """Whether changes of a tensor are measured, besides its being hashed."""
    return meta is not None and meta.dtype.name in KINDS and bool(meta.numel)
