"""Weighted sums and elections over plain inputs, in one operation of the compiled machine instead of several for each.

Owns the question whether a stage's inputs are as the operation wants them: read as bfloat16 or float32, all alone or
all less the same base, thinned or not. Whatever else is left to single operations, which give the same bytes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cuvee.core.dtypes import BFLOAT16, FLOAT32, DType
from cuvee.engine.fused.builder import Builder, Value
from cuvee.engine.fused.chosen import ALL, Chosen
from cuvee.engine.fused.figures import keeps_all
from cuvee.engine.kernels.operations import (
    BANDED,
    CROWD,
    DROPPED,
    MADE,
    MARKED,
    TRIMMED,
    Code,
    Crowd,
    Expert,
)
from cuvee.engine.streams import uniforms_of
from cuvee.methods.parameters import each
from cuvee.plan.nodes import Apply, Convert, Difference, Node, Read


@dataclass(frozen=True, slots=True)
class Member:
    """An input: what is read, what is subtracted from it, and what of the difference is kept (None: all)."""

    read: Read
    base: Node | None
    chosen: Chosen | None = None
    outliers: Chosen | None = None  # those of the chosen that are dropped
    dropped: Apply | None = None  # the stage that drops at random
    marked: Mapping[str, Any] | None = None  # the bits of what is kept, and what that is multiplied by


def mixed(builder: Builder, node: Apply, weights: Sequence[float], *, first: bool) -> Value | None:
    """The weighted sum of a stage's inputs, begun with the first product or with 0; None where it takes more."""
    members = [
        plain(child)
        or changed(builder, child)
        or _dropped(builder, child)
        or _marked(builder, child)
        or _trimmed(builder, child)
        or _banded(builder, child)
        for child in node.inputs
    ]
    return _emitted(builder, Code.MIXED, members, weights, weights, {"first": int(first)})


def elected(builder: Builder, node: Apply, values: Mapping[str, Any], tied: float) -> Value | None:
    """The result of `elect` whose votes are weighted; None where it takes more. `tied`: the sign where none wins."""
    if tied == 0:
        return None
    weights, parts = pulls(values, len(node.inputs))
    members = [
        _trimmed(builder, child)
        or _dropped(builder, child)
        or _marked(builder, child)
        or changed(builder, child)
        for child in node.inputs
    ]
    settings = {"made": MADE[values["merge"]], "tied": tied}
    return _emitted(builder, Code.ELECTED, members, weights, parts, settings)


def pulls(values: Mapping[str, Any], count: int) -> tuple[list[float], list[float]]:
    """The weights of the voters, and what each adds to the divisor of a mean."""
    weights = each(values["weight"], count)
    return weights, weights if values["divisor"] == "weight" else [1.0] * count


def _emitted(
    builder: Builder,
    code: Code,
    members: Sequence[Member | None],
    weights: Sequence[float],
    parts: Sequence[float],
    settings: Mapping[str, float],
) -> Value | None:
    found = [member for member in members if member is not None]
    if not 0 < len(found) == len(members) <= CROWD or any(m.base is not found[0].base for m in found):
        return None
    if code is Code.ELECTED and found[0].base is None:
        return None
    head, experts = memory(builder, Crowd, Expert, len(found))
    for name, setting in settings.items():
        setattr(head, name, setting)
    bases = [builder.use(member.base) for member in found if member.base is not None]
    head.base = bases[0].register if bases else -1
    spare = [builder.new() for _ in found]
    for expert, member, weight, part, own in zip(experts, found, weights, parts, spare, strict=True):
        expert.input, expert.delta = builder.place(member.read), own.register
        expert.wide = int(member.read.meta.dtype == FLOAT32)
        expert.weight, expert.share = weight, part
        if member.chosen is not None:
            expert.how, expert.cut, expert.ties = TRIMMED, member.chosen.bits, member.chosen.ties
        if member.outliers is not None:
            expert.how, expert.roof, expert.over = BANDED, member.outliers.bits, member.outliers.ties
        if member.dropped is not None:
            expert.how, expert.key = DROPPED, uniforms_of(member.dropped).key  # type: ignore[attr-defined]
            expert.cut, expert.divisor = dropping(dict(member.dropped.values))
        if member.marked is not None:
            expert.how, expert.key, expert.divisor = MARKED, member.marked["bits"], member.marked["factor"]
    to = builder.new()
    builder.emit(code, to, data=ctypes.addressof(head))
    for value in (*bases, *spare):
        builder.release(value)
    return to


def memory(builder: Builder, head: type[Any], each: type[Any], count: int) -> tuple[Any, Any]:
    """What an operation over `count` experts points to, kept with the program: its head, and the experts behind it."""
    raw = ctypes.create_string_buffer(ctypes.sizeof(head) + count * ctypes.sizeof(each))
    first = head.from_buffer(raw)
    first.count = count
    builder.kept.append(first)
    return first, (each * count).from_buffer(raw, ctypes.sizeof(head))


def plain(node: Node) -> Member | None:
    read = loaded(node)
    return None if read is None else Member(read, None)


def changed(builder: Builder, node: Node, uses: int = 1) -> Member | None:
    """A difference of float32 arithmetic that is used so often."""
    if not isinstance(node, Difference) or builder.uses(node) != uses:
        return None
    read = loaded(node.expert)
    if read is None or FLOAT32 not in (type_of(node.expert), type_of(node.base)):
        return None
    return Member(read, node.base)


def _trimmed(builder: Builder, node: Node) -> Member | None:
    if not isinstance(node, Apply) or node.stage != "trim" or builder.uses(node) != 1:
        return None
    values = dict(node.values)
    if keeps_all(node):
        inner = node.inputs[0]
        return _dropped(builder, inner) or _marked(builder, inner) or changed(builder, inner)
    member = changed(builder, node.inputs[0])
    if member is None:
        return None
    chosen = builder.known[id(node)]["cuts"][0]
    if values["rescale"] == "l1" or chosen.kept <= 0:
        return None
    return member if chosen.kept >= chosen.total else Member(member.read, member.base, chosen)


def _banded(builder: Builder, node: Node) -> Member | None:
    """The middle of the magnitudes of a change."""
    if not isinstance(node, Apply) or node.stage != "band" or builder.uses(node) != 1:
        return None
    member, cuts = changed(builder, node.inputs[0]), builder.known.get(id(node), {}).get("cuts")
    if member is None or dict(node.values)["rescale"] == "l1":
        return None
    if cuts is None:
        return member if keeps_all(node) else None
    outliers, chosen = cuts
    if chosen.kept <= 0 or outliers.kept >= outliers.total:
        return None
    if outliers.kept <= 0:
        return member if chosen.kept >= chosen.total else Member(member.read, member.base, chosen)
    least = Chosen(chosen.kept, chosen.total, 0, ALL) if chosen.kept >= chosen.total else chosen
    return Member(member.read, member.base, least, outliers)


def _dropped(builder: Builder, node: Node) -> Member | None:
    if not isinstance(node, Apply) or node.stage != "drop" or builder.uses(node) != 1:
        return None
    values = dict(node.values)
    if values["density"] >= 1 or values["rescale"] == "l1" or dropping(values)[0] >= 1 << 32:
        return None
    member = changed(builder, node.inputs[0])
    return None if member is None else Member(member.read, member.base, dropped=node)


def _marked(builder: Builder, node: Node) -> Member | None:
    """A change of which it is known what stays: thinned by ranks, or at random with its norm restored."""
    found = builder.known.get(id(node), {})
    if not isinstance(node, Apply) or "bits" not in found or builder.uses(node) != 1:
        return None
    member = changed(builder, node.inputs[0])
    return None if member is None else Member(member.read, member.base, marked=found)


def dropping(values: Mapping[str, Any]) -> tuple[int, float]:
    """Below which random words `drop` keeps an entry, and what it then divides by (without a norm to restore)."""
    density = values["density"]
    divides = values["rescale"] == "inverse_p" and density > 0
    return round(density * 2.0**32), density if divides else 1.0


def loaded(node: Node, types: Collection[DType] = (BFLOAT16, FLOAT32)) -> Read | None:
    """What is read, in one of these types, where the machine's float32 is the stored value itself."""
    if isinstance(node, Convert) and node.dtype == FLOAT32:
        node = node.child
    return node if isinstance(node, Read) and node.meta.dtype in types else None


def type_of(node: Node) -> DType | None:
    """The type torch would hold the values in; None where that takes more than a look."""
    if isinstance(node, Convert):
        return node.dtype
    return node.meta.dtype if isinstance(node, Read) else None
