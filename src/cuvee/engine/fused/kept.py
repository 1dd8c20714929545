"""Elections over entries that thinning left, gathered once from experts in memory.

Owns what such entries are, which elections can be held over them, and the operation that holds one. Must not know when
they are gathered (`shelf`), nor import torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cuvee.core.dtypes import BFLOAT16, BY_NAME, FLOAT32, DType
from cuvee.engine.fused.builder import Builder, Value
from cuvee.engine.fused.chosen import Chosen
from cuvee.engine.fused.crowd import loaded, pulls, type_of
from cuvee.engine.fused.figures import keeps_all
from cuvee.engine.kernels.operations import CROWD, MADE, Ballot, Code, Kept
from cuvee.plan.nodes import Apply, Difference, Node, Read

FLOAT16 = BY_NAME["float16"]
_TYPES = (BFLOAT16, FLOAT16, FLOAT32)


@dataclass(frozen=True, slots=True)
class Entries:
    """What is kept of one expert's tensor: bits, entries before each tile, and the elements; see `cuvee_kept.h`."""

    memory: Any
    places: tuple[int, int, int]  # addresses of the three
    read: Read
    cut: Chosen | None
    divisor: float

    @property
    def nbytes(self) -> int:
        return ctypes.sizeof(self.memory)


def voted(builder: Builder, node: Apply, values: Mapping[str, Any], tied: float) -> Value | None:
    """The result of `elect` from gathered entries; None where they are not there."""
    thinned = [thinner(child) for child in node.inputs]
    figures = [builder.known.get(id(child), {}) for child in thinned]
    found: list[Entries] = [own["entries"] for own in figures if "entries" in own]
    if (
        len(found) != len(thinned)
        or tied == 0
        or any(builder.uses(child) != 1 for child in (*node.inputs, *thinned))
    ):
        return None
    weights, shares = pulls(values, len(found))
    raw = ctypes.create_string_buffer(ctypes.sizeof(Ballot) + len(found) * ctypes.sizeof(Kept))
    head, experts = Ballot.from_buffer(raw), (Kept * len(found)).from_buffer(raw, ctypes.sizeof(Ballot))
    for expert, entries, weight, share in zip(experts, found, weights, shares, strict=True):
        expert.bits, expert.before, expert.entries = entries.places
        expert.size, expert.half = entries.read.meta.dtype.size, entries.read.meta.dtype == FLOAT16
        expert.weight, expert.share, expert.divisor = weight, share, entries.divisor
    bases = [builder.use(difference_of(child).base) for child in thinned]
    head.count, head.base, head.made, head.tied = len(found), bases[0].register, MADE[values["merge"]], tied
    origin = _plain(difference_of(thinned[0]).base)
    head.narrow = origin is not None and origin.meta.dtype == BFLOAT16
    head.divided = any(entries.divisor != 1 for entries in found)
    to = builder.new()
    builder.emit(Code.VOTED, to, data=ctypes.addressof(head))
    builder.kept += [head, found]
    for base in bases:
        builder.release(base)
    return to


def eligible(node: Apply) -> bool:
    """Whether an election can be held over entries: its inputs are thinned changes of one base."""
    values = dict(node.values)
    if values["vote"] != "weighted" or values["merge"] not in MADE or len(node.inputs) > CROWD:
        return False
    thinned = map(thinner, node.inputs)
    changes = [difference_of(child) if _thins(child) else None for child in thinned]
    first = changes[0]
    return first is not None and all(
        change is not None and change.base is first.base and _stored(change) == _stored(first)
        for change in changes
    )


def thinner(node: Node) -> Node:
    """The stage that thins an input of an election, where it is seen through one that keeps everything."""
    return node.inputs[0] if isinstance(node, Apply) and keeps_all(node) else node


def _thins(node: Node) -> bool:
    """Whether a stage keeps some changes as they are (or divided by one number), and drops the others."""
    if not isinstance(node, Apply) or node.stage not in ("trim", "drop"):
        return False
    values = dict(node.values)
    difference = node.inputs[0]
    return (
        0 < values["density"] < 1
        and values["rescale"] != "l1"
        and isinstance(difference, Difference)
        and _plain(difference.expert) is not None
        and FLOAT32 in (type_of(difference.expert), type_of(difference.base))
    )


def difference_of(node: Node) -> Difference:
    assert isinstance(node, Apply)
    assert isinstance(node.inputs[0], Difference)
    return node.inputs[0]


def read_of(node: Node) -> Read:
    found = _plain(difference_of(node).expert)
    assert found is not None
    return found


def _plain(node: Node) -> Read | None:
    return loaded(node, _TYPES)


def _stored(change: Difference) -> DType | None:
    read = _plain(change.expert)
    return None if read is None else read.meta.dtype
