"""How many bytes of files writing a package takes: tensors that are measured first are read twice.

Owns the count for `engine.packing`; what the engine does in a way of its own it says itself. What experts store that
equals the base is assumed to be little: entries of a tensor are counted before they are written, and a tensor without
any is not read again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cuvee.plan.changes import changes_of
from cuvee.plan.matrices import keeps
from cuvee.plan.nodes import Apply, Node, walk
from cuvee.plan.packages import MASKED, Piece, base_of, pieces, source_of
from cuvee.plan.plan import Plan
from cuvee.plan.reads import Counter, Reads, exactly
from cuvee.plan.stored import laid_below, stored_below
from cuvee.recipe.packaging import tasks_of
from cuvee.sources.low_rank import LowRank
from cuvee.sources.source import stored_form


def package_reads(
    plan: Plan,
    share: int,
    marked: Collection[str] = (),
    grouped: Collection[str] = (),
    *,
    include_base: bool,
) -> Reads:
    """The bytes that a worker with `share` bytes of the budget reads, besides those for the bits of tensors that are
    `marked` otherwise and for the figures of groups that are found otherwise.
    """
    sources = {key: opened.source for key, opened in plan.sources.items()}
    count = Counter(sources, share)
    base = base_of(plan).source
    total = exactly(sum(stored_form(base, name).nbytes for name in base.tensors) if include_base else 0)
    groups = {n.group for t in plan.tensors for n in walk(t.node) if isinstance(n, Apply) and n.group}
    for name, members in plan.groups().items():
        if name in groups and name not in grouped:
            total += count.group([node for _, node in members])
    found = list(pieces(plan))
    for piece in found:
        total += _piece(piece, count, marked=piece.name in marked)
    return total + _others(plan, {piece.name for piece in found})


def _piece(piece: Piece, count: Counter, *, marked: bool) -> Reads:
    inputs = piece.apply.inputs
    if piece.apply.stage in MASKED:
        return Reads() if marked else count.together(inputs) + count.figures([piece.apply])
    known = [child for child in inputs if _product(child, count)]
    measured = [
        child
        for child, codec in zip(inputs, piece.codecs, strict=True)
        if codec == "dense" and child not in known
    ]
    rest = [child for child in inputs if child not in known or piece.codecs[0] in ("sign", "low_rank")]
    if marked:
        rest = [c for c, codec in zip(inputs, piece.codecs, strict=True) if c in rest and codec != "sign"]
    if piece.codecs[0] == "basis" and known and len(known) < len(inputs):
        rest = list(inputs)  # a basis of products takes all of them
    factors = sum(laid_below([child for child in known if child not in rest], count.sources).values())
    return exactly(2 * factors) + _read(measured, inputs, count) + _read(rest, inputs, count)


def _read(nodes: Sequence[Node], beside: Sequence[Node], count: Counter) -> Reads:
    """Nodes made one after the other; what they share is read once where all that is `beside` them is kept."""
    if keeps(beside, count.share, count.sources):
        return exactly(
            sum(stored_below(nodes, count.sources).values()) + sum(laid_below(nodes, count.sources).values())
        )
    return sum((count.tensor(node) for node in nodes), Reads())


def _product(node: Node, count: Counter) -> bool:
    changes = changes_of(node, count.sources)
    return bool(changes) and all(isinstance(change, LowRank) for change in changes or ())


def _others(plan: Plan, changed: set[str]) -> Reads:
    """Tensors that are not merged: compared with the base's, and copied where they differ."""
    base = base_of(plan).source
    total = Reads()
    for tensor in plan.tensors:
        name = tensor.meta.name
        for task in () if name in changed else tasks_of(plan.recipe):
            opened = source_of(plan, task)
            if opened is None or name not in opened.source.tensors:
                continue
            own = stored_form(opened.source, name).nbytes
            alike = name in base.tensors and base.tensors[name] == opened.source.tensors[name]
            both = own + stored_form(base, name).nbytes if alike else own
            total += Reads(both, both + own) if alike else exactly(own)
    return total
