"""One pass over one tensor for any number of probes, and the rounds in which figures get what they ask for."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cuvee.engine.fused.builder import Builder, Figures, Program, Unfusable
from cuvee.engine.fused.feed import Feed, Worker
from cuvee.engine.fused.figures import wanted
from cuvee.engine.fused.selection import Gathering, Probe, Window
from cuvee.engine.fused.stages import ballot, thinned
from cuvee.engine.kernels.library import Kernels
from cuvee.engine.kernels.operations import TILE, Code, Picked
from cuvee.plan.nodes import Apply, Node, walk

_BINS = {"high": 32768, "low": 65536}
_MOST = 4 << 20  # magnitudes of one tensor that may be gathered
_TABLE = 65536  # 32-bit counts; `high` counts in two halves


@dataclass(slots=True)
class Tally:
    """What a probe found so far, over all its tensors."""

    probe: Probe
    tables: list[Any] = field(default_factory=list)
    entries: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.probe.kind in _BINS:
            count = max(len(self.probe.bits), 1)
            self.tables = [(ctypes.c_uint64 * _BINS[self.probe.kind])() for _ in range(count)]

    def found(self) -> list[Any]:
        return self.tables or [self.entries[place] for place in sorted(self.entries)]


@dataclass(frozen=True, slots=True)
class Part:
    """A probe at one tensor: the stage there, its place among the tensors of the figure, and where results go."""

    node: Apply
    place: int
    tally: Tally


_TALLYING = threading.Lock()


def sweep(
    feed: Feed, worker: Worker, kernels: Kernels, parts: Sequence[Part], known: Mapping[int, Figures]
) -> None:
    """Run the parts over a tensor; Unfusable where a value is not finite."""
    for every in sorted({part.tally.probe.every for part in parts}):
        together = [part for part in parts if part.tally.probe.every == every]
        builder = Builder(known)
        builder.expect([root for part in together for root in _roots(part)])
        results = [_emit(builder, part, feed.total) for part in together]
        run(
            feed,
            worker,
            kernels,
            builder.program(),
            feed.total if feed.resident else feed.step,
            None,
            every=every,
        )
        with _TALLYING:
            for part, gathered in zip(together, results, strict=True):
                _take(part, gathered(), kernels)


def run(
    feed: Feed,
    worker: Worker,
    kernels: Kernels,
    program: Program,
    step: int,
    write: Callable[[int, int, memoryview], None] | None,
    out_size: int = 0,
    every: int = 1,
) -> None:
    """Run a program over a tensor, or one tile of `every`; finished blocks go to `write(first, count, bytes)`."""
    area = worker.registers_at(program.registers)
    mark = worker.blocks.used
    out, view = worker.blocks.take(step * out_size)
    skipped = every if feed.resident else 1
    for first, count, inputs in feed.blocks(program.reads, worker.blocks, step, every // skipped):
        if kernels.run(program.ops, program.count, inputs, out, first, count, area, skipped):
            raise Unfusable("a value is not finite")
        if write is not None:
            write(first, count, view[: count * out_size])
    worker.blocks.used = mark


def gather(figures: Sequence[Gathering], go: Callable[[list[tuple[int, Tally]]], None]) -> list[list[Any]]:
    """Run figures to their ends in common passes; `go` makes one pass for (number of the figure, tally) pairs."""
    values: list[list[Any]] = [[] for _ in figures]
    asked: dict[int, Probe] = {}

    def step(number: int, send: Callable[[], Probe]) -> None:
        try:
            asked[number] = send()
        except StopIteration as end:
            asked.pop(number, None)
            values[number] = end.value

    for number, figure in enumerate(figures):
        step(number, lambda figure=figure: next(figure))  # type: ignore[misc]
    while asked:
        tallies = [(number, Tally(probe)) for number, probe in sorted(asked.items())]
        go(tallies)
        for number, tally in tallies:
            step(number, lambda n=number, t=tally: figures[n].send(t.found()))  # type: ignore[misc]
    return values


def pending(root: Node, known: Mapping[int, Figures]) -> list[tuple[Apply, str]]:
    """Stages that lack a figure while everything below them is known, with the next figure each needs."""
    ready: dict[int, bool] = {}
    found: list[tuple[Apply, str]] = []
    for node in walk(root):
        below = all(ready[id(child)] for child in node.children)
        lacking = _lacking(node, known)
        ready[id(node)] = below and lacking is None
        if below and lacking is not None and isinstance(node, Apply):
            found.append((node, lacking))
    return found


def _lacking(node: Node, known: Mapping[int, Figures]) -> str | None:
    if not isinstance(node, Apply):
        return None
    have = known.get(id(node), {})
    return next((figure for figure in wanted(node) if figure not in have), None)


def _roots(part: Part) -> Iterable[Node]:
    return (*part.node.inputs, *part.node.inputs) if part.tally.probe.kind == "norms" else part.node.inputs


def _emit(builder: Builder, part: Part, total: int) -> Callable[[], list[Any]]:
    """The operations of a probe; what to call for its results once they ran."""
    probe, node = part.tally.probe, part.node
    lines = -(-total // TILE)
    if probe.kind == "pick":
        return _pick(builder, probe, node, -(-lines // probe.every) * TILE)
    if probe.kind in ("high", "low", "tied"):
        return _count(builder, probe, node)
    if probe.kind == "gram":
        values = [builder.use(child) for child in node.inputs]
        sums = []
        for i, a in enumerate(values):
            for b in values[i:]:
                sums.append(_lines(lines))
                builder.emit(Code.DOT, None, a, b, data=ctypes.addressof(sums[-1]))
        for value in values:
            builder.release(value)
        return lambda: sums
    if probe.kind == "signs":
        figure, entries, judged = ballot(builder, node)
        builder.emit(Code.SIGN, figure, figure)
        sums = [_lines(lines)]
        builder.emit(Code.SUM, None, figure, data=ctypes.addressof(sums[0]))
        for value in (figure, *entries, *judged):
            builder.release(value)
        return lambda: sums
    sums = []
    for value in (builder.use(node.inputs[0]), thinned(builder, node, builder.known.get(id(node), {}))):
        size = builder.new()
        builder.emit(Code.ABS, size, value)
        sums.append(_lines(lines))
        builder.emit(Code.SUM, None, size, data=ctypes.addressof(sums[-1]))
        builder.release(size)
        builder.release(value)
    return lambda: sums


def _pick(builder: Builder, probe: Probe, node: Apply, total: int) -> Callable[[], list[Any]]:
    value = builder.use(node.inputs[0])
    room = min(total, _MOST)
    places = [_Places(room) for _ in probe.windows]
    for (low, high), place in zip(probe.windows, places, strict=True):
        builder.emit(Code.PICK, None, value, bits=low, key=high, count=room, data=place.address)
    builder.release(value)
    return lambda: [place.window(bounds) for place, bounds in zip(places, probe.windows, strict=True)]


class _Places:
    """Where the machine puts the magnitudes it picks; memory comes when it is written."""

    def __init__(self, room: int) -> None:
        self._data = mmap.mmap(-1, ctypes.sizeof(Picked) + 4 * (room + 16))
        self._head = Picked.from_buffer(self._data)
        self.address = ctypes.addressof(self._head)

    def window(self, bounds: tuple[int, int]) -> Window:
        head = self._head
        keys = None
        if head.picked >= 0:
            keys = (ctypes.c_uint32 * head.picked).from_buffer_copy(self._data, ctypes.sizeof(Picked))
        return Window(bounds, head.less, head.low, head.high, keys)


def _count(builder: Builder, probe: Probe, node: Apply) -> Callable[[], list[Any]]:
    value = builder.use(node.inputs[0])
    if probe.kind == "tied":
        counts = [_one_count() for _ in probe.bits]
        for bits, count in zip(probe.bits, counts, strict=True):
            builder.emit(Code.TIED, None, value, bits=bits, data=ctypes.addressof(count))
        builder.release(value)
        return lambda: [count.value for count in counts]
    code = Code.HIGH if probe.kind == "high" else Code.LOW
    tables = []
    for bits in probe.bits or (0,):
        tables.append((ctypes.c_uint32 * _TABLE)())
        builder.emit(code, None, value, bits=bits, data=ctypes.addressof(tables[-1]))
    builder.release(value)
    return lambda: tables


def _take(part: Part, gathered: list[Any], kernels: Kernels) -> None:
    tally = part.tally
    if not tally.tables:
        tally.entries[part.place] = gathered
        return
    bins = _BINS[tally.probe.kind]
    for table, counts in zip(tally.tables, gathered, strict=True):
        for half in range(0, _TABLE, bins):
            kernels.add(table, ctypes.addressof(counts) + 4 * half, bins)


def _one_count() -> Any:
    return ctypes.c_int64(0)


def _lines(count: int) -> Any:
    return (ctypes.c_double * count)()
