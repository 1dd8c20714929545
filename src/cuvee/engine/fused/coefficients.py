"""Weights divided by their sum, to the bit as the stage has them, without torch."""

from __future__ import annotations

from collections.abc import Sequence


def shares(weights: Sequence[float]) -> list[float]:
    """`coefficients.normalized` as floats: the sum is taken in order. RunError where the weights cancel."""
    values = [float(weight) for weight in weights]
    total = sum(values)
    if abs(total) > 1e-12 * sum(map(abs, values)):
        return [value / total for value in values]
    from cuvee.methods.coefficients import normalized  # says what is wrong

    found: list[float] = normalized(list(weights)).tolist()
    return found
