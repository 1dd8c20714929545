"""Coordinates that decide for themselves which experts count, in one operation of the compiled machine for each step.

Owns the question whether the inputs of `sce` and `ram` are as those operations want them: changes of one base, read
as bfloat16 or float32. Whatever else is left to single operations (`votes`), which give the same bytes. Must not import
torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from cuvee.core.dtypes import FLOAT32
from cuvee.engine.fused.builder import Builder, Figures, Value
from cuvee.engine.fused.crowd import Member, changed, memory
from cuvee.engine.fused.sifted import settled
from cuvee.engine.kernels.operations import CROWD, Code, Mover, Movers, Varied, Varying
from cuvee.plan.nodes import Apply


def spread(builder: Builder, node: Apply) -> Value | None:
    """The population variance over the inputs of a stage; None where it takes more."""
    found = _emitted(builder, Code.SPREADS, node, {}, [0.0] * len(node.inputs))
    return None if found is None else found[0]


def energies(builder: Builder, node: Apply, figures: Figures, lines: Sequence[Any]) -> bool:
    """Whether the squares of selected changes are summed, those of each expert into its lines."""
    found = _emitted(builder, Code.ENERGY, node, figures, [0.0] * len(node.inputs))
    if found is None:
        return False
    value, head, experts = found
    for expert, line in zip(experts, lines, strict=True):
        expert.energies = ctypes.addressof(line) - ctypes.addressof(head)
    builder.kept.append(lines)
    builder.release(value)
    return True


def decided(
    builder: Builder, node: Apply, figures: Figures, weights: Sequence[float], least: float
) -> Value | None:
    """The weighted mean of selected changes that agree in sign with their sum; its divisor is at least `least`."""
    found = _emitted(builder, Code.DECIDED, node, figures, weights, least)
    return None if found is None else found[0]


def averaged(builder: Builder, node: Apply, epsilon: float, boosts: Sequence[float]) -> Value | None:
    """The mean of those changes that are larger than `epsilon`, of one alone times its boost."""
    found = _changes(builder, node)
    if found is None:
        return None
    head, experts = memory(builder, Movers, Mover, len(found))
    head.least, head.boosts = epsilon, any(boost != 1 for boost in boosts)
    spare = _placed(builder, head, experts, found)
    for expert, boost in zip(experts, boosts, strict=True):
        expert.boost = boost
    to = builder.new()
    builder.emit(Code.MOVERS, to, data=ctypes.addressof(head))
    for value in spare:
        builder.release(value)
    return to


def _changes(builder: Builder, node: Apply) -> list[Member] | None:
    """The inputs, where all are changes of one base."""
    members = [changed(builder, child) for child in node.inputs]
    found = [member for member in members if member is not None]
    if not 0 < len(found) == len(members) <= CROWD or any(m.base is not found[0].base for m in found):
        return None
    return found


def _placed(builder: Builder, head: Any, experts: Any, found: Sequence[Member]) -> list[Value]:
    """Say where the base and the inputs are; the values that are used, to be released."""
    bases = [builder.use(member.base) for member in found if member.base is not None]
    head.base = bases[0].register
    spare = [builder.new() for _ in found]
    for expert, member, own in zip(experts, found, spare, strict=True):
        expert.input, expert.delta = builder.place(member.read), own.register
        expert.wide = int(member.read.meta.dtype == FLOAT32)
    return [*bases, *spare]


def _emitted(
    builder: Builder, code: Code, node: Apply, figures: Figures, weights: Sequence[float], least: float = 0.0
) -> tuple[Value, Any, Any] | None:
    found = _changes(builder, node)
    if found is None:
        return None
    chosen = figures["cuts"][0] if "cuts" in figures else None
    if chosen is not None and chosen.kept <= 0:
        return None
    head, experts = memory(builder, Varying, Varied, len(found))
    head.least = least
    if chosen is not None and chosen.kept < chosen.total:
        head.selects, head.cut, head.ties = 1, chosen.bits, chosen.ties
        bits = settled(figures, chosen)
        head.marks = bits - ctypes.addressof(head) if bits else 0
    spare = _placed(builder, head, experts, found)
    for expert, weight in zip(experts, weights, strict=True):
        expert.weight = weight
    to = builder.new()
    builder.emit(code, to, data=ctypes.addressof(head))
    for value in spare:
        builder.release(value)
    return to, head, experts
