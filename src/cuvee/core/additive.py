"""What is left of numbers on sets when every member may bring one number of its own to all its sets.

Owns the least squares and nothing of what the numbers are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cuvee.core.lazy import numpy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[numpy.float64]

_ROUNDING = 1e-9  # of the largest value: what least squares leave of something that they fit exactly


class OwnParts:
    """The sums of one number for each member, as least squares fit them to numbers on these sets."""

    def __init__(self, sets: Sequence[Sequence[int]], members: int) -> None:
        self._member = numpy.zeros((len(sets), members))
        for row, chosen in enumerate(sets):
            self._member[row, list(chosen)] = 1
        self._inverse: Matrix = numpy.linalg.pinv(self._member).astype(numpy.float64)

    def taken_out(self, values: Matrix) -> Matrix:
        """What is left of values (… × sets); exactly zero where only rounding is, NaN in rows that hold one."""
        left: Matrix = values - (values @ self._inverse.T) @ self._member.T
        least = _ROUNDING * numpy.abs(values).max(axis=-1, initial=0.0, keepdims=True)
        found: Matrix = numpy.where(numpy.abs(left) <= least, numpy.float64(0), left)
        return found

    def free(self) -> Matrix:
        """The share of each set's own value that is left of it (sets); 0 where it is fitted whatever it is."""
        found: Matrix = 1 - (self._member * self._inverse.T).sum(1)
        return found
