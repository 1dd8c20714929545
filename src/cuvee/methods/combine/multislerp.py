"""Barycentric interpolation on a sphere in closed form. One pass for the angles, one to combine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cuvee.errors import RunError
from cuvee.methods.coefficients import (
    cancelling,
    combined,
    matrix_of,
    normalized,
    numbers,
    plain,
    products,
    silent,
    vector,
)
from cuvee.methods.contract import Summary, stage
from cuvee.methods.parameters import PerExpert, Positive, each

if TYPE_CHECKING:
    from torch import Tensor

_NOISE = 1e-7  # float64 products tell a mean direction of this length from none, no shorter one


def _check(values: Mapping[str, Any]) -> str | None:
    """As `cancelling`, but one input is returned as it is, whatever its weight."""
    weights = values.get("weight")
    return None if isinstance(weights, (list, tuple)) and len(weights) == 1 else cancelling(values)


@stage(
    "multislerp",
    role="combine",
    takes="either",
    summarise=products,
    check=_check,
    upcast=True,
    paper="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
)
def multislerp(
    tensors: list[Tensor],
    *,
    summary: Summary,
    weight: PerExpert[float] = 1.0,
    normalize: bool = True,
    eps: Positive = 1e-8,
) -> Tensor:
    """Average the directions of any number of models or task vectors, and their lengths apart.

    Per tensor, flattened: uᵢ = vᵢ / (‖vᵢ‖ + eps), m = Σ wᵢ uᵢ, y = (Σ wᵢ ‖vᵢ‖) m / ‖m‖. The original projects
    onto the tangent space at m, averages there and maps back; that average is exactly 0, because Σ wᵢ uᵢ is
    parallel to m, so this closed form is the whole method. Where the directions cancel (‖m‖ < eps) two inputs
    fall back to their weighted sum and more are an error; inputs no longer than eps have no directions, and
    are summed too. With a base, task vectors are averaged; without one the result is close to `linear`.

    Goddard, "Multi-SLERP", 2025.

    Args:
        weight: share of each model
        normalize: divide by the sum of the weights, which then must not be 0
        eps: added to norms, and the length below which the mean direction counts as none
    """
    if len(tensors) == 1:
        return tensors[0]
    weights = each(weight, len(tensors))
    shares = normalized(weights) if normalize else vector(weights)
    return combined(tensors, _coefficients(matrix_of(summary, numbers(shares)), shares, eps))


@silent
def _coefficients(matrix: Any, shares: Any, eps: float) -> Any:
    """Coefficients cᵢ of y = Σ cᵢ vᵢ, differentiable in the shares."""
    xp = numbers(shares)
    norms = xp.sqrt(xp.diagonal(matrix))
    pulls = shares / (norms + eps)
    square = pulls @ matrix @ pulls
    shortest = max(eps, _NOISE * plain(xp.abs(shares).sum()))
    if plain(square) > shortest**2:
        return pulls * ((shares * norms).sum() / xp.sqrt(square))
    if len(shares) == 2 or not bool((norms > eps).any()):
        return shares
    message = f"the weighted directions of the {len(shares)} models cancel, so their mean has no direction"
    raise RunError("CV-E071", message, hint="change the weights, or use `karcher` or `linear` here")
