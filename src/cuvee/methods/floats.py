"""Functions of single float64 numbers, under the names that NumPy and torch have for arrays.

For formulas of a few coefficients, which then wait for neither library. As there, what has no value is NaN and no
error. Must not know any formula.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

absolute = math.fabs


def sqrt(x: float) -> float:
    """The square root; NaN below 0."""
    return math.sqrt(x) if x >= 0 else math.nan


def sin(x: float) -> float:
    """The sine; NaN of what is not finite."""
    return math.sin(x) if math.isfinite(x) else math.nan


def cos(x: float) -> float:
    """The cosine; NaN of what is not finite."""
    return math.cos(x) if math.isfinite(x) else math.nan


def arccos(x: float) -> float:
    """The angle in [0, π] that has this cosine; NaN beyond −1 and 1."""
    return math.acos(x) if -1 <= x <= 1 else math.nan


def divide(a: float, b: float) -> float:
    """a / b; infinite, or NaN for 0 / 0, where b is 0."""
    if b:
        return a / b
    return math.copysign(math.inf, a) * math.copysign(1, b) if a and not math.isnan(a) else math.nan


def where(condition: bool, yes: T, no: T) -> T:
    """One of the two."""
    return yes if condition else no


def clip(x: float, least: float | None, most: float | None) -> float:
    """x within bounds, of which None is none; NaN stays NaN."""
    if least is not None and x <= least:
        x = float(least)
    return float(most) if most is not None and x >= most else x


def stack(values: Sequence[float]) -> list[float]:
    """Numbers as one list."""
    return list(values)


def mean(values: Sequence[float], axis: int = 0) -> float:
    """The sum, taken in order, divided by the count."""
    total = 0.0
    for value in values:
        total += value
    return total / len(values)
