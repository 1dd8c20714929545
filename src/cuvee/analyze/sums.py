"""The figures of task vectors that add up over tensors, and what follows from them.

Owns the definitions. Input 0 of a block is the base, the others are task vectors (expert − base). Products and sums
are float64; they are matrix products over fixed blocks, quicker than the exact sums of `methods.summaries`, which
outputs need and reports do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuvee.core.lazy import numpy, torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[numpy.float64]

SHARES = (0.01, 0.05, 0.20)  # of each tensor's elements that count as its largest


@dataclass(frozen=True, slots=True)
class Sums:
    """Additive figures of one base and n task vectors δ over some elements.

    `gram` (n+1 × n+1): dot products, the base first. `magnitudes` (n × n): Σ|δᵢ||δⱼ|. `both`, `opposed` (n × n):
    positions where both are not zero, and of those the ones with opposite signs. `several`: positions where at least
    two are not zero; `mixed`: those of both signs among them. `tops` (shares × n × n): positions among the largest of
    both, see `SHARES`.
    """

    numel: int
    gram: Array
    magnitudes: Array
    both: Array
    opposed: Array
    several: int
    mixed: int
    tops: Array

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(getattr(self, name) + getattr(other, name) for name in Sums.__slots__))

    @property
    def norms(self) -> Array:
        """‖δᵢ‖ of each task vector (n)."""
        return numpy.sqrt(numpy.diag(self.gram)[1:])

    @property
    def relative(self) -> Array:
        """‖δᵢ‖ / ‖base‖ (n); NaN where the base is zero."""
        return _ratio(self.norms, numpy.sqrt(self.gram[0, 0]))

    @property
    def cosines(self) -> Array:
        """cos(δᵢ, δⱼ) (n × n); NaN for a task vector of zeros."""
        return _ratio(self.gram[1:, 1:], numpy.outer(self.norms, self.norms))

    @property
    def base_cosines(self) -> Array:
        """cos(base, expert) (n): near 1 for a fine-tune of this base, near 0 for a stranger."""
        base, dots = self.gram[0, 0], self.gram[0, 1:]
        lengths = numpy.sqrt(numpy.maximum(base + 2 * dots + self.norms**2, 0.0) * base)
        return _ratio(base + dots, lengths)

    @property
    def conflicts(self) -> Array:
        """Share of positions with opposite signs, of those where both are not zero (n × n)."""
        return _ratio(self.opposed, self.both)

    @property
    def conflict(self) -> float:
        """Share of positions with both signs, of those that at least two task vectors change."""
        return self.mixed / self.several if self.several else float("nan")

    @property
    def opposition(self) -> Array:
        """Conflict-weighted overlap of energy (n × n): Σ over opposite signs of |δᵢδⱼ| / (‖δᵢ‖‖δⱼ‖), from 0 to 1.

        From sums over all positions, as |a||b| − ab is 2|a||b| where signs differ and 0 elsewhere.
        """
        opposite = numpy.maximum(self.magnitudes - self.gram[1:, 1:], 0.0) / 2
        return _ratio(opposite, numpy.outer(self.norms, self.norms))

    @property
    def jaccard(self) -> Array:
        """Jaccard index of the positions of the largest elements (shares × n × n)."""
        own = numpy.diagonal(self.tops, axis1=1, axis2=2)
        return _ratio(self.tops, own[:, :, None] + own[:, None, :] - self.tops)


def none(experts: int) -> Sums:
    """Sums over nothing."""
    square = (experts, experts)
    empty = numpy.zeros
    return Sums(
        0,
        empty((experts + 1, experts + 1)),
        empty(square),
        empty(square),
        empty(square),
        0,
        0,
        empty((len(SHARES), *square)),
    )


def of_block(base: Tensor, deltas: Tensor, masks: list[Tensor]) -> Sums:
    """The figures of a run of elements: `base` (e), `deltas` (n × e), `masks` for each share (n × e, bool).

    At most 2²⁴ elements, up to which float32 counts are exact.
    """
    wide = torch.cat([base.double()[None], deltas.double()])
    signs = deltas.sign().float()
    present = signs.abs()
    both, agreed = _product(present), _product(signs)
    mixed = (signs.amax(0) > 0) & (signs.amin(0) < 0)
    return Sums(
        deltas.shape[1],
        _product(wide),
        _product(wide[1:].abs()),
        both,
        (both - agreed) / 2,
        int((present.sum(0) >= 2).sum()),
        int(mixed.sum()),
        numpy.stack([_product(mask.float()) for mask in masks]),
    )


def _product(rows: Tensor) -> Array:
    """X Xᵀ as float64."""
    found: Array = (rows @ rows.T).double().numpy()
    return found


def _ratio(above: Array, below: Array) -> Array:
    """The quotient, NaN where the divisor is zero."""
    with numpy.errstate(divide="ignore", invalid="ignore"):
        found: Array = numpy.where(below == 0, numpy.nan, above / below)
    return found
