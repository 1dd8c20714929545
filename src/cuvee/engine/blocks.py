"""How a tensor is cut: into runs of elements whose ends every node of its expression can live with.

The cut may depend on the memory budget; results may not (the contract suite holds every stage to that).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cuvee.methods.contract import Access, rows_of
from cuvee.methods.registry import stage
from cuvee.plan.matrices import is_joint, is_whole, region
from cuvee.plan.nodes import Apply, Gather, Node, walk

__all__ = ["LEAST", "LINE", "MOST", "Cut", "access_of", "cut", "cut_of", "is_joint", "region"]

LINE = 1024  # elements; flat blocks start at its multiples
LEAST = 64 * LINE
MOST = 256 * LINE  # elements: larger blocks leave the cache, and take memory, for nothing


@dataclass(frozen=True, slots=True)
class Cut:
    """`step` elements at a time out of `total`."""

    total: int
    step: int

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return self.between(0, self.total)

    def between(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The runs of the elements [first, last)."""
        for start in range(first, last, self.step):
            yield start, min(start + self.step, last)

    @property
    def whole(self) -> bool:
        return self.step >= self.total


def access_of(node: Apply) -> Access:
    """The access a stage application declares for its values, on this tensor."""
    return stage(node.stage).access_for(dict(node.values), node.shape, node.place)


def cut(node: Node, budget: int, fixed: int | None = None) -> Cut:
    """The cut of a tensor for evaluating `node`, so that the expression's buffers stay within `budget` bytes."""
    nodes = list(walk(node))
    if any(map(is_whole, nodes)):
        total = math.prod(node.shape)
        return Cut(total, max(total, 1))
    return cut_of(nodes, node.shape, budget, fixed)


def cut_of(nodes: Sequence[Node], shape: tuple[int, ...], budget: int, fixed: int | None = None) -> Cut:
    """The cut of values of a shape that are made of these nodes, none of which is made whole."""
    total = math.prod(shape)
    if total == 0:
        return Cut(total, 1)
    accesses = {access_of(n) for n in nodes if isinstance(n, Apply)}
    grain = LINE
    if "row" in accesses:
        grain = max(1, rows_of(shape)[1])
        if "element" in accesses:  # whose blocks start at multiples of a line
            grain = math.lcm(grain, LINE)
    for gather in (n for n in nodes if isinstance(n, Gather)):
        grain = math.lcm(grain, math.prod(gather.shape[1:])) if "row" not in accesses else grain
    wanted = fixed or min(MOST, max(LEAST, budget // (4 * (len(nodes) + 4))))
    return Cut(total, max(grain, wanted // grain * grain))
