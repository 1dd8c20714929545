"""When the entries that thinning leaves are gathered, and where they are kept from one candidate to the next.

A search over weights asks for one election after the other of the same trimmed or dropped changes. The second time,
each expert's kept elements are laid together beside a bit for each element, as `kept` wants them. Owns when that is
worth its memory: what is gathered for a tensor takes at most half of what the experts' tensors take. Must not import
torch.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Mapping, Sequence
from typing import Any

from cuvee.core.dtypes import DType
from cuvee.core.tensors import Held
from cuvee.engine.fused.builder import Builder, Figures
from cuvee.engine.fused.chosen import Chosen
from cuvee.engine.fused.crowd import dropping
from cuvee.engine.fused.feed import Feed, Worker
from cuvee.engine.fused.kept import Entries, eligible, read_of, thinner
from cuvee.engine.fused.passes import run
from cuvee.engine.fused.stages import thinned
from cuvee.engine.kernels import Kernels
from cuvee.engine.kernels.operations import TILE, Code, Gathered
from cuvee.engine.memo import Memo
from cuvee.plan.nodes import Apply, Node, walk

_NAMES = ("density", "gamma", "count", "scope", "rescale")  # what the entries of a stage follow from
_AFTER = 64  # bytes that are read behind the last entry


def provide(
    root: Node, known: Mapping[int, dict[str, Any]], feed: Feed, worker: Worker, kernels: Kernels, memo: Memo
) -> None:
    """Add the entries of thinned experts to the figures `known`, where they are there or are made now."""
    if memo.known is not None or not memo.keeps or feed.total < TILE:
        return
    if not all(isinstance(lies, Held) for lies in feed.extents.values()):
        return
    for node in walk(root):
        if isinstance(node, Apply) and node.stage == "elect":
            thinned = [child for child in map(thinner, node.inputs) if isinstance(child, Apply)]
            cuts = [_cut(child, known) for child in thinned]
            found: Sequence[Entries] | None = memo.get("entries", thinned, _NAMES)
            if found is None or (found and [entries.cut for entries in found] != cuts):
                found = ()
                if _again(node, thinned, memo):
                    found = _gathered(thinned, cuts, known, feed, worker, kernels)
                    memo.keep("entries", thinned, _NAMES, found)
            for child, entries in zip(thinned, found, strict=bool(found)):
                known[id(child)]["entries"] = entries


def _again(node: Apply, thinned: Sequence[Apply], memo: Memo) -> bool:
    """Whether an election was held before, over the same changes, and otherwise.

    What is the same again is kept as a whole, elsewhere.
    """
    if not eligible(node):
        return False
    before, asked = memo.get("asked", thinned, _NAMES), repr(node.values)
    memo.keep("asked", thinned, _NAMES, asked)
    return before not in (None, asked)


def _gathered(
    nodes: Sequence[Apply],
    cuts: Sequence[Chosen | None],
    known: Mapping[int, Figures],
    feed: Feed,
    worker: Worker,
    kernels: Kernels,
) -> Sequence[Entries]:
    """One pass over the experts; nothing where entries would take more than half of their bytes."""
    most = sum(math.prod(node.shape) * read_of(node).meta.dtype.size for node in nodes) // 2
    likely = (_likely(node, cut) for node, cut in zip(nodes, cuts, strict=True))
    if sum(likely) > most:
        return ()
    builder = Builder(known)
    builder.expect(nodes)
    tables, areas = [], []
    for node in nodes:
        table, area = _room(feed.total, read_of(node).meta.dtype)
        value = thinned(builder, node, known.get(id(node), {}))
        op = builder.emit(Code.GATHER, None, value, data=ctypes.addressof(table))
        op.b = builder.place(read_of(node))
        builder.release(value)
        tables.append(table)
        areas.append(area)
    run(feed, worker, kernels, builder.program(), None)
    ends = [table.entries - table.bits + table.used * table.size for table in tables]
    if sum(ends) > most:
        return ()
    return [_copied(*one) for one in zip(nodes, cuts, tables, ends, strict=True)]


def _room(count: int, dtype: DType) -> tuple[Gathered, mmap.mmap]:
    """Where the entries of `count` elements may go: memory that is there once it is written to."""
    tiles = -(-count // TILE)
    head = tiles * (TILE // 8 + 8) + 8
    area = mmap.mmap(-1, head + (count + TILE) * dtype.size)
    at = ctypes.addressof(ctypes.c_char.from_buffer(area))
    return Gathered(at, at + tiles * TILE // 8, at + head, 0, dtype.size), area


def _copied(node: Apply, cut: Chosen | None, table: Gathered, end: int) -> Entries:
    """The entries in memory of their own size."""
    memory = (ctypes.c_char * (end + _AFTER))()
    ctypes.memmove(memory, table.bits, end)
    move = ctypes.addressof(memory) - table.bits
    places = (table.bits + move, table.before + move, table.entries + move)
    return Entries(memory, places, read_of(node), cut, _divisor(node))


def _likely(node: Apply, cut: Chosen | None) -> float:
    """Bytes that the entries of a stage take if they lie evenly in all tensors that it looks at together."""
    count = math.prod(node.shape)
    share = dict(node.values)["density"] if cut is None else cut.kept / max(cut.total, 1)
    return float(count / 8 + count / TILE * 8 + share * count * read_of(node).meta.dtype.size)


def _cut(node: Apply, known: Mapping[int, Figures]) -> Chosen | None:
    found = known.get(id(node), {}).get("cuts")
    return None if found is None else found[0]


def _divisor(node: Apply) -> float:
    return dropping(dict(node.values))[1] if node.stage == "drop" else 1.0
