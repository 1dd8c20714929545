"""A catalogue made while its sources are read for something else: each block is looked at when it has just been read.

Owns how far each tensor has come and what was found so far, in little memory. It reads the blocks again, from the page
cache, where they lie at that moment. No failure here is an error of anybody else: what cannot be read is left out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import numpy
from cuvee.errors import CuveeError
from cuvee.sources.catalogue import DIGEST, Found, Sketch, fingerprints, keep, step_of
from cuvee.sources.catalogue_look import TABLE
from cuvee.sources.catalogue_scan import PIECE, Desk, Measuring, block_digest, measurable
from cuvee.sources.catalogue_store import packed, unpacked
from cuvee.sources.source import Source

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

MOST_TABLES = 64 << 20  # bytes of packed magnitudes that are held until the end; later tensors have none


def room_of(sources: int) -> int:
    """Bytes that one thread takes to look at a tensor of so many sources: pieces and magnitudes."""
    return sources * (PIECE + TABLE)


class _Tensor:
    """One tensor on its way: measured against the base where that has it, else hashed."""

    def __init__(self, desk: Desk, places: Collection[int], name: str, based: bool) -> None:
        self.name = name
        self._reading = desk.reading(name)
        self.metas = {place: desk.sources[place].tensors[name] for place in sorted(places)}
        base = self.metas.get(0) if based else None
        there = [p for p, meta in self.metas.items() if p and meta == base]
        self.measured = (
            Measuring(base, len(desk.sources) - 1, there, desk)
            if base is not None and there and measurable(base)
            else None
        )
        self._taken = 0
        own = set() if self.measured is None else set(self.measured.digests)
        self.hashed: dict[int, list[bytes]] = {place: [] for place in self.metas if place not in own}
        self.guard = threading.Lock()

    def reach(self, stop: int) -> None:
        """Look at all blocks that end at or before element `stop`, and at the last one when that is the end."""
        if self.measured is not None:
            meta, step = self.metas[0], self.measured.step
            while self._taken < self.measured.blocks and min((self._taken + 1) * step, meta.numel) <= stop:
                self.measured.take(self._taken, self._reading)
                self._taken += 1
        for place, found in self.hashed.items():
            meta, step = self.metas[place], step_of(self.metas[place].dtype.size)
            while len(found) * step < meta.numel and min((len(found) + 1) * step, meta.numel) <= stop:
                found.append(block_digest(self._reading, place, meta, len(found) * step))

    def end(self) -> None:
        """Look at all that is left."""
        self.reach(max(meta.numel for meta in self.metas.values()))

    def digests(self) -> dict[int, Array]:
        """Of all blocks, by place."""
        hashed = {
            place: numpy.frombuffer(b"".join(found), numpy.uint8).reshape(len(found), DIGEST)
            for place, found in self.hashed.items()
        }
        return hashed if self.measured is None else {**hashed, **self.measured.digests}


@dataclass(slots=True)
class Recording:
    """A catalogue of sources (the base first, where `based`) of which `read` tells by tensor which are looked at.

    Memory: for each thread a piece of every source and, for every expert, a table of magnitudes; until the end what is
    kept of a tensor. Thread-safe.
    """

    sources: Sequence[Source]
    read: Mapping[str, frozenset[int]]
    based: bool
    lost: bool = False  # something could not be read: there is no catalogue
    _before: tuple[str | None, ...] = ()
    _open: dict[str, _Tensor] = field(default_factory=dict)
    _sketches: dict[str, Sketch] = field(default_factory=dict)
    _digests: list[dict[str, Array]] = field(default_factory=list)
    _tables: dict[tuple[int, str], Array] = field(default_factory=dict)
    _held: int = 0
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _desk: Desk = field(init=False)

    def __post_init__(self) -> None:
        self._desk = Desk(self.sources)
        self._before = fingerprints(self.sources)
        self._digests = [{} for _ in self.sources]
        self.lost = None in self._before

    @property
    def tensors(self) -> int:
        """How many tensors were looked at whole, each counted for every source."""
        return sum(map(len, self._digests))

    def reach(self, name: str, stop: int) -> None:
        """Elements [0, stop) of a tensor have just been read."""
        if not self.lost and name in self.read and name not in self._digests_of(name):
            self._with(name, partial(_Tensor.reach, stop=stop))

    def end(self, name: str) -> None:
        """All of a tensor has been read."""
        if self.lost or name not in self.read or name in self._digests_of(name):
            return
        self._with(name, self._ended)

    def _with(self, name: str, work: Callable[[_Tensor], None]) -> None:
        with self._guard:
            if name not in self._open:
                try:
                    self._open[name] = _Tensor(self._desk, self.read[name], name, self.based)
                except (CuveeError, OSError, LookupError, MemoryError):
                    self.lost = True
                    return
            tensor = self._open[name]
        with tensor.guard:
            try:
                work(tensor)
            except (CuveeError, OSError, ValueError, LookupError, MemoryError):
                self.lost = True

    def _digests_of(self, name: str) -> Collection[str]:
        return self._digests[min(self.read[name])]

    def _ended(self, tensor: _Tensor) -> None:
        """Look at the rest; what is kept of a tensor until the end: magnitudes packed, as far as there is room."""
        tensor.end()
        sketch = None if tensor.measured is None else tensor.measured.sketch()
        with self._guard:
            self._open.pop(tensor.name, None)
            for place, digests in tensor.digests().items():
                self._digests[place][tensor.name] = digests
        if sketch is None:
            return
        for place, change in enumerate(sketch.changes):
            if change is None:
                continue
            if change.keys is not None and change.counts is not None:
                self._hold(place, tensor.name, change.keys, change.counts)
            sketch.changes[place] = replace(change, keys=None, counts=None)
        with self._guard:
            self._sketches[tensor.name] = sketch

    def _hold(self, place: int, name: str, keys: Array, counts: Array) -> None:
        data = packed(keys, counts)
        with self._guard:
            if self._held + len(data) <= MOST_TABLES:
                self._held += len(data)
                self._tables[place, name] = data

    def keep(self) -> bool:
        """Keep what was found of whole tensors, if the files are what they were at the start; whether it is kept."""
        if self.lost or not any(self._digests):
            return False
        found = Found(self._sketches, self._digests, self._magnitudes, self._complete())
        try:
            return keep(self.sources, found, self._before)
        except (CuveeError, OSError):
            return False

    def _magnitudes(self, place: int, name: str) -> tuple[Array, Array] | None:
        data = self._tables.get((place, name))
        return None if data is None else unpacked(data)

    def _complete(self) -> bool:
        """Whether every tensor that can be compared with the base's was."""
        return self.based and all(
            name in self._sketches and self._sketches[name].changes[place] is not None
            for place, expert in enumerate(self.sources[1:])
            for name, meta in self.sources[0].tensors.items()
            if measurable(meta) and expert.tensors.get(name) == meta
        )
