"""Weights divided by their sum, to the bit as the stage has them, without torch where that can be proven."""

from __future__ import annotations

from collections.abc import Sequence
from math import frexp

_BITS = 53


def shares(weights: Sequence[float]) -> list[float]:
    """`coefficients.normalized` as floats.

    A library may add the weights in any order, which matters only where an addition rounds. Up to three it adds in
    order (its vectors hold more), and numbers with few bits add up exactly in any order; else it is asked.
    """
    values = [float(weight) for weight in weights]
    total = sum(values)
    safe = len(values) < 4 or _exact(values)
    if safe and abs(total) > 1e-12 * sum(map(abs, values)):
        return [value / total for value in values]
    from cuvee.methods.coefficients import normalized

    found: list[float] = normalized(list(weights)).tolist()
    return found


def _exact(values: Sequence[float]) -> bool:
    """Whether every partial sum, in any order, is a float64: all are multiples of one unit, and few of them."""
    exponents = [frexp(value)[1] for value in values if value]
    if not exponents:
        return False
    unit = 2.0 ** (max(exponents) - _BITS + len(values).bit_length() + 1)
    return unit > 0 and all((value / unit).is_integer() for value in values)
