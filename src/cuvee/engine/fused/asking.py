"""A stage's own summary, its questions answered by passes of the machine instead of blocks.

The summary runs on a stream that has no blocks. What it asks (sums of figures) is looked up among the
answers that are there; where one is missing it is left, a pass finds that one, and it runs from its start.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cuvee.engine.fused.builder import Builder, Unfusable
from cuvee.engine.fused.graph import Graph, emit
from cuvee.engine.fused.selection import Gathering, Probe
from cuvee.engine.fused.trace import traced
from cuvee.engine.fused.traced import Traced
from cuvee.engine.kernels.operations import Code
from cuvee.methods.contract import Block, Place, Uniforms
from cuvee.methods.exact_sums import Exact, expansion
from cuvee.methods.registry import stage
from cuvee.plan.nodes import Apply


class _Asked(Exception):
    """What has no answer yet: a function of blocks, whose results are summed."""

    def __init__(self, function: Callable[[Block], Any]) -> None:
        self.function = function


@dataclass(frozen=True, slots=True)
class Question:
    """What a stage's summary of some tensors asks after so many answers.

    The function it asks about is found again wherever it is needed, since functions do not travel to other machines.
    """

    stage: str
    values: tuple[tuple[str, Any], ...]
    shapes: tuple[tuple[int, ...], ...]
    places: tuple[Place, ...]
    inputs: int
    answers: tuple[Any, ...] = ()

    def summary(self) -> Any:
        """The summary; raises `_Asked` where an answer is missing, Unfusable where it asks for something else."""
        summarise = stage(self.stage).summarise
        if summarise is None:
            raise Unfusable("no summary")
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in self.values}
        return traced(lambda: summarise(Asking(self), **values))

    def function(self) -> Callable[[Block], Any]:
        """What is asked about next."""
        try:
            self.summary()
        except _Asked as asked:
            return asked.function
        raise Unfusable("nothing is asked")


@dataclass(slots=True)
class Asking:
    """The stream that a summary is given (`methods.summaries.Answering`)."""

    question: Question
    _asked: int = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(map(math.prod, self.question.shapes))

    @property
    def inputs(self) -> int:
        return self.question.inputs

    def blocks(self) -> Iterator[Block]:
        raise Unfusable("a summary that reads blocks itself")

    def uniforms(self, number: int) -> Uniforms:
        raise Unfusable("a summary that draws")

    def totals_by(
        self, figures: Callable[[Block], list[Any]], key: Callable[[Block], Any]
    ) -> dict[Any, list[float]]:
        """As `summaries.totals_by`."""
        answer = self._answer(_Asked(figures))
        groups: dict[Any, list[Exact]] = {}
        members = zip(self.question.shapes, self.question.places, answer, strict=True)
        for number, (shape, place, found) in enumerate(members):
            own = groups.setdefault(key(Block([], 0, shape, number, place)), [Exact() for _ in found])
            for total, terms in zip(own, found, strict=True):
                total.extend(terms)
        return {group: [_finite(total.value()) for total in own] for group, own in groups.items()}

    def _answer(self, asked: _Asked) -> Any:
        self._asked += 1
        if self._asked > len(self.question.answers):
            raise asked
        return self.question.answers[self._asked - 1]


def summary_of(nodes: Sequence[Apply]) -> Gathering:
    """The summary that these applications share, for each with its place among them."""
    first, shapes = nodes[0], tuple(node.shape for node in nodes)
    question = Question(first.stage, first.values, shapes, tuple(n.place for n in nodes), len(first.inputs))
    while True:
        try:
            found = question.summary()
        except _Asked:
            answer = yield Probe("totals", ask=question)
            question = replace(question, answers=(*question.answers, answer))
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


def _traced(probe: Probe, node: Apply, number: int) -> tuple[Graph, Any]:
    """What the probe's function makes of a block of traced values."""
    if not isinstance(probe.ask, Question):
        raise Unfusable("a probe without a question")
    graph, function = Graph(len(node.inputs)), probe.ask.function()
    tensors: Any = [Traced(graph, index) for index in range(graph.inputs)]
    return graph, traced(lambda: function(Block(tensors, 0, node.shape, number, node.place)))


def _finite(total: float) -> float:
    if not math.isfinite(total):
        raise Unfusable("sums are not finite")
    return total
