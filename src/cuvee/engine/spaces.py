"""Coordinates of tensors in the spaces of a chain: computed once while there is room for them, else again.

Owns what is kept and the shapes that only the data decide. Knows stages by their contract alone.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from cuvee.methods.contract import Coordinates
from cuvee.plan.nodes import Enter

if TYPE_CHECKING:
    from torch import Tensor


class Kept:
    """Coordinates by the node that enters, the least recently used dropped beyond `room` bytes."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._found: OrderedDict[int, tuple[Enter, Coordinates]] = OrderedDict()
        self._shapes: dict[int, tuple[Enter, tuple[int, ...]]] = {}
        self._lock = threading.Lock()

    def get(self, node: Enter, compute: Callable[[], Coordinates]) -> Coordinates:
        """The coordinates of a node; two threads may both compute them, to the same bits."""
        with self._lock:
            if id(node) in self._found:
                self._found.move_to_end(id(node))
                return self._found[id(node)][1]
        made = compute()
        with self._lock:
            self._shapes[id(node)] = (node, tuple(made.tensors[0].shape))
            self._found[id(node)] = (node, made)
            while self._bytes() > self._room and len(self._found) > 1:
                self._found.popitem(last=False)
            if self._bytes() > self._room:
                self._found.clear()
        return made

    def shape(self, node: Enter, compute: Callable[[], Coordinates]) -> tuple[int, ...]:
        """The shape of a node's coordinates, which is remembered when they are dropped."""
        known = self._shapes.get(id(node))
        return known[1] if known else tuple(self.get(node, compute).tensors[0].shape)

    def _bytes(self) -> int:
        return sum(_size(t) for _, made in self._found.values() for t in made.tensors)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
