"""PCB merging on the compiled machine: the spans of sizes and scores, and what they combine.

Scores of all experts are computed by one operation, which every probe of a pass shares. Scores lie between −1 and 1;
they are searched as magnitudes in the same order. Must not import torch.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from cuvee.core.dtypes import FLOAT32
from cuvee.engine.fused.builder import Builder, Figures, Value
from cuvee.engine.fused.selection import Found, Gathering, Goal, Probe, Several, ranked, together
from cuvee.engine.kernels.library import Kernels
from cuvee.engine.kernels.operations import Balance, Code, Voter
from cuvee.methods.combine.pcb import Span, ranks
from cuvee.methods.parameters import each
from cuvee.plan.nodes import Apply

_ONE = 0x3F800000  # the bits of 1.0, which stand for a score of 0
By = Literal["size", "score"]


def balance(builder: Builder, node: Apply, values: Mapping[str, Any], figures: Figures) -> Value:
    """The result of `pcb`, its spans known."""
    deltas, scores, voters = _scored(builder, node, figures["sizes"])
    for voter, cut in zip(voters, figures["scores"], strict=True):
        voter.floor = cut.low
    memory = _memory(node, figures["sizes"], figures["scores"])
    _place(memory, deltas, scores)
    to = builder.new()
    builder.emit(Code.BALANCED, to, data=_address(builder, memory))
    for value in (*deltas, *scores):
        builder.release(value)
    return to


def judged(builder: Builder, node: Apply, by: By, number: int, *, least: int = 0) -> Value:
    """What a probe of an expert judges: its change, or magnitudes in the order of its scores; to be released.

    How much such a magnitude is below the one with the bits `least` does not matter.
    """
    if by == "size":
        return Value(builder.use(node.inputs[number]).register, FLOAT32)
    if id(node) not in builder.scores:  # registers that are never released
        builder.scores[id(node)] = _scored(builder, node, builder.known[id(node)]["sizes"])[1:]
    scores, voters = builder.scores[id(node)]
    floor = max(_score(least), 0.0)
    voters[number].floor = min(voters[number].floor, floor)
    to = builder.new()
    builder.emit(Code.ORDERED, to, scores[number])
    return to


def spans(by: str, nodes: Sequence[Apply], kernels: Kernels) -> Several:
    """The spans of all experts' sizes, or of their scores, over the tensors of these nodes."""
    total = sum(math.prod(node.shape) for node in nodes)
    values = dict(nodes[0].values)
    clamp, ratio = values["clamp"], values["ratio"]
    wanted = ranks(total, clamp, clamp) if by == "sizes" else ranks(total, 1 - ratio, 0.0)
    goals: list[Goal] = [lambda zeros, place=place: place for place in wanted]  # type: ignore[misc]
    experts = range(len(nodes[0].inputs))
    kind: By = "size" if by == "sizes" else "score"
    found = yield from together([_about(ranked(goals, total, kernels), kind, i) for i in experts])
    read = _size if by == "sizes" else _score
    own = [Span(*(read(rank.bits) for rank in places)) for _, places in found]
    return [own] * len(nodes)


def _about(figure: Gathering, by: By, number: int) -> Generator[Probe, Found, Any]:
    """The same figure of one expert's sizes or scores."""
    found: Found | None = None
    while True:
        try:
            probe = next(figure) if found is None else figure.send(found)
        except StopIteration as end:
            return end.value
        found = yield replace(probe, by=(by, number))


def _scored(
    builder: Builder, node: Apply, sizes: Sequence[Span]
) -> tuple[list[Value], list[Value], Sequence[Any]]:
    """The changes, the scores that one operation makes of them, and its voters, whom nobody asked for a score yet."""
    deltas = [Value(builder.use(child).register, FLOAT32) for child in node.inputs]
    scores = [builder.new() for _ in deltas]
    memory = _memory(node, sizes, sizes)  # whatever comes after the sizes is not looked at
    _place(memory, deltas, scores)
    for voter in memory[1]:
        voter.floor = math.inf
    builder.emit(Code.SCORES, None, data=_address(builder, memory))
    return deltas, scores, memory[1]


def _memory(node: Apply, sizes: Sequence[Span], cuts: Sequence[Span]) -> tuple[Balance, Any]:
    """What the operations point to: a head, and an entry for each expert."""
    values = dict(node.values)
    count = len(node.inputs)
    raw = ctypes.create_string_buffer(ctypes.sizeof(Balance) + count * ctypes.sizeof(Voter))
    head = Balance.from_buffer(raw)
    head.count, head.vision = count, int(values["variant"] == "vision")
    voters = (Voter * count).from_buffer(raw, ctypes.sizeof(Balance))
    for voter, size, cut, weight in zip(voters, sizes, cuts, each(values["weight"], count), strict=True):
        voter.weight = weight
        voter.low, voter.high, voter.width = size.low, size.high, _width(size)
        voter.least, voter.most, voter.range = cut.low, cut.high, _width(cut)
    return head, voters


def _width(span: Span) -> float:
    """What is divided by; infinite where all values are equal, which makes 0 of all."""
    return span.high - span.low if span.high > span.low else math.inf


def _place(memory: tuple[Balance, Any], deltas: Sequence[Value], scores: Sequence[Value]) -> None:
    for voter, delta, score in zip(memory[1], deltas, scores, strict=True):
        voter.delta, voter.score = delta.register, score.register


def _address(builder: Builder, memory: tuple[Balance, Any]) -> int:
    builder.kept.append(memory)
    return ctypes.addressof(memory[0])


def _size(bits: int) -> float:
    found: float = struct.unpack("f", struct.pack("I", bits))[0]
    return found


def _score(bits: int) -> float:
    return _size(bits - _ONE) if bits >= _ONE else -_size(_ONE - bits)
