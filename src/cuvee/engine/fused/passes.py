"""One pass over one tensor for any number of probes, and the rounds in which figures get what they ask for."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cuvee.engine.fused.builder import Builder, Figures, Program, Unfusable
from cuvee.engine.fused.feed import Feed, Worker, view_of
from cuvee.engine.fused.figures import wanted
from cuvee.engine.fused.probes import TABLE, probed, roots
from cuvee.engine.fused.selection import Probe
from cuvee.engine.kernels.library import Kernels
from cuvee.plan.nodes import Apply, Node, walk

_BINS = {"high": 32768, "low": 65536}


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
        builder = Builder(known, same=feed.same)
        builder.expect([root for part in together for root in roots(part.tally.probe, part.node)])
        results = [probed(builder, part.tally.probe, part.node, part.place, feed.total) for part in together]
        run(feed, worker, kernels, builder.program(), None, every=every)
        with _TALLYING:
            for part, gathered in zip(together, results, strict=True):
                _take(part, gathered(), kernels)


def run(
    feed: Feed,
    worker: Worker,
    kernels: Kernels,
    program: Program,
    write: Callable[[int, int, memoryview], None] | None,
    out_size: int = 0,
    every: int = 1,
    place: int | None = None,
) -> None:
    """Run a program over a tensor, or one tile of `every`; finished spans go to `write(first, count, bytes)`.

    `place`: the address of the whole output, where it lies in memory; spans are made there then.
    """
    area = worker.registers_at(program.registers)
    mark = worker.blocks.used
    inputs = feed.inputs(program.reads, worker.blocks)
    out, view = worker.blocks.take(0 if place is not None else feed.span * out_size)
    for first, count in feed.spans(program.reads, every, inputs):
        if place is not None:
            out, view = place + first * out_size, view_of(place + first * out_size, count * out_size)
        flags, reading = kernels.stream(
            program.ops, inputs, out, out_size, (first, count), feed.step, every, area
        )
        if flags:
            raise Unfusable("a value is not finite, or a file cannot be read")
        feed.watch.charge("reading", reading)
        if write is None:
            feed.watch.lap("summarising")
        else:
            write(first, count, view[: count * out_size])
    worker.blocks.used = mark


def gather(
    figures: Sequence[Generator[Any, Any, Any]], go: Callable[[list[tuple[int, Tally]]], None]
) -> list[list[Any]]:
    """Run figures to their ends in common passes; `go` makes one pass for (number of the figure, tally) pairs."""
    values: list[list[Any]] = [[] for _ in figures]
    asked: dict[int, Probe | tuple[Probe, ...]] = {}

    def step(number: int, send: Callable[[], Probe | tuple[Probe, ...]]) -> None:
        try:
            asked[number] = send()
        except StopIteration as end:
            asked.pop(number, None)
            values[number] = end.value

    for number, figure in enumerate(figures):
        step(number, lambda figure=figure: next(figure))  # type: ignore[misc]
    while asked:
        tallies = {number: _tallies(asked[number]) for number in sorted(asked)}
        go([(number, tally) for number, own in tallies.items() for tally in own])
        for number, own in tallies.items():
            found: Any = [tally.found() for tally in own]
            found = found[0] if isinstance(asked[number], Probe) else found
            step(number, lambda n=number, f=found: figures[n].send(f))  # type: ignore[misc]
    return values


def _tallies(asked: Probe | tuple[Probe, ...]) -> list[Tally]:
    return [Tally(probe) for probe in ((asked,) if isinstance(asked, Probe) else asked)]


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


def lacking(roots: Sequence[Node], known: Mapping[int, Figures]) -> list[tuple[Apply, str]]:
    """What is pending below several roots, each once."""
    found = {id(node): (node, figure) for root in roots for node, figure in pending(root, known)}
    return list(found.values())


def _lacking(node: Node, known: Mapping[int, Figures]) -> str | None:
    if not isinstance(node, Apply):
        return None
    have = known.get(id(node), {})
    return next((figure for figure in wanted(node) if figure not in have), None)


def _take(part: Part, gathered: list[Any], kernels: Kernels) -> None:
    tally = part.tally
    if not tally.tables:
        tally.entries[part.place] = gathered
        return
    bins = _BINS[tally.probe.kind]
    for table, counts in zip(tally.tables, gathered, strict=True):
        for half in range(0, TABLE, bins):
            kernels.add(table, ctypes.addressof(counts) + 4 * half, bins)
