"""The bytes of a tensor's inputs, block by block in reused, aligned memory; and where results are put.

Reads are positional, never mapped. What is small enough is read once and kept for all passes over it. What lies in
memory already is used where it is. Any trouble with a file is `Unfusable`: the generic path meets it again and says
what is wrong.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from cuvee.core.tensors import Decoded, Extent, Held, Pieces
from cuvee.engine.fused.ahead import open_input
from cuvee.engine.fused.builder import Unfusable
from cuvee.engine.kernels.operations import REGISTER, TILE, Input
from cuvee.engine.spent import Stopwatch
from cuvee.plan.nodes import Read

Key = tuple[str, str]  # source key, tensor name
Lies: TypeAlias = Extent | Held | Pieces | Decoded
ALIGNED = 4096
_LARGE = 2 << 20  # bytes of a large page
PIECE = 4 << 20  # bytes asked for at once
_RUNS = 8  # blocks for one call of the compiled machine; hashed and written together


@dataclass(slots=True)
class Arena:
    """Memory of one worker: one buffer that only grows, handed out from its start."""

    buffer: mmap.mmap | None = None
    view: memoryview = field(default_factory=lambda: memoryview(b""))
    address: int = 0
    used: int = 0

    def reserve(self, nbytes: int) -> None:
        """Start anew with room for at least this much."""
        self.used = 0
        if self.buffer is None or len(self.view) < nbytes:
            self.buffer = _mapped(max(padded(nbytes), ALIGNED))
            self.view = memoryview(self.buffer)
            self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.buffer))

    def take(self, nbytes: int) -> tuple[int, memoryview]:
        """The next `nbytes`: address and view."""
        begin = self.used
        self.used += padded(nbytes)
        if self.used > len(self.view):
            raise MemoryError("the arena is smaller than what is taken from it")
        return self.address + begin, self.view[begin : begin + nbytes]


def _mapped(nbytes: int) -> mmap.mmap:
    """Memory in large pages, where the system has them: few of them have to be looked up."""
    found = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if nbytes >= _LARGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            found.madvise(mmap.MADV_HUGEPAGE)
    return found


def view_of(address: int, nbytes: int) -> memoryview:
    """The bytes at an address; whoever owns them must outlive the view."""
    return memoryview((ctypes.c_char * nbytes).from_address(address)).cast("B")


def padded(nbytes: int) -> int:
    """Rounded up to whole pages."""
    return -(-nbytes // ALIGNED) * ALIGNED


def parts_of(lies: Lies) -> tuple[Extent, ...]:
    """The runs of bytes in files, in the tensor's order."""
    if isinstance(lies, (Held, Decoded)):
        return ()
    return lies.parts if isinstance(lies, Pieces) else (lies,)


def same(extents: Mapping[Key, Lies]) -> dict[Key, Key]:
    """For each input the first one that is the same bytes of files, such as a base below several adapters."""
    firsts: dict[Lies, Key] = {}
    plain = (
        key if isinstance(lies, Decoded) else firsts.setdefault(lies, key) for key, lies in extents.items()
    )
    return dict(zip(extents, plain, strict=True))


@contextmanager
def opened(extents: Mapping[Key, Lies], *, exactly: bool = False) -> Iterator[dict[Path, int]]:
    """File descriptors of all inputs; Unfusable when one cannot be opened. `exactly`: see `open_input`."""
    files: dict[Path, int] = {}
    try:
        for extent in (part for lies in extents.values() for part in parts_of(lies)):
            if extent.path not in files:
                files[extent.path] = open_input(extent.path, exactly)
        yield files
    except OSError as error:
        raise Unfusable(str(error)) from error
    finally:
        for number in files.values():
            os.close(number)


@dataclass(frozen=True, slots=True)
class _Run:
    """Bytes [begin, end) of a tensor, and where in an open file its first byte would be; `own` unless another input
    stands in.
    """

    begin: int
    end: int
    file: int
    offset: int
    own: bool


class Feed:
    """The inputs of one output tensor. `resident`: all that lie in files are read once, and stay for all passes."""

    def __init__(
        self,
        extents: Mapping[Key, Lies],
        files: Mapping[Path, int],
        total: int,
        *,
        resident: bool,
        step: int,
        watch: Stopwatch | None = None,
        consumed: Callable[[int], None] = lambda nbytes: None,
    ) -> None:
        self.same = same(extents)
        self.extents = extents = {key: lies for key, lies in extents.items() if self.same[key] == key}
        self.total = total
        self.step = max(1, min(step, total))
        self.span = max(1, min(_RUNS * step, total))
        self.watch = watch or Stopwatch()
        self.parts: Sequence[tuple[int, int]] = ()  # runs of elements that spans are of; nothing: all
        self._consumed = consumed
        self._held = {key: lies.address for key, lies in extents.items() if isinstance(lies, Held)}
        self._filled = {
            key: list(_runs(lies, files)) for key, lies in extents.items() if not isinstance(lies, Held)
        }
        self.resident = resident or not self._filled
        self._made = {key: lies for key, lies in extents.items() if isinstance(lies, Decoded)}
        self._slots: dict[Key, tuple[int, memoryview]] = {}  # memory for a run of what is decoded
        self._seen: dict[Key, int] = {}
        self._homes: dict[Key, int] = {}  # where what is read on the first pass over it stays
        self._sampled: dict[Key, int] = {}  # one tile of how many is there already

    def room(self, out_size: int) -> int:
        """Bytes of arena that a pass over the inputs needs, besides registers."""
        count = self.total if self.resident else self.step
        inputs = sum(padded(count * self._size(key)) for key in self._filled)
        inputs += 0 if self.resident else sum(padded(self.span * self._size(key)) for key in self._made)
        return inputs + padded(self.span * out_size)

    def load(self, arena: Arena) -> None:
        """Find room for everything, where the feed is resident; it is read by the first pass over it."""
        if self.resident:
            for key in self._filled:
                address, view = arena.take(self.extents[key].nbytes)
                if key not in self._made and len(self._filled[key]) == 1:
                    self._homes[key] = address
                    continue
                self._fill(key, view, 0)
                self._note(key, len(view))
                self._held[key] = address
            self.watch.lap("reading")

    def inputs(self, reads: Sequence[Read], arena: Arena) -> Any:
        """What the compiled machine reads by itself, with memory for `step` elements of each or for all that stays."""
        found = (Input * len(reads))()
        taken: dict[Key, int] = {}  # memory for a run of what is read; of the same bytes there is one
        self._slots = {}
        for place, key in zip(found, self._keys(reads), strict=True):
            place.size = self._size(key)
            if key in self._held:
                place.file, place.memory = -1, self._held[key]
            elif key in self._made:
                place.file = -1
                if key not in self._slots:
                    self._slots[key] = arena.take(self.span * place.size)
            else:
                place.file, place.offset = self._filled[key][0].file, self._filled[key][0].offset
                if key in self._homes:
                    place.memory, place.stays, place.seen = self._homes[key], 1, self._sampled.get(key, 0)
                    continue
                if key not in taken:
                    taken[key] = arena.take(self.step * place.size)[0]
                place.memory = taken[key]
        return found

    def spans(self, reads: Sequence[Read], every: int = 1, inputs: Any = None) -> Iterator[tuple[int, int]]:
        """(first element, elements) of runs for one call each; who reads ahead hears of each that was worked on.

        `inputs` are those of the reads: each is pointed at where the run lies. `every` above 1: one tile of so many is
        looked at, by the same pattern in all runs.
        """
        grain = TILE * every
        span = -(-self.span // grain) * grain if every > 1 else self.span
        span = TILE if every > 1 and self._slots else span  # only what is looked at is decoded
        keys = self._keys(reads)
        filled = [key for key in dict.fromkeys(keys) if key not in self._held]
        ends = self._ends(filled)
        for first, stop in self.parts or ((0, self.total),):
            while first < stop:
                bound = min(stop, next((end for end in ends if end > first), self.total))
                count = min(span, bound - first)
                self._point(keys, inputs, first, count)
                yield first, count
                if every == 1:
                    for key in filled:
                        self._note(key, (first + count) * self._size(key))
                first = first + count if every == 1 else -(-(first + count) // grain) * grain
        for key in self._homes.keys() & set(filled):
            if every > 1:
                self._sampled.setdefault(key, every)
            elif not self.parts:
                self._held[key] = self._homes[key]

    def _ends(self, keys: Sequence[Key]) -> list[int]:
        """Elements at which a run of one of the inputs ends, besides the last; whole tiles, or Unfusable."""
        found = {run.end // self._size(key) for key in keys for run in self._filled[key][:-1]}
        if any(end % TILE for end in found):
            raise Unfusable("an input is cut within a tile")
        return sorted(found)

    def _point(self, keys: Sequence[Key], inputs: Any, first: int, count: int) -> None:
        """Tell where elements [first, first + count) of the inputs lie; what is decoded is decoded now."""
        if inputs is None:
            if any(len(self._filled[key]) != 1 for key in keys if key not in self._held):
                raise Unfusable("an input lies in several places")
            return
        for key, (_, view) in self._slots.items():
            self._fill(key, view[: count * self._size(key)], first * self._size(key))
        for place, key in zip(inputs, keys, strict=True):
            if key in self._slots:
                place.memory = self._slots[key][0] - first * place.size
            elif key not in self._held and len(self._filled[key]) > 1:
                run = next(run for run in self._filled[key] if run.end > first * place.size)
                place.file, place.offset = run.file, run.offset
        if self._slots:
            self.watch.lap("reading")

    def blocks(self, reads: Sequence[Read], arena: Arena, step: int) -> Iterator[tuple[int, int, Any]]:
        """(first element, elements, addresses of the inputs) for runs of at most `step` elements."""
        keys = self._keys(reads)
        addresses = (ctypes.c_void_p * len(keys))()
        filled = () if self.resident else [key for key in dict.fromkeys(keys) if key in self._filled]
        slots = {key: arena.take(step * self._size(key)) for key in filled}
        for first in range(0, self.total, step):
            count = min(step, self.total - first)
            for key, (_, view) in slots.items():  # once, however many of the reads ask for it
                size = self._size(key)
                self._fill(key, view[: count * size], first * size)
                self._note(key, (first + count) * size)
            for place, key in enumerate(keys):
                addresses[place] = (
                    slots[key][0] if key in slots else self._held[key] + first * self._size(key)
                )
            self.watch.lap("reading")
            yield first, count, addresses
            self.watch.lap("summarising")  # a pass that writes charged its work already

    def _keys(self, reads: Sequence[Read]) -> list[Key]:
        return [self.same[read.source, read.meta.name] for read in reads]

    def _size(self, key: Key) -> int:
        return self.extents[key].nbytes // max(self.total, 1)

    def _fill(self, key: Key, view: memoryview, offset: int) -> None:
        if key in self._made:
            self._made[key].fill(view, offset // self._size(key))
            return
        done = 0
        for run in self._filled[key]:
            end = min(len(view), run.end - offset)
            while done < end:
                part = view[done : min(end, done + PIECE)]
                got = os.preadv(run.file, [part], run.offset + offset + done)
                if got == 0:
                    raise Unfusable("the file ends early")
                done += got

    def _note(self, key: Key, end: int) -> None:
        """Tell who reads ahead how far this input was read for the first time."""
        seen = self._seen.get(key, 0)
        if end > seen:
            self._seen[key] = end
            own = (min(end, run.end) - max(seen, run.begin) for run in self._filled[key] if run.own)
            self._consumed(sum(nbytes for nbytes in own if nbytes > 0))


def _runs(lies: Lies, files: Mapping[Path, int]) -> Iterator[_Run]:
    begin = 0
    parts = parts_of(lies)
    for part, own in zip(parts, lies.own if isinstance(lies, Pieces) else (True,) * len(parts), strict=True):
        yield _Run(begin, begin + part.nbytes, files[part.path], part.offset - begin, own)
        begin += part.nbytes


@dataclass(slots=True)
class Worker:
    """The memory of one thread: blocks of inputs and output, and registers."""

    blocks: Arena = field(default_factory=Arena)
    registers: Arena = field(default_factory=Arena)

    def registers_at(self, count: int) -> int:
        """The address of this many registers."""
        self.registers.reserve(count * REGISTER)
        return self.registers.address
