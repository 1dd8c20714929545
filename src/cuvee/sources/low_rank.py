"""Deltas that are never stored: s·(L R), computed for the rows that are asked for.

Rows are cut into tiles that depend on the tensor's shape alone, and a tile is always one product of the
same two matrices, so an element has the same bits whatever range it is read in. Accumulates in float32
(float64 on request). Must not know where the factors come from or what they are called.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cuvee.core.lazy import torch

if TYPE_CHECKING:
    import torch as torch_types
    from torch import Tensor

_TILE = 1 << 16  # elements of a product made at once: 256 KiB, within a core's cache
_KEPT = 8  # pairs of factors in memory at once, for each thread


class Delta(Protocol):
    """What is added to a base tensor."""

    def slice(self, start: int, stop: int, dtype: torch_types.dtype) -> Tensor:
        """Elements [start, stop) of the flattened delta, fresh memory."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """scale · left @ right, left (rows, rank) and right (rank, columns), loaded when first needed."""

    left: Callable[[], Tensor]
    right: Callable[[], Tensor]
    scale: float
    columns: int
    cache: FactorCache

    def slice(self, start: int, stop: int, dtype: torch_types.dtype) -> Tensor:
        """Elements [start, stop) of the product, row-major."""
        out = torch.empty(stop - start, dtype=dtype)
        if stop <= start:
            return out
        left, right = self.cache.get((id(self), dtype), lambda: self._factors(dtype))
        step = max(1, _TILE // self.columns)
        for row in range(start // self.columns // step * step, -(-stop // self.columns), step):
            tile = (left[row : row + step] @ right).mul_(self.scale).reshape(-1)
            first = row * self.columns
            begin, end = max(start, first), min(stop, first + tile.numel())
            out[begin - start : end - start] = tile[begin - first : end - first]
        return out

    def factors(self, dtype: torch_types.dtype) -> tuple[Tensor, Tensor]:
        """left · scale and right, whose product is the delta as a matrix."""
        left, right = self._factors(dtype)
        return left * self.scale, right

    def _factors(self, dtype: torch_types.dtype) -> tuple[Tensor, Tensor]:
        left, right = self.cache.get((id(self), "stored"), lambda: (self.left(), self.right()))
        return left.to(dtype).contiguous(), right.to(dtype).contiguous()


@dataclass(frozen=True, slots=True)
class Scaled:
    """scale · vector: what LoRA adds to a bias."""

    vector: Callable[[int, int], Tensor]
    scale: float

    def slice(self, start: int, stop: int, dtype: torch_types.dtype) -> Tensor:
        """Elements [start, stop) of the scaled vector."""
        return self.vector(start, stop).to(dtype) * self.scale


@dataclass(frozen=True, slots=True)
class Sum:
    """Several deltas on one tensor, added in order."""

    deltas: tuple[Delta, ...]

    def slice(self, start: int, stop: int, dtype: torch_types.dtype) -> Tensor:
        """Elements [start, stop) of the sum."""
        total = self.deltas[0].slice(start, stop, dtype)
        for delta in self.deltas[1:]:
            total.add_(delta.slice(start, stop, dtype))
        return total


class FactorCache(threading.local):
    """The factors of the tensor that a thread works on, as they are stored and as they were asked for; the pair that
    was not used for longest makes room. Threads share nothing: what each reads depends on its own tensors alone.
    """

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept = kept
        self._pairs: OrderedDict[Hashable, tuple[Tensor, Tensor]] = OrderedDict()

    def get(self, key: Hashable, load: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The pair under `key`, loaded if it is not there."""
        if key not in self._pairs:
            self._pairs[key] = load()
        self._pairs.move_to_end(key)
        while len(self._pairs) > self._kept:
            self._pairs.popitem(last=False)
        return self._pairs[key]

    def clear(self) -> None:
        """Forget this thread's factors."""
        self._pairs.clear()
