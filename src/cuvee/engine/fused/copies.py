"""Tensors that travel as they are: their bytes from where they lie to who writes them, looked through on the way.

Knows nothing of what else the fast path does with a tensor.
"""

from __future__ import annotations

from collections.abc import Callable

from cuvee.engine.fused.builder import Unfusable
from cuvee.engine.fused.feed import Feed, Worker, view_of
from cuvee.engine.fused.recognise import MASKS
from cuvee.engine.kernels import Kernels
from cuvee.plan.nodes import Read, walk
from cuvee.plan.plan import OutputTensor


def copy(
    tensor: OutputTensor,
    feed: Feed,
    worker: Worker,
    machine: Kernels,
    write: Callable[[int, int, memoryview], None],
) -> None:
    """Hand every block on; Unfusable where a value is NaN or infinite, or inputs differ that must agree."""
    size, mask = tensor.meta.dtype.size, MASKS[tensor.meta.dtype.name]
    worker.blocks.reserve(feed.room(size))
    reads = [node for node in walk(tensor.node) if isinstance(node, Read)]
    for first, count, addresses in feed.blocks(reads, worker.blocks, feed.step):
        if mask is not None and machine.not_finite(addresses[0], count, size, mask):
            raise Unfusable("a value is not finite")
        blocks = [view_of(address, count * size) for address in addresses]
        if any(block != blocks[0] for block in blocks[1:]):
            raise Unfusable("inputs differ that must agree")
        write(first, count, blocks[0])
