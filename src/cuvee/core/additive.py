"""What is left of numbers on sets when every member may bring one number of its own to all its sets.

Owns the projection and nothing of what the numbers are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cuvee.core.lazy import numpy

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROUNDING = 1e-9  # of the largest value: what least squares leave of something that they fit exactly


def projection(sets: Sequence[Sequence[int]], members: int) -> NDArray[numpy.float64]:
    """The matrix (sets × sets) onto what no sum of one number for each member gives, by least squares."""
    member = numpy.zeros((len(sets), members))
    for row, chosen in enumerate(sets):
        member[row, list(chosen)] = 1
    rest: NDArray[numpy.float64] = numpy.eye(len(sets)) - member @ numpy.linalg.pinv(member)
    return rest


def left_of(rest: NDArray[numpy.float64], values: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
    """Values (… × sets) after a projection, exactly zero where only rounding is left."""
    left = values @ rest
    found: NDArray[numpy.float64] = numpy.where(
        numpy.abs(left) > _ROUNDING * numpy.abs(values).max(initial=0.0), left, 0.0
    )
    return found
