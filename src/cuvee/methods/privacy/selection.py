"""Which model is released: one draw of the operating system's randomness, exact to 2⁻¹²⁸.

Seeds have no place here: a draw that can be repeated, or guessed, has no guarantee. Must not know what is released.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from fractions import Fraction

from cuvee.methods.privacy.accounting import selection_delta

_GRAIN = 1 << 128


def select(probabilities: Sequence[float], *, below: Callable[[int], int] = secrets.randbelow) -> int:
    """The index of the model to release: i with probability pᵢ, whatever was drawn before.

    Draw once for a release and keep it: drawing again until the result pleases breaks the guarantee. `below(n)` gives
    a uniform whole number below n; leave it alone but in tests.

    Raises:
        UsageError: CV-U191 where the probabilities do not sum to 1.
    """
    selection_delta(probabilities, [0.0] * len(probabilities))  # says what is wrong with them
    parts = [Fraction(p) for p in probabilities]
    point = Fraction(2 * below(_GRAIN) + 1, 2 * _GRAIN) * sum(parts)
    reached = Fraction(0)
    for index, part in enumerate(parts):
        reached += part
        if point < reached:
            return index
    return max(i for i, part in enumerate(parts) if part)
