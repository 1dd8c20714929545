"""What a merge leaves of each expert's change, tensor by tensor, beside what plainly adding the changes would leave.

Owns the definitions: *opposed* is the share of an expert's energy at positions where the merge moves the other way
(δᵢ² where m δᵢ < 0), *kept* the projection ⟨m, δᵢ⟩ / ‖δᵢ‖², *distance* ‖m − δᵢ‖ / ‖δᵢ‖; m is the merge minus the base.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuvee.analyze.reading import Deltas, Spot
from cuvee.core.lazy import numpy

if TYPE_CHECKING:
    from torch import Tensor

    from cuvee.analyze.sums import Array


@dataclass(frozen=True, slots=True)
class Remains:
    """Additive figures of n experts and one merge: energies ‖δᵢ‖², opposed energy in the plain sum (`before`) and in
    the merge (`after`), dot products with the merge, and ‖m‖².
    """

    energy: Array
    before: Array
    after: Array
    dots: Array
    merged: float

    def __add__(self, other: Remains) -> Remains:
        return Remains(*(getattr(self, name) + getattr(other, name) for name in Remains.__slots__))

    @property
    def opposed_before(self) -> Array:
        """Share of each expert's energy that the sum of all changes opposes."""
        return self.before / self._divisor

    @property
    def opposed(self) -> Array:
        """Share of each expert's energy that the merge opposes."""
        return self.after / self._divisor

    @property
    def kept(self) -> Array:
        """How much of each expert's change the merge contains: 1 all of it, 0 none."""
        return self.dots / self._divisor

    @property
    def distance(self) -> Array:
        """‖m − δᵢ‖ / ‖δᵢ‖."""
        found: Array = numpy.sqrt(
            numpy.maximum(self.merged - 2 * self.dots + self.energy, 0.0) / self._divisor
        )
        return found

    @property
    def _divisor(self) -> Array:
        return numpy.where(self.energy > 0, self.energy, numpy.nan)


@dataclass(frozen=True, slots=True)
class Kept:
    """One tensor and what a merge left of the experts there."""

    spot: Spot
    remains: Remains


def remains(deltas: Deltas) -> Remains:
    """The figures of one tensor; the last input of `deltas` is the merge."""
    nothing = numpy.zeros(deltas.inputs - 1)
    total = Remains(nothing, nothing, nothing, nothing, 0.0)
    for _, rows in deltas.runs():
        experts, merge = rows[1:-1], rows[-1]
        total = total + Remains(
            _energy(experts),
            _opposed(experts, experts.sum(0)),
            _opposed(experts, merge),
            (experts.double() @ merge.double()).numpy(),
            float(merge.double().square().sum()),
        )
    return total


def _energy(rows: Tensor) -> Array:
    energy: Array = rows.double().square().sum(1).numpy()
    return energy


def _opposed(rows: Tensor, to: Tensor) -> Array:
    return _energy(rows * (rows.sign() * to.sign() < 0))
