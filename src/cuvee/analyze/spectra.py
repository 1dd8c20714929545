"""Singular values of task vectors, matrix by matrix, and how far their leading directions coincide.

Owns what is made of decompositions; they come from the store that merges use, so that neither computes one twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuvee.analyze.reading import Deltas, Spot
from cuvee.core.lazy import numpy
from cuvee.methods.contract import Decomposer

if TYPE_CHECKING:
    from torch import Tensor

    from cuvee.analyze.sums import Array

LEADING = 64  # singular values that are looked at; computing more costs several times as much
SHARED = 8  # directions whose subspaces are compared
ENERGY = 0.9


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The task vectors of one matrix.

    `values`: for each expert its leading singular values, descending; `energy`: ‖δ‖² of each. `left`, `right` (n × n):
    overlap of the spans of the leading `SHARED` singular vectors, ‖UᵢᵀUⱼ‖² / k: 1 for the same span, k / dimension
    for independent ones.
    """

    spot: Spot
    values: Array
    energy: Array
    left: Array
    right: Array

    @property
    def stable_ranks(self) -> Array:
        """‖δ‖² / σ₁²: 1 for a single direction; NaN for a task vector of zeros."""
        largest = self.values[:, 0] ** 2
        found: Array = numpy.divide(
            self.energy, largest, out=numpy.full(len(largest), numpy.nan), where=largest > 0
        )
        return found

    @property
    def cumulative(self) -> Array:
        """Share of the energy in the first r directions (n × r)."""
        sums = numpy.cumsum(self.values**2, axis=1)
        below = numpy.where(self.energy > 0, self.energy, numpy.nan)[:, None]
        found: Array = numpy.minimum(sums / below, 1.0)
        return found

    @property
    def directions(self) -> tuple[int | None, ...]:
        """How many directions hold 90 % of the energy; None where the leading ones do not."""
        enough = self.cumulative >= ENERGY
        return tuple(int(row.argmax()) + 1 if row.any() else None for row in enough)


def is_matrix(spot: Spot) -> bool:
    """Whether the tensor has a spectrum to speak of."""
    return len(spot.shape) >= 2 and min(spot.shape[0], math.prod(spot.shape[1:])) > 1


def spectrum(deltas: Deltas, decompose: Decomposer) -> Spectrum:
    """The spectrum of one matrix; memory for one task vector and the leading directions of all."""
    values, energy, lefts, rights = [], [], [], []
    for number in range(deltas.inputs):
        matrix = deltas.matrix(number)
        u, s, vh = decompose.svd(matrix, min(LEADING, *matrix.shape))
        values.append(s.double().numpy())
        energy.append(float(matrix.double().square().sum()))
        count = min(SHARED, *matrix.shape)
        lefts.append(u[:, :count].double() if energy[-1] else None)
        rights.append(vh[:count].T.double() if energy[-1] else None)
    return Spectrum(
        deltas.spot, numpy.stack(values), numpy.array(energy), _overlaps(lefts), _overlaps(rights)
    )


def _overlaps(spans: list[Tensor | None]) -> Array:
    out = numpy.full((len(spans), len(spans)), numpy.nan)
    for i, a in enumerate(spans):
        for j, b in enumerate(spans):
            if a is not None and b is not None:
                out[i, j] = float((a.T @ b).square().sum()) / a.shape[1]
    return out
