"""A stage's own summary, its questions answered by passes of the machine instead of blocks.

The summary runs on a stream that has no blocks. What it asks (sums of figures, the largest magnitudes) is looked up
among the answers that are there; where one is missing it is left, a pass finds that one, and it runs from its start.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cuvee.engine.fused.builder import Builder, Unfusable, Value
from cuvee.engine.fused.chosen import Chosen
from cuvee.engine.fused.graph import Graph, emit
from cuvee.engine.fused.selection import Found, Gathering, Probe, cuts
from cuvee.engine.fused.trace import floats, traced
from cuvee.engine.fused.traced import Traced
from cuvee.engine.kernels.library import Kernels
from cuvee.engine.kernels.operations import Code
from cuvee.engine.streams import uniforms_of
from cuvee.methods.contract import Block, Uniforms
from cuvee.methods.exact_sums import Exact, expansion
from cuvee.methods.registry import stage
from cuvee.methods.summaries import Ties
from cuvee.plan.nodes import Apply

Figures = Callable[[Block], list[Any]]


class _Asked(Exception):
    """The question that has no answer yet, as the passes that find it."""

    def __init__(self, question: Gathering) -> None:
        self.question = question


@dataclass(slots=True)
class Asking:
    """The stream that a summary is given (`methods.summaries.Answering`)."""

    nodes: Sequence[Apply]
    kernels: Kernels
    answers: list[Any]
    _asked: int = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(node.shape) for node in self.nodes)

    @property
    def inputs(self) -> int:
        return len(self.nodes[0].inputs)

    def blocks(self) -> Iterator[Block]:
        raise Unfusable("a summary that reads blocks itself")

    def uniforms(self, number: int) -> Uniforms:
        return uniforms_of(self.nodes[number])

    def totals_by(self, figures: Figures, key: Callable[[Block], Any]) -> dict[Any, list[float]]:
        """As `summaries.totals_by`."""
        answer = self._answer(lambda: _sums(figures))
        groups: dict[Any, list[Exact]] = {}
        for number, (node, found) in enumerate(zip(self.nodes, answer, strict=True)):
            group = key(Block([], 0, node.shape, number, node.place))
            own = groups.setdefault(group, [Exact() for _ in found])
            for total, terms in zip(own, found, strict=True):
                total.extend(terms)
        return {group: [_finite(total.value()) for total in own] for group, own in groups.items()}

    def tops(self, magnitude: Callable[[Block], Any], counts: Sequence[int], ties: Ties) -> list[Any]:
        """As `summaries.tops`, of counts."""
        answer = self._answer(lambda: _asked(cuts(counts, self.sizes, self.kernels, ties=ties), magnitude))
        return [Selected(tuple(own[place] for own in answer)) for place in range(len(counts))]

    def _answer(self, question: Callable[[], Gathering]) -> Any:
        self._asked += 1
        if self._asked > len(self.answers):
            raise _Asked(question())
        return self.answers[self._asked - 1]


@dataclass(frozen=True, slots=True)
class Selected:
    """The largest magnitudes of several tensors, in place of a `Cut`; its mask is that of traced magnitudes."""

    chosen: tuple[Chosen, ...]

    def mask(self, magnitude: Any, block: Block) -> Traced:
        one = self.chosen[block.number]
        if one.kept <= 0 or one.kept >= one.total:
            found: Traced = magnitude.filled(float(one.kept > 0), "truth")
            return found
        trimmed: Traced = magnitude.kept(one.bits, one.ties)
        return trimmed


def summary_of(nodes: Sequence[Apply], kernels: Kernels) -> Gathering:
    """The summary that these applications share, for each with its place among them."""
    step = stage(nodes[0].stage)
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in nodes[0].values}
    summarise = step.summarise
    if summarise is None:
        raise Unfusable("no summary")
    answers: list[Any] = []
    while True:
        asking = Asking(nodes, kernels, answers)
        try:
            found = traced(lambda asking=asking: summarise(asking, **values))  # type: ignore[misc]
        except _Asked as asked:
            answers.append((yield from asked.question))
            continue
        return [(found, place) for place in range(len(nodes))]


def summed(builder: Builder, probe: Probe, node: Apply, number: int, lines: Any) -> Callable[[], list[Any]]:
    """Emit the sums of a probe's figures over one tensor; `lines` makes memory for the sums of one."""
    graph, figures = _traced(probe, node, number)
    if not all(isinstance(figure, Traced) for figure in figures):
        raise Unfusable("a figure that is not elementwise")
    factors = [(f.index, f.other) if f.kind == "product" else (f.index,) for f in figures]
    flat = [index for pair in factors for index in pair]
    values = iter(emit(builder, graph, node.inputs, flat))
    sums = []
    for pair in factors:
        operands = [next(values) for _ in pair]
        sums.append(lines())
        builder.emit(
            Code.DOT if len(pair) == 2 else Code.SUM, None, *operands, data=ctypes.addressof(sums[-1])
        )
        for value in operands:
            builder.release(value)
    return lambda: [expansion(list(line)) for line in sums]


def judged(builder: Builder, probe: Probe, node: Apply, number: int) -> Value:
    """The magnitude that a probe asks for; to be released."""
    graph, magnitude = _traced(probe, node, number)
    (value,) = emit(builder, graph, node.inputs, [floats(magnitude).index])
    return value


def _traced(probe: Probe, node: Apply, number: int) -> tuple[Graph, Any]:
    """What the probe's function makes of a block of traced values."""
    graph, function = Graph(len(node.inputs)), probe.ask
    if function is None:
        raise Unfusable("a probe without a question")
    tensors: Any = [Traced(graph, index) for index in range(graph.inputs)]
    return graph, traced(lambda: function(Block(tensors, 0, node.shape, number, node.place)))


def _sums(figures: Figures) -> Gathering:
    found = yield Probe("totals", ask=figures)
    return found


def _asked(figure: Gathering, magnitude: Callable[[Block], Any]) -> Generator[Probe, Found, Any]:
    """The same figure of a magnitude that a summary names."""
    found: Found | None = None
    while True:
        try:
            probe = next(figure) if found is None else figure.send(found)
        except StopIteration as end:
            return end.value
        found = yield replace(probe, ask=magnitude)


def _finite(total: float) -> float:
    if not math.isfinite(total):
        raise Unfusable("sums are not finite")
    return total
