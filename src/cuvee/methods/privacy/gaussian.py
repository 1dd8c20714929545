"""Exact privacy of Gaussian noise on a released value of known sensitivity, and of weighted means of such values.

For private means only: the weights of neural networks are no value plus Gaussian noise, also where training added noise
to gradients. Owns these formulas; must not be used for models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cuvee.errors import UsageError
from cuvee.methods.privacy.accounting import Guarantee


def gaussian_delta(epsilon: float, sigma: float, sensitivity: float = 1.0) -> float:
    """δ(ε) of a value with noise N(0, σ²): Φ(Δ/2σ − εσ/Δ) − e^ε Φ(−Δ/2σ − εσ/Δ) (Balle and Wang, arXiv:1805.06530)."""
    _positive(sigma, sensitivity)
    ratio = sensitivity / sigma
    low = _normal(-ratio / 2 - epsilon / ratio)
    return max(0.0, _normal(ratio / 2 - epsilon / ratio) - (math.exp(epsilon) * low if low else 0.0))


def gaussian_rdp(order: float, sigma: float, sensitivity: float = 1.0) -> float:
    """ε(α) of a value with noise N(0, σ²): α Δ² / (2 σ²)."""
    _positive(sigma, sensitivity)
    return order * sensitivity**2 / (2 * sigma**2)


def gaussian_linear(
    weights: Sequence[float], sigmas: Sequence[float], delta: float, sensitivity: float = 1.0
) -> Guarantee:
    """The smallest ε for this δ of Σ wᵢ (m + N(0, σᵢ²)) with Σ wᵢ = 1: Gaussian noise with σ² = Σ wᵢ² σᵢ².

    m is one number, or vector, of the given sensitivity in L2. Not for neural networks.
    """
    if len(weights) != len(sigmas) or abs(math.fsum(weights) - 1) > 1e-9:
        message = f"{len(sigmas)} noisy values need as many weights of sum 1, got {list(weights)}"
        raise UsageError("CV-U191", message)
    _positive(*sigmas)
    if not 0 < delta < 1:
        raise UsageError("CV-U191", f"a delta must be above 0 and below 1, got {delta!r}")
    sigma = math.sqrt(math.fsum((w * s) ** 2 for w, s in zip(weights, sigmas, strict=True)))
    low, high = 0.0, 1.0
    while gaussian_delta(high, sigma, sensitivity) > delta:
        high *= 2
    for _ in range(200):  # bisection: delta falls as epsilon grows
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(middle, sigma, sensitivity) > delta else (low, middle)
    return Guarantee("linear combination of Gaussian values", high, delta)


def least_sigma(sigmas: Sequence[float]) -> float:
    """The smallest noise that a linear combination can have: (Σ σᵢ⁻²)^(−1/2), with weights ∝ σᵢ⁻².

    There it costs as much as releasing every value.
    """
    _positive(*sigmas)
    return 1 / math.sqrt(math.fsum(1 / s**2 for s in sigmas))


def two_weights(sigma_1: float, sigma_2: float, target: float) -> tuple[float, float]:
    """Weights (w, 1 − w) for which two noisy values combine to noise `target`: w² σ₁² + (1 − w)² σ₂² = σ*².

    Of the two solutions the one in [0, 1] is taken, of two such ones the one nearer to 1/2.

    Raises:
        UsageError: CV-U190 where the target is below `least_sigma`, CV-U191 where it takes a negative weight.
    """
    _positive(sigma_1, sigma_2, target)
    a, b = sigma_1**2 + sigma_2**2, sigma_2**2
    root = b * b - a * (b - target**2)
    if root < -1e-12 * b * b:
        least = least_sigma([sigma_1, sigma_2])
        raise UsageError(
            "CV-U190", f"the noise of a combination is at least {least:.6g}, the target is {target:.6g}"
        )
    found = [(b + sign * math.sqrt(max(0.0, root))) / a for sign in (-1, 1)]
    inside = [w for w in found if 0 <= w <= 1]
    if not inside:
        raise UsageError(
            "CV-U191", f"a noise of {target:.6g} is beyond both values' own; release one of them with more"
        )
    w = min(inside, key=lambda w: abs(w - 0.5))
    return w, 1 - w


def _normal(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


def _positive(*values: float) -> None:
    for value in values:
        if not (value > 0 and math.isfinite(value)):
            raise UsageError("CV-U191", f"noise and sensitivity must be above 0 and finite, got {value!r}")
