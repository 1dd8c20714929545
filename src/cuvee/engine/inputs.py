"""Inputs of expressions: stored tensors with what adapters add, each read once where several want it.

Owns what is kept of the tensor in work, for each thread apart, and what runs share. Whether there is room to keep it is
the plan's to say (`plan.matrices.keeps`). Knows no expression above its inputs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from cuvee.engine.blocks import MOST
from cuvee.engine.guard import Guard
from cuvee.plan.nodes import Node, Read, walk
from cuvee.plan.stored import Leaf, leaf_of
from cuvee.sources.adapted import added
from cuvee.sources.source import Source

if TYPE_CHECKING:
    from torch import Tensor

    from cuvee.sources.low_rank import FactorCache

Reader = Callable[[int, int], "Tensor"]


class Inputs:
    """The inputs of a plan, read through the guard."""

    def __init__(self, sources: Mapping[str, Source], guard: Guard) -> None:
        self.sources = sources
        self.guard = guard
        self.kept = KeptInputs()
        self._leaves: dict[int, Leaf] = {}  # nodes live as long as their plan, so they are not mistaken

    def read(self, node: Read, start: int, stop: int, shared: dict[Hashable, Tensor] | None) -> Tensor:
        """Elements [start, stop) of an input; `shared`: the stored tensors that others read of the same elements."""
        leaf = self._leaves.get(id(node))
        if leaf is None:
            leaf = self._leaves[id(node)] = leaf_of(node, self.sources)
        values = None if shared is None else shared.get(leaf.key)
        if values is None:
            values = self.kept.read(leaf, start, stop, partial(self._checked, node, leaf))
            if shared is not None:
                shared[leaf.key] = values
        for delta in leaf.deltas:
            values = added(values, delta, start, stop, leaf.kind)
        if leaf.deltas:
            self.guard.check_input(values, node, start)
        return values

    def release(self, node: Node) -> None:
        """Forget what adapters add to a tensor that this thread has made."""
        for part in walk(node):
            source = self.sources[part.source] if isinstance(part, Read) else None
            under = getattr(source, "under", None)
            for delta in under(part.meta.name)[1] if under and isinstance(part, Read) else ():
                cache: FactorCache | None = getattr(delta, "cache", None)
                if cache is not None:
                    cache.clear()

    def _checked(self, node: Read, leaf: Leaf, start: int, stop: int) -> Tensor:
        tensor = leaf.source.read(leaf.name, start, stop)
        self.guard.check_input(tensor, node, start)
        return tensor


class KeptInputs(threading.local):
    """Inputs of the tensor that a thread works on, each read as a whole when a part of it is first asked for."""

    def __init__(self) -> None:
        self._found: dict[Hashable, Tensor | None] = {}

    @contextmanager
    def of(self, keys: Iterable[Hashable]) -> Iterator[None]:
        """Keep the stored tensors of these keys until the end of the block."""
        keys = [key for key in keys if key not in self._found]  # others are kept for longer
        self._found.update(dict.fromkeys(keys))
        try:
            yield
        finally:
            for key in keys:
                self._found.pop(key, None)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within the block nothing is kept: what is read serves other tensors too."""
        own, self._found = self._found, {}
        try:
            yield
        finally:
            self._found = own

    def read(self, leaf: Leaf, start: int, stop: int, reader: Reader) -> Tensor:
        """Elements [start, stop) of a stored tensor, from memory where it is kept."""
        if leaf.key not in self._found:
            return reader(start, stop)
        found = self._found[leaf.key]
        if found is None:
            found = self._found[leaf.key] = _whole(leaf.source.tensors[leaf.name].numel, reader)
        return found[start:stop]


def _whole(total: int, reader: Reader) -> Tensor:
    if total <= MOST:
        return reader(0, total)
    first = reader(0, MOST)
    whole = first.new_empty(total)
    whole[:MOST] = first
    for start in range(MOST, total, MOST):
        stop = min(start + MOST, total)
        whole[start:stop] = reader(start, stop)
    return whole
