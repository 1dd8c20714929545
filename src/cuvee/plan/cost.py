"""What a plan costs, before anything is read: bytes in and out, passes, memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cuvee.core.tensors import TensorMeta
from cuvee.methods.registry import stage
from cuvee.plan.nodes import Apply, Read, walk
from cuvee.plan.plan import OutputTensor, Plan


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes read once, bytes written, the largest tensor that must be held whole, and counts of what is done."""

    reads: int
    writes: int
    largest_whole: int
    merged: int
    copied: int
    converted: int
    summarised: int


def inputs_of(tensors: Iterable[OutputTensor]) -> dict[tuple[str, str], TensorMeta]:
    """Every input tensor that is read, once, by (source key, name)."""
    found: dict[tuple[str, str], TensorMeta] = {}
    for tensor in tensors:
        for node in walk(tensor.node):
            if isinstance(node, Read):
                found[node.source, node.meta.name] = node.meta
    return found


def cost(plan: Plan) -> Cost:
    """The plan's cost; one walk over its expressions."""
    whole = summarised = 0
    for tensor in plan.tensors:
        applied = [n for n in walk(tensor.node) if isinstance(n, Apply)]
        if any(stage(n.stage).access_for(dict(n.values)) == "tensor" for n in applied):
            count = len(list(walk(tensor.node)))
            whole = max(whole, 4 * tensor.meta.numel * count)
        summarised += any(stage(n.stage).scope_for(dict(n.values)) is not None for n in applied)
    actions = [t.action for t in plan.tensors]
    return Cost(
        reads=sum(meta.nbytes for meta in inputs_of(plan.tensors).values()),
        writes=plan.layout.total_bytes,
        largest_whole=whole,
        merged=actions.count("merged"),
        copied=actions.count("copied"),
        converted=actions.count("converted"),
        summarised=summarised,
    )
