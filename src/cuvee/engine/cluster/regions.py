"""Which parts of the output are made together: runs of a large tensor's blocks, or several small tensors.

A region may be made any number of times, anywhere, with the same bytes. Reads no weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cuvee.core.digests import REGION
from cuvee.engine.blocks import cut
from cuvee.methods.registry import stage
from cuvee.plan.nodes import Apply, Read, walk
from cuvee.plan.plan import OutputTensor

_SHARES = 8  # pieces of work for each worker, so that all end at about the same time
_LEAST, _MOST = 1 << 20, 256 << 20  # bytes of output that are made together


@dataclass(frozen=True, slots=True)
class Region:
    """Elements [start, stop) of an output tensor."""

    tensor: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Taken:
    """What is there already of tensors that are made in part: `parts`, runs of elements that are still to be made, and
    what gives the bytes of the elements [start, stop) between them.
    """

    parts: Mapping[str, Sequence[tuple[int, int]]]
    blocks: Mapping[str, Callable[[int, int], memoryview]]

    def gaps(self, tensor: OutputTensor) -> list[Region]:
        """The runs that are there, each a block that is hashed alone at most."""
        name, numel = tensor.meta.name, tensor.meta.numel
        if not self.usable(tensor):
            return []
        ends = [0, *(end for part in self.parts[name] for end in part), numel]
        step = REGION // tensor.meta.dtype.size
        return [
            Region(name, first, min(first + step, stop))
            for start, stop in zip(ends[::2], ends[1::2], strict=True)
            for first in range(start, stop, step)
        ]

    def usable(self, tensor: OutputTensor) -> bool:
        """Whether a tensor can be made in these parts by themselves."""
        parts, unit = self.parts.get(tensor.meta.name), unit_of(tensor)
        ends = [end for part in parts or () for end in part if end != tensor.meta.numel]
        return bool(parts) and unit is not None and not any(end % unit for end in ends)


@dataclass(frozen=True, slots=True)
class Batch:
    """Regions that one worker makes in one go; `cost` counts the bytes that pass through it."""

    regions: tuple[Region, ...]
    cost: int


def batches(
    tensors: Sequence[OutputTensor],
    workers: int,
    most: int = _MOST,
    whole: Collection[str] = frozenset(),
    taken: Taken | None = None,
) -> list[Batch]:
    """The work, the largest pieces first: small tensors together as they lie, large ones cut where they can be.

    Tensors are made faster whole, so they are cut only where they are much of one worker's share, or would pass `most`
    bytes that are sent back; those called in `whole` never are. What is `taken` is not made.
    """
    total = sum(tensor.meta.nbytes for tensor in tensors)
    wanted = min(most, max(_LEAST, total // (max(1, workers) * _SHARES)))
    limit = 2 * wanted if most < _MOST else max(2 * wanted, total // (2 * max(1, workers)))
    found: list[Batch] = []
    held: list[Region] = []
    size = cost = 0

    def flush() -> None:
        nonlocal held, size, cost
        if held:
            found.append(Batch(tuple(held), cost))
        held, size, cost = [], 0, 0

    for tensor in tensors:
        inputs = 1 + sum(isinstance(node, Read) for node in walk(tensor.node))
        parts = taken.parts[tensor.meta.name] if taken is not None and taken.usable(tensor) else ()
        for region in _cut(tensor, wanted, tensor.meta.nbytes if tensor.meta.name in whole else limit, parts):
            nbytes = (region.stop - region.start) * tensor.meta.dtype.size
            if held and size + nbytes > wanted:
                flush()
            held.append(region)
            size, cost = size + nbytes, cost + nbytes * inputs
    flush()
    return sorted(found, key=lambda batch: -batch.cost)


def _cut(
    tensor: OutputTensor, wanted: int, limit: int, parts: Sequence[tuple[int, int]] = ()
) -> Iterable[Region]:
    meta, unit = tensor.meta, unit_of(tensor)
    if unit is None or (meta.nbytes <= limit and not parts):
        return [Region(meta.name, 0, meta.numel)]
    step = max(1, wanted // (unit * meta.dtype.size)) * unit
    return [
        Region(meta.name, start, min(start + step, stop))
        for first, stop in parts or ((0, meta.numel),)
        for start in range(first, stop, step)
    ]


def unit_of(tensor: OutputTensor) -> int | None:
    """Elements at whose multiples a tensor may be cut: of a block, and of what is hashed together.

    None where it must be made in one go: a method sees it whole, or needs figures of all of it first.
    """
    for node in walk(tensor.node):
        if isinstance(node, Apply) and node.group is None and stage(node.stage).scope_for(dict(node.values)):
            return None
    ranges = cut(tensor.node, 0, 1)
    size = tensor.meta.dtype.size
    return None if ranges.whole or REGION % size else math.lcm(ranges.step, REGION // size)
