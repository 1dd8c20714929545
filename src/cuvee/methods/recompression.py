"""A task vector as a product of rank k: the best one in the Frobenius norm, and how far it is off.

Owns the choice of k by a bound. Must not know where matrices come from, or what adapters look like in files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuvee.core.lazy import torch
from cuvee.methods.contract import Decomposer, Factors

if TYPE_CHECKING:
    from torch import Tensor

_FIRST = 64  # triplets asked for before the bound says whether more are needed
_TOLD = 1e-5  # the least share of Σσ² that is told from rounding in float32
_ROUNDING = 1e-6  # beside the norm: a rest below it is rounding of float32, not something left out


@dataclass(frozen=True, slots=True)
class Bound:
    """How large the product may be: one of a rank, a share of the energy Σσ² to keep, a relative error to allow."""

    rank: int | None = None
    energy: float | None = None
    error: float | None = None

    @property
    def rest(self) -> float:
        """The share of Σσ² that may be left out."""
        if self.energy is not None:
            return 1 - self.energy
        return 0.0 if self.error is None else self.error**2


@dataclass(frozen=True, slots=True)
class Compressed:
    """left (m × k) @ right (k × n), the norm of what it stands for, and the norm of what is missing."""

    factors: Factors
    norm: float
    missing: float

    @property
    def rank(self) -> int:
        return self.factors.right.shape[0]


def compress(matrix: Tensor, bound: Bound, decompose: Decomposer) -> Compressed:
    """The best product within the bound: U√Σ · √ΣVᵀ of the leading triplets (Eckart and Young).

    A given rank is brought down to that of the matrix; a bound on energy or error takes the least rank that keeps it.
    """
    total = float(matrix.double().square().sum())
    full = min(matrix.shape)
    for wanted in _levels(full, bound):
        u, s, vh = decompose.svd(matrix, wanted)
        kept = chosen(s, total, bound, whole=len(s) == full)
        if kept < len(s) or len(s) == full or bound.rank is not None:
            break
    factors = _factors(u, s, vh, kept)
    missing = float((matrix - factors.left @ factors.right).double().norm())
    return Compressed(factors, math.sqrt(total), missing)


def compress_product(factors: Factors, bound: Bound, decompose: Decomposer) -> Compressed:
    """`compress` of a product of few columns, without forming it: QR of both sides, then the small core."""
    q, r = torch.linalg.qr(factors.left.double())
    p, t = torch.linalg.qr(factors.right.double().T)
    u, s, vh = decompose.svd(r @ t.T)
    total = float(s.square().sum())
    kept = chosen(s, total, bound, whole=True)
    return Compressed(_factors(q @ u, s, vh @ p.T, kept), math.sqrt(total), float(s[kept:].norm()))


def chosen(values: Tensor, total: float, bound: Bound, *, whole: bool) -> int:
    """How many of the leading singular values are kept; `total` is the sum of squares of all of them, and `whole` says
    that all are given.
    """
    squares = values.double().square()
    there = int((squares > (_ROUNDING**2) * total).sum())
    if bound.rank is not None:
        return min(bound.rank, there)
    # What is left out is summed where it is known: a difference of sums would have their rounding.
    rest = squares.flip(0).cumsum(0).flip(0) - squares if whole else total - squares.cumsum(0)
    enough = (rest <= bound.rest * total * (1 + 1e-12)).nonzero().reshape(-1)
    return min(there, int(enough[0]) + 1) if len(enough) else len(values)


def _levels(full: int, bound: Bound) -> Iterator[int | None]:
    """How many triplets to ask for, until the bound is kept; all at once where a difference of sums cannot tell."""
    if bound.rank is not None:
        yield min(bound.rank, full)
        return
    wanted = _FIRST
    while wanted < full and bound.rest > _TOLD:
        yield wanted
        wanted *= 4
    yield None


def _factors(u: Tensor, s: Tensor, vh: Tensor, kept: int) -> Factors:
    root = s[:kept].sqrt()
    return Factors(u[:, :kept] * root, root[:, None] * vh[:kept])
