"""What a stage computes, as a graph of the machine's operations; emitted with registers freed after their last use.

Owns which operations are the same, and which two become one. Knows no stages and no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cuvee.core.dtypes import FLOAT32
from cuvee.engine.fused.builder import Builder, Value
from cuvee.engine.kernels.operations import Code
from cuvee.plan.nodes import Node


@dataclass(frozen=True, slots=True)
class Step:
    """One operation on earlier steps; an input of the stage where there is no code."""

    code: Code | None
    of: tuple[int, ...] = ()
    x: float = 0.0


@dataclass(slots=True)
class Graph:
    """Steps in the order in which they were asked for, each once; the first ones are the stage's inputs."""

    inputs: int
    steps: list[Step] = field(default_factory=list)
    _known: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.steps = [Step(None) for _ in range(self.inputs)]

    def add(self, code: Code, *of: int, x: float = 0.0) -> int:
        """The number of a step; that of an equal one where there is one already."""
        if code is Code.SCALE and x == 1:
            return of[0]
        step = Step(code, of, x)
        key = repr(step)  # tells 0.0 from -0.0
        if key not in self._known:
            self._known[key] = len(self.steps)
            self.steps.append(step)
        return self._known[key]

    def reachable(self, roots: Sequence[int]) -> list[int]:
        """The steps that these are made of, in their order."""
        found: set[int] = set()
        left = list(roots)
        while left:
            number = left.pop()
            if number not in found:
                found.add(number)
                left += self.steps[number].of
        return sorted(found)

    def uses(self, roots: Sequence[int]) -> dict[int, int]:
        """How often each of the steps that these are made of is used, roots as often as they are named."""
        found: dict[int, int] = {}
        for number in (
            *roots,
            *(operand for each in self.reachable(roots) for operand in self.steps[each].of),
        ):
            found[number] = found.get(number, 0) + 1
        return found

    def weighted_sum(self, roots: Sequence[int]) -> tuple[int, list[float]] | None:
        """The step that is the weighted sum of all inputs in their order, and the weights, where there is one and
        nothing else is made of the inputs.
        """
        uses = self.uses(roots)
        weights: dict[int, list[float]] = {}  # of sums of the first inputs
        for number in self.reachable(roots):
            term, step = self._term(number), self.steps[number]
            if term is not None and term[0] == 0:
                weights[number] = [term[1]]
            elif step.code is Code.ADD and step.of[0] in weights:
                before, after = weights[step.of[0]], self._term(step.of[1])
                once = all(uses[operand] == 1 for operand in step.of)
                if after is not None and after[0] == len(before) and once:
                    weights[number] = [*before, after[1]]
        whole = [number for number, found in weights.items() if len(found) == self.inputs > 1]
        if len(whole) != 1 or any(uses.get(number) != 1 for number in range(self.inputs)):
            return None
        return whole[0], weights[whole[0]]

    def _term(self, number: int) -> tuple[int, float] | None:
        """The input that a step is, or is a multiple of, and the factor."""
        step = self.steps[number]
        if step.code is None:
            return number, 1.0
        return (step.of[0], step.x) if step.code is Code.SCALE and step.of[0] < self.inputs else None


def emit(
    builder: Builder,
    graph: Graph,
    nodes: Sequence[Node],
    roots: Sequence[int],
    summed: tuple[int, Value] | None = None,
) -> list[Value]:
    """Emit what the roots are made of, the stage's inputs being these nodes; their values, each to be released once.

    Every input is read, whether it counts or not, so that one that is not finite is noticed. `summed`: a step that was
    emitted with all inputs already, and its value.
    """
    if summed is not None:
        graph.steps[summed[0]] = Step(None)
    order = graph.reachable(roots)
    emission = _Emission(builder, graph, nodes, graph.uses(roots), dict([summed] if summed else []))
    fused = dict(_products(graph, order, emission.uses))
    for number in order:
        if graph.steps[number].code is not None and number not in fused.values():
            emission.emit(number, fused.get(number))
    for number in range(graph.inputs):
        if number not in emission.uses and summed is None:
            builder.release(emission.value(number))
    for number in set(roots):
        for _ in range(roots.count(number) - 1):
            builder.hold(emission.value(number))
    return [emission.value(number) for number in roots]


@dataclass(slots=True)
class _Emission:
    """The values of steps that were emitted, and how often each is still used."""

    builder: Builder
    graph: Graph
    nodes: Sequence[Node]
    uses: dict[int, int] = field(default_factory=dict)
    values: dict[int, Value] = field(default_factory=dict)

    def value(self, number: int) -> Value:
        if number not in self.values:
            self.values[number] = Value(self.builder.use(self.nodes[number]).register, FLOAT32)
        return self.values[number]

    def emit(self, number: int, product: int | None) -> None:
        """One step; with the number of a product that it adds, both in one operation."""
        step = self.graph.steps[number]
        operands, code, x = step.of, step.code, step.x
        if product is not None:
            inner = self.graph.steps[product]
            (other,) = (operand for operand in operands if operand != product)
            operands, code, x = (other, *inner.of), Code.MULTIPLY_ADD, inner.x
        assert code is not None  # an input is not emitted
        given = [self.value(operand) for operand in operands]
        self.values[number] = self.builder.new()
        self.builder.emit(code, self.values[number], *given, x=x)
        for operand in operands:
            self.uses[operand] -= 1
            if not self.uses[operand]:
                self.builder.release(self.value(operand))


def _products(graph: Graph, order: Sequence[int], uses: dict[int, int]) -> Iterator[tuple[int, int]]:
    """Sums, each with a product by a number that is added nowhere else: two roundings in one operation."""
    for number in order:
        step = graph.steps[number]
        if step.code is not Code.ADD or step.of[0] == step.of[1]:
            continue
        for operand in reversed(step.of):
            if graph.steps[operand].code is Code.SCALE and uses[operand] == 1:
                yield number, operand
                break
