"""The pass that makes a catalogue: every block of base and experts is read once, hashed and compared.

Owns how a tensor goes through it piece by piece; what a look finds says `catalogue_look`. Must not know where
catalogues are kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from cuvee.core.lazy import numpy
from cuvee.core.tensors import TensorMeta
from cuvee.formats.bytes_file import ByteFile
from cuvee.sources import catalogue_look
from cuvee.sources.bits import Reader, reading_of
from cuvee.sources.catalogue import DIGEST, Change, Found, Sketch, step_of
from cuvee.sources.catalogue_look import KINDS, Looked, Magnitudes, scanner
from cuvee.sources.catalogue_ranking import Bins, Ranking
from cuvee.sources.source import Source

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

PIECE = 1 << 18  # bytes of each source that are looked at while the processor's cache holds them
LINE = 64  # bytes that the cache holds or not
Reading = Callable[[int, int, int], "Array"]  # bits of a source, by its place, from one element to another


def scan(base: Source, experts: Sequence[Source], threads: int) -> Found:
    """One pass over base and experts. Memory: a piece of each, and tables of magnitudes, for each thread."""
    sources = (base, *experts)
    sketches: dict[str, Sketch] = {}
    digests_of: tuple[dict[str, Array], ...] = tuple({} for _ in sources)
    names = list(dict.fromkeys(name for source in sources for name in source.tensors))
    desk = Desk(sources)
    ranking = Ranking(base.tensors, desk.pairs)

    def one(name: str) -> None:
        reading = desk.reading(name)
        metas = [source.tensors.get(name) for source in sources]
        there = [place for place, meta in enumerate(metas) if place and meta is not None and meta == metas[0]]
        like = metas[0]
        measured = None
        if like is not None and there and measurable(like):
            measured = Measuring(like, len(experts), there, desk, binned=True)
            for block in range(measured.blocks):
                measured.take(block, reading)
            sketches[name] = measured.sketch()
            for place, change, bins in measured.given_up():
                ranking.take(name, place, change, bins)
            for place, digests in measured.digests.items():
                digests_of[place][name] = digests
        for place, meta in enumerate(metas):
            if meta is not None and (measured is None or place not in measured.digests):
                digests_of[place][name] = _hashed(desk, place, name)

    with ThreadPoolExecutor(threads, thread_name_prefix="cuvee-scan") as pool:
        list(pool.map(one, names))
        ordered = {name: sketches[name] for name in names if name in sketches}
        wholes = ranking.end(ordered, lambda work, some: list(pool.map(work, some)))
    digests = tuple({name: part[name] for name in names if name in part} for part in digests_of)

    def magnitudes(place: int, name: str) -> tuple[Array, Array] | None:
        change = ordered[name].changes[place]
        return (
            None
            if change is None or change.keys is None or change.counts is None
            else (change.keys, change.counts)
        )

    return Found(ordered, digests, magnitudes, wholes=wholes)


def _hashed(desk: Desk, place: int, name: str) -> Array:
    meta = desk.sources[place].tensors[name]
    step, reading = step_of(meta.dtype.size), desk.reading(name)
    found = [block_digest(reading, place, meta, start) for start in range(0, meta.numel, step)]
    return numpy.frombuffer(b"".join(found), numpy.uint8).reshape(len(found), DIGEST)


class Desk:
    """Where pieces of sources lie while they are looked at: one of each source for each thread, again and again; and
    tables that nobody counts in at the moment. Thread-safe.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self._own = threading.local()
        self._files: dict[Path, ByteFile] = {}  # their reads are positional: threads share them
        self._free: list[Magnitudes] = []
        self._guard = threading.Lock()

    def tables(self, count: int, numel: int) -> list[Magnitudes]:
        """Empty tables, for a tensor of so many elements."""
        with self._guard:
            found = [self._free.pop() if self._free else scanner().table() for _ in range(count)]
        for table in found:
            table.begin(numel)
        return found

    def give_back(self, tables: Sequence[Magnitudes]) -> None:
        """These are not needed any longer."""
        with self._guard:
            self._free += tables

    def reading(self, name: str) -> Reading:
        """What reads a tensor; a piece holds until the next one of its source."""

        known: dict[int, Reader] = {}

        def read(place: int, start: int, stop: int) -> Array:
            room: dict[int, Array] = self._own.__dict__.setdefault("room", {})
            if place not in room:
                memory = numpy.empty(PIECE + LINE, numpy.uint8)
                room[place] = memory[-memory.ctypes.data % LINE :][:PIECE]
            if place not in known:
                known[place] = reading_of(self.sources[place], name, self._files)
            return known[place](start, stop, room[place])

        return read

    def pairs(self, name: str, place: int) -> Iterator[tuple[Array, Array]]:
        """A tensor of the base and of an expert (by its place among the experts), piece by piece."""
        meta, reading = self.sources[0].tensors[name], self.reading(name)
        for start in range(0, meta.numel, step_of(meta.dtype.size)):
            for first, last in _pieces(meta, start):
                yield reading(0, first, last), reading(place + 1, first, last)


def block_digest(reading: Reading, place: int, meta: TensorMeta, start: int) -> bytes:
    """What is kept of the bytes of a block that begins with an element."""
    hasher = blake3()
    for first, last in _pieces(meta, start):
        hasher.update(_bytes(reading(place, first, last)))
    return hasher.digest(DIGEST)


def _pieces(meta: TensorMeta, start: int) -> list[tuple[int, int]]:
    """Runs of elements of the block that begins with one."""
    stop, step = min(start + step_of(meta.dtype.size), meta.numel), PIECE // meta.dtype.size
    return [(first, min(first + step, stop)) for first in range(start, stop, step)]


def _bytes(bits: Array) -> memoryview:
    return memoryview(bits.view(numpy.uint8).data)


class Measuring:
    """A tensor of float type that the base has and some experts share, on its way block by block.

    `there` are the places of these experts (the base is place 0) among `count` of them. Memory: a table of magnitudes
    for each expert, and (`binned`) the bins of those that are given up. Not thread-safe.
    """

    def __init__(
        self, meta: TensorMeta, count: int, there: Sequence[int], desk: Desk, *, binned: bool = False
    ) -> None:
        self.step = step_of(meta.dtype.size)
        self.blocks = -(-meta.numel // self.step)
        self.there = tuple(there)
        self._meta = meta
        self._sketch = Sketch(
            numpy.zeros((count, self.blocks), bool),
            numpy.full((self.blocks, count, count), numpy.nan),
            numpy.zeros(self.blocks),
            numpy.zeros(self.blocks),
            [None] * count,
        )
        self.digests = {place: numpy.zeros((self.blocks, DIGEST), numpy.uint8) for place in (0, *self.there)}
        self._desk, self._tables = desk, desk.tables(len(self.there), meta.numel)
        self._largest = numpy.zeros((len(self.there), self.blocks), numpy.uint32)
        self._moved = numpy.zeros((len(self.there), self.blocks), numpy.int64)
        self._machine = scanner()
        self._bins: dict[int, Bins] = {}
        self._binned, self._begun = binned, False

    def take(self, block: int, reading: Reading) -> None:
        """One block; each block once."""
        sketch, looked = self._sketch, Looked(len(self.there))
        hashers: list[Any] = [blake3(), *(None for _ in self.there)]  # None: those of the base so far
        for first, last in _pieces(self._meta, block * self.step):
            self._piece([reading(place, first, last) for place in (0, *self.there)], looked, hashers)
        own = hashers[0].digest(DIGEST)
        for place, hasher in zip(self.digests, hashers, strict=True):
            self.digests[place][block] = numpy.frombuffer(
                hasher.digest(DIGEST) if hasher else own, numpy.uint8
            )
        sketch.ground[block], sketch.peak[block] = looked.size
        self._largest[:, block], self._moved[:, block] = looked.largest, looked.moved
        places = numpy.array(self.there) - 1
        sketch.gram[block][numpy.ix_(places, places)] = looked.gram
        sketch.same[places, block] = looked.moved == 0

    def _piece(self, bits: list[Array], looked: Looked, hashers: list[Any]) -> None:
        self._machine.look(bits[0], bits[1:], self._meta.dtype.name, self._tables, looked)
        if self._binned and self._meta.numel > catalogue_look.MOST:
            self._bin(bits)
        ground = hashers[0].copy()
        hashers[0].update(_bytes(bits[0]))
        for place, moved in enumerate(looked.moved, start=1):
            if moved and hashers[place] is None:
                hashers[place] = ground.copy()
            if moved:
                hashers[place].update(_bytes(bits[place]))

    def _bin(self, bits: list[Array]) -> None:
        """Count the bins of what was given up in the first piece; in float32 of what will probably be, too."""
        if not self._begun:
            kind = self._meta.dtype.name
            enough = catalogue_look.NEARLY if kind == "float32" else catalogue_look.MOST
            some = [number for number, table in enumerate(self._tables) if table.different > enough]
            self._bins = {number: Bins(kind) for number in some}
            self._begun = True
        for number, bins in self._bins.items():
            bins.add(bits[0], bits[1 + number])

    def given_up(self) -> Iterator[tuple[int, Change, Bins | None]]:
        """The experts (by their place among them) whose magnitudes are not known now that all is looked at, with their
        bins where these were counted.
        """
        for number, place in enumerate(self.there):
            change = self._sketch.changes[place - 1]
            if change is not None and change.keys is None:
                yield place - 1, change, self._bins.pop(number, None)

    def sketch(self) -> Sketch:
        """What was found, when every block was taken."""
        for number, place in enumerate(self.there):
            energy = self._sketch.gram[:, place - 1, place - 1].copy()
            told = self._tables[number].found() or (None, None)
            change = Change(energy, self._largest[number], self._moved[number], *told)
            self._sketch.changes[place - 1] = change
        self._desk.give_back(self._tables)
        return self._sketch


def measurable(meta: TensorMeta | None) -> bool:
    """Whether changes of a tensor are measured, besides its being hashed."""
    return meta is not None and meta.dtype.name in KINDS and bool(meta.numel)
