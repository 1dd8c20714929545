"""Karcher (Riemannian) mean of directions, found in the span of the inputs from their dot products alone.

One pass for the K×K Gram matrix, one to combine; the iteration between them never touches a tensor.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

from cuvee.methods.coefficients import cancelling, combined, normalized, numbers, plain, silent, wide
from cuvee.methods.contract import Stream, Summary, stage
from cuvee.methods.parameters import NonNegative, PerExpert, Range, each
from cuvee.methods.summaries import gram

if TYPE_CHECKING:
    from torch import Tensor

_OPPOSITE = 1e-7  # sine of an angle near π below which the way back is not unique


def coefficients(stream: Stream, *, weight: Any, max_iter: int, tol: float) -> Summary:
    """What each input is multiplied by; found here, once for each tensor, because it takes an iteration."""
    shares = normalized(each(weight, stream.inputs))
    return {"coefficients": list(mean_coefficients(gram(stream), shares, max_iter=max_iter, tol=tol))}


@stage(
    "karcher",
    role="combine",
    takes="either",
    summarise=coefficients,
    check=cancelling,
    upcast=True,
    paper="arXiv:2603.04972",
)
def karcher(
    tensors: list[Tensor],
    *,
    summary: Summary,
    weight: PerExpert[NonNegative] = 1.0,
    max_iter: Annotated[int, Range(1)] = 10,
    tol: NonNegative = 1e-5,
) -> Tensor:
    """Average directions on the sphere itself, where the mean is nearest to all of them, and lengths apart.

    Per tensor, flattened, with nᵢ = ‖vᵢ‖, uᵢ = vᵢ / nᵢ and shares αᵢ: start from the normalized Σ αᵢ uᵢ and
    repeat T = Σ αᵢ θᵢ/sin θᵢ (uᵢ − cos θᵢ u), θᵢ = arccos ⟨u, uᵢ⟩, u ← cos‖T‖ u + sin‖T‖ T/‖T‖ until ‖T‖ <
    tol. The result is y = (Σ αᵢ nᵢ) u. Inputs of norm ≤ tol have no direction, but count in the length; all
    of them gives zero. For two inputs the direction is the midpoint of slerp. The mean is unique where all
    lie within half a sphere; an input exactly opposite to the current mean does not pull. Dot products and
    the iteration are float64.

    Karcher 1977; used for merging in arXiv:2603.04972.

    Args:
        weight: share of each model; equal by default
        max_iter: steps at most
        tol: length of a step that ends the iteration, angle that counts as none, and norm that counts as zero
    """
    if len(tensors) == 1:
        return tensors[0]
    return combined(tensors, summary["coefficients"])


@silent
def mean_coefficients(products: list[list[float]], shares: Any, *, max_iter: int, tol: float) -> Any:
    """Coefficients c with y = Σ cᵢ vᵢ; float64, differentiable in the shares.

    A vector Σ aᵢ uᵢ of the span is held as a; its products with the uᵢ are a times their cosines.
    """
    xp = numbers(shares)
    matrix = wide(xp, products)
    norms = xp.sqrt(xp.diagonal(matrix))
    valid = norms > tol
    lengths = xp.where(valid, norms, 1.0)
    cosines = matrix / xp.outer(lengths, lengths)
    alphas = xp.where(valid, shares, 0.0)
    if not bool(alphas.any()):
        return alphas
    alphas = alphas / alphas.sum()
    mean = _start(alphas, cosines, tol)
    for _ in range(max_iter):
        tangent = _tangent(mean, alphas, cosines, tol)
        length = _length(tangent, cosines)
        if plain(length) < tol:
            break
        mean = xp.cos(length) * mean + xp.sin(length) / length * tangent
        mean = mean / _length(mean, cosines)
    return (shares * norms).sum() * mean / lengths


def _start(alphas: Any, cosines: Any, tol: float) -> Any:
    length = _length(alphas, cosines)
    if plain(length) >= tol:
        return alphas / length
    first = next(i for i, alpha in enumerate(alphas) if plain(alpha) != 0)
    xp = numbers(alphas)
    return xp.eye(len(alphas), dtype=xp.float64)[first]


def _tangent(mean: Any, alphas: Any, cosines: Any, tol: float) -> Any:
    """Σ αᵢ log_mean(uᵢ), as coefficients of the uᵢ."""
    xp = numbers(mean)
    dots = xp.clip(cosines @ mean, -1, 1)
    near = dots >= math.cos(tol)
    opposite = (dots < 0) & (1 - dots * dots < _OPPOSITE**2)
    still = near | opposite
    angles = xp.arccos(xp.where(still, 0.0, dots))
    pulls = xp.where(still, 0.0, alphas * angles / xp.sin(angles))
    return pulls - (pulls * dots).sum() * mean


def _length(vector: Any, cosines: Any) -> Any:
    xp = numbers(vector)
    return xp.sqrt(xp.clip(vector @ cosines @ vector, 0, None))
