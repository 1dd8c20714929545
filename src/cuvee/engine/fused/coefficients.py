"""Weights divided by their sum, to the bit as the stage has them, without torch or NumPy."""

from __future__ import annotations

from collections.abc import Sequence

from cuvee.methods.coefficients import cancels, normalized


def shares(weights: Sequence[float]) -> list[float]:
    """`coefficients.normalized` as floats: the sum is taken in order. RunError where the weights cancel."""
    values = [float(weight) for weight in weights]
    if cancels(values):
        normalized(values)  # says what is wrong
    total = sum(values)
    return [value / total for value in values]
