"""Sums of float64 values that come out the same however the data are cut: fixed lines, a fixed tree, one rounding.

Owns the lines and the exact addition of their sums. Must not know streams or methods.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

LINE = 1024
_PENDING = 8192  # line sums held before they are folded into an exact expansion


def line_sums(figure: Tensor, *, by_row: bool) -> Tensor:
    """float64 sums of the lines of a figure: halves are added until one value is left, a fixed tree."""
    wide = figure.double()
    if not by_row:
        wide = wide.reshape(1, -1)
    elif wide.dim() < 2:
        return wide.reshape(-1)  # one value for each row: every row is a line
    rows, length = wide.shape
    line = LINE if length >= LINE else 1 << max(length - 1, 0).bit_length()
    if length % line:  # zeros leave a sum as it is
        wide = torch.nn.functional.pad(wide, (0, -length % line))
    wide = wide.reshape(rows * (wide.shape[1] // line), line)
    while line > 1:
        line //= 2
        wide = wide[:, :line] + wide[:, line:]
    return wide.reshape(-1)


class Exact:
    """A sum of float64 values that is rounded once, at the end, and so does not depend on their order."""

    def __init__(self) -> None:
        self._terms: list[float] = []

    def add(self, values: Tensor) -> None:
        self.extend(values.tolist())

    def extend(self, terms: Iterable[float]) -> None:
        """Add numbers."""
        self._terms.extend(terms)
        if len(self._terms) > _PENDING:
            self._terms = expansion(self._terms)

    def value(self) -> float:
        return _sum(self._terms)


def expansion(terms: list[float]) -> list[float]:
    """A few floats of exactly the same sum: the rounded sum, then the rounded rest, until none is left."""
    out: list[float] = []
    while rest := _sum([*terms, *(-x for x in out)]):
        out.append(rest)
        if not math.isfinite(rest):
            return [rest]
    return out


def _sum(terms: Iterable[Any]) -> float:
    values = list(terms)
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # infinities of both signs, or a sum beyond float64
        return float(sum(values))
