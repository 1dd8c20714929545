"""Deltas that are more than one product: DoRA, LoHa, LoKr, computed for the rows that are asked for.

Owns their mathematics (arXiv:2402.09353, 2108.06098, 2309.14859). As in `low_rank`, rows are cut into tiles that depend
on the shape alone, so an element has the same bits whatever range it is read in. Must not know names or files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuvee.core.lazy import torch
from cuvee.sources.low_rank import Delta, FactorCache

if TYPE_CHECKING:
    import torch as torch_types
    from torch import Tensor

Load = Callable[[], "Tensor"]
_TILE = 1 << 16  # elements made at once


@dataclass(frozen=True, slots=True)
class Rescaled:
    """DoRA: m ⊙ (W + Δ) / ‖W + Δ‖ − W, with one magnitude for each row, or for each `kernel` columns.

    `weight` reads elements of W. The norms are taken once, in one pass over W, and kept with the factors. Where a norm
    is 0, W + Δ stays 0.
    """

    inner: Delta
    weight: Callable[[int, int], Tensor]
    magnitude: Load
    shape: tuple[int, int]
    by_column: bool
    cache: FactorCache
    kernel: int = 1

    def slice(self, start: int, stop: int, dtype: torch_types.dtype) -> Tensor:
        """Elements [start, stop) of what is added to W."""
        if stop <= start:
            return torch.empty(0, dtype=dtype)
        factor, _ = self.cache.get((id(self), dtype), lambda: self._factors(dtype))
        own = self.weight(start, stop).to(dtype)
        places = torch.arange(start, stop)
        of = places % self.shape[1] // self.kernel if self.by_column else places // self.shape[1]
        return (self.inner.slice(start, stop, dtype) + own) * factor[of] - own

    def _factors(self, dtype: torch_types.dtype) -> tuple[Tensor, Tensor]:
        rows, columns = self.shape
        squares = torch.zeros(columns if self.by_column else rows, dtype=torch.float64)
        step = max(1, _TILE // columns)
        for row in range(0, rows, step):
            last = min(rows, row + step)
            first, end = row * columns, last * columns
            block = self.weight(first, end).to(dtype) + self.inner.slice(first, end, dtype)
            square = block.reshape(-1, columns).double().square()
            if self.by_column:
                squares += square.sum(0)
            else:
                squares[row:last] = square.sum(1)
        norms = squares.reshape(-1, self.kernel).sum(1).sqrt() if self.by_column else squares.sqrt()
        factor = (self.magnitude().reshape(-1).double() / torch.where(norms > 0, norms, 1.0)).to(dtype)
        return factor, factor[:0]


@dataclass(frozen=True, slots=True)
class Hadamard:
    """LoHa: scale · (L₁R₁) ⊙ (L₂R₂), each L (rows, rank) and R (rank, columns)."""

    lefts: tuple[Load, Load]
    rights: tuple[Load, Load]
    scale: float
    columns: int
    cache: FactorCache

    def slice(self, start: int, stop: int, dtype: torch_types.dtype) -> Tensor:
        """Elements [start, stop), row-major."""
        first = self.cache.get((id(self), dtype, 0), lambda: self._pair(0, dtype))
        second = self.cache.get((id(self), dtype, 1), lambda: self._pair(1, dtype))

        def rows(low: int, high: int) -> Tensor:
            return ((first[0][low:high] @ first[1]) * (second[0][low:high] @ second[1])).mul_(self.scale)

        return _tiled(rows, start, stop, self.columns, dtype)

    def _pair(self, number: int, dtype: torch_types.dtype) -> tuple[Tensor, Tensor]:
        return self.lefts[number]().to(dtype), self.rights[number]().to(dtype)


@dataclass(frozen=True, slots=True)
class Kronecker:
    """LoKr: scale · (w₁ ⊗ w₂), w₁ (a, b) and w₂ (c, d) giving (a·c, b·d)."""

    first: Load
    second: Load
    scale: float
    columns: int
    cache: FactorCache

    def slice(self, start: int, stop: int, dtype: torch_types.dtype) -> Tensor:
        """Elements [start, stop), row-major."""
        w1, w2 = self.cache.get((id(self), dtype), lambda: (self.first().to(dtype), self.second().to(dtype)))

        def rows(low: int, high: int) -> Tensor:
            number = torch.arange(low, min(high, len(w1) * len(w2)))
            outer, inner = w1[number // len(w2)], w2[number % len(w2)]
            return (outer[:, :, None] * inner[:, None, :]).mul_(self.scale)

        return _tiled(rows, start, stop, self.columns, dtype)


@dataclass(frozen=True, slots=True)
class Made:
    """A delta that is made whole, for kernels of convolutions, and kept like factors."""

    make: Callable[[torch_types.dtype], Tensor]
    cache: FactorCache

    def slice(self, start: int, stop: int, dtype: torch_types.dtype) -> Tensor:
        """Elements [start, stop), row-major."""

        def whole() -> tuple[Tensor, Tensor]:
            made = self.make(dtype).reshape(-1)
            return made, made[:0]

        return self.cache.get((id(self), dtype), whole)[0][start:stop].clone()


def mode_products(core: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """A kernel (p, r, …) from a core (i, j, …) and matrices (i, p) and (j, r) (Tucker-2)."""
    return torch.einsum("ij...,ip,jr->pr...", core, first, second)


def _tiled(
    rows: Callable[[int, int], Tensor], start: int, stop: int, columns: int, dtype: torch_types.dtype
) -> Tensor:
    """Elements [start, stop) of what `rows` makes, in tiles of whole rows."""
    out = torch.empty(max(0, stop - start), dtype=dtype)
    step = max(1, _TILE // columns)
    for row in range(start // columns // step * step, -(-stop // columns), step):
        tile = rows(row, row + step).reshape(
            -1
        )  # the same tile whatever is asked for; the last one is shorter
        first = row * columns
        begin, end = max(start, first), min(stop, first + tile.numel())
        out[begin - start : end - start] = tile[begin - first : end - first]
    return out
