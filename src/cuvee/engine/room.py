"""Which matrices may be in work at once, so that workers together take no more memory than the largest matrix alone.

A method of matrices needs up to eight float32 copies of the matrix it works on. Changes no byte of the output.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from cuvee.plan.matrices import memory_of
from cuvee.plan.plan import OutputTensor

_PATIENCE = 0.2  # seconds between two looks at whether work must end


class Room:
    """Memory for matrices, as much as the largest needs; those that fit beside each other work at once."""

    def __init__(self, tensors: Iterable[OutputTensor]) -> None:
        self.needs = {tensor.meta.name: memory_of(tensor.node) for tensor in tensors}
        self.free = max(self.needs.values(), default=0)
        self._changed = threading.Condition()

    @contextmanager
    def taking(self, name: str, stopped: Callable[[], bool]) -> Iterator[None]:
        """Wait until there is room for a tensor, and hold it; goes on at once when work must end."""
        needed = self.needs.get(name, 0)
        with self._changed:
            while needed > self.free and not stopped():
                self._changed.wait(_PATIENCE)
            self.free -= needed
        try:
            yield
        finally:
            with self._changed:
                self.free += needed
                self._changed.notify_all()
