"""Bits of a tensor, one for each element, and a vector beside them: masks and signs of packages, compiled.

Owns the program; what is marked is a function that torch tensors take as well. Must not know packages.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cuvee.core.dtypes import DType
from cuvee.engine.fused.builder import Builder, Figures, Unfusable
from cuvee.engine.fused.feed import Feed, Worker
from cuvee.engine.fused.graph import Graph, emit
from cuvee.engine.fused.passes import run
from cuvee.engine.fused.trace import floats, traced
from cuvee.engine.fused.traced import Traced
from cuvee.engine.kernels.library import Kernels
from cuvee.engine.kernels.operations import TILE, Code
from cuvee.plan.nodes import Node

_BYTES = TILE // 8  # of a tile's bits


@dataclass(frozen=True, slots=True)
class Marking:
    """What is made of the values of some nodes: truths, and before them a vector of float32 where there is a dtype."""

    nodes: Sequence[Node]
    function: Callable[[Sequence[Any]], Sequence[Any]]
    dtype: DType | None = None


def marked(
    feed: Feed,
    worker: Worker,
    kernels: Kernels,
    marking: Marking,
    known: Mapping[int, Figures],
    write: Callable[[int, int, memoryview], None],
) -> list[memoryview]:
    """The bits of each truth, element 8i + j in bit j of byte i; the vector goes to `write`, span after span."""
    builder, graph = Builder(known, same=feed.same), Graph(len(marking.nodes))
    builder.expect(marking.nodes)
    tensors = [Traced(graph, index) for index in range(graph.inputs)]
    made = list(traced(lambda: marking.function(tensors)))
    first = int(marking.dtype is not None)
    if any(not isinstance(one, Traced) or one.kind != "truth" for one in made[first:]):
        raise Unfusable("marks that are not truths")
    roots = [floats(one).index for one in made[:first]] + [one.index for one in made[first:]]
    values = emit(builder, graph, marking.nodes, roots)
    if marking.dtype is not None:
        builder.store(values[0], marking.dtype)
    places = [(ctypes.c_uint8 * (-(-feed.total // TILE) * _BYTES))() for _ in values[first:]]
    for value, place in zip(values[first:], places, strict=True):
        builder.emit(Code.MARK, None, value, data=ctypes.addressof(place))
    size = marking.dtype.size if marking.dtype else 0
    run(feed, worker, kernels, builder.program(), write if first else None, size)
    return [memoryview(place).cast("B")[: -(-feed.total // 8)] for place in places]
