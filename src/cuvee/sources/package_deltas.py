"""Task vectors as packages store them, decoded for the elements that are asked for.

Owns the decoding of masks, signs and sparse entries; products, vectors and sums are those of `low_rank`. An element
has the same bits whatever range it is read in. Must not know files or names of parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuvee.core.lazy import torch
from cuvee.formats.package_form import unpacked
from cuvee.sources.low_rank import Delta, FactorCache, Scaled, Sum

if TYPE_CHECKING:
    import torch as torch_types
    from torch import Tensor

Read = Callable[[int, int], "Tensor"]


@dataclass(frozen=True, slots=True)
class Masked:
    """mask ⊙ vector · scale; `scale` is None where nothing is scaled."""

    bits: Read
    vector: Read
    scale: Callable[[], float] | None

    def slice(self, start: int, stop: int, dtype: torch_types.dtype) -> Tensor:
        """Elements [start, stop)."""
        kept = torch.where(_flags(self.bits, start, stop), self.vector(start, stop).to(dtype), 0.0)
        return kept if self.scale is None else kept * self.scale()


@dataclass(frozen=True, slots=True)
class Signed:
    """−scale where the bit is set, else +scale."""

    bits: Read
    scale: Callable[[], float]

    def slice(self, start: int, stop: int, dtype: torch_types.dtype) -> Tensor:
        """Elements [start, stop)."""
        return torch.where(_flags(self.bits, start, stop), -1.0, 1.0).to(dtype) * self.scale()


@dataclass(frozen=True, slots=True)
class Sparse:
    """Values at ascending positions, 0 elsewhere; `load` gives both, checked."""

    load: Callable[[], tuple[Tensor, Tensor]]
    cache: FactorCache

    def slice(self, start: int, stop: int, dtype: torch_types.dtype) -> Tensor:
        """Elements [start, stop)."""
        places, values = self.cache.get(id(self), self.load)
        first, last = torch.searchsorted(places, torch.tensor([start, stop], dtype=places.dtype)).tolist()
        out = torch.zeros(stop - start, dtype=dtype)
        out[places[first:last].long() - start] = values[first:last].to(dtype)
        return out


@dataclass(frozen=True, slots=True)
class Combined:
    """Σ cⱼ xⱼ, in order; `coefficients` are read when first needed."""

    vectors: Callable[[int], Read]
    coefficients: Callable[[], list[float]]

    def slice(self, start: int, stop: int, dtype: torch_types.dtype) -> Tensor:
        """Elements [start, stop)."""
        terms = tuple(Scaled(self.vectors(number), value) for number, value in enumerate(self.coefficients()))
        return Sum(terms).slice(start, stop, dtype)


@dataclass(frozen=True, slots=True)
class Weighted:
    """weight · delta: a task's part in a combination of several."""

    delta: Delta
    weight: float

    def slice(self, start: int, stop: int, dtype: torch_types.dtype) -> Tensor:
        """Elements [start, stop)."""
        return self.delta.slice(start, stop, dtype) * self.weight


def _flags(bits: Read, start: int, stop: int) -> Tensor:
    first = start // 8
    return unpacked(bits(first, (stop + 7) // 8), start - 8 * first, stop - 8 * first)
