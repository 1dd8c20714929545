"""Spherical interpolation of two checkpoints. One pass for the angle, one to combine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cuvee.methods.coefficients import arc, combined, matrix_of, products, single
from cuvee.methods.contract import Summary, stage
from cuvee.methods.parameters import Fraction, NonNegative

if TYPE_CHECKING:
    from torch import Tensor


@stage("slerp", role="combine", takes="weight", summarise=products, upcast=True, inputs=(2, 2))
def slerp(
    tensors: list[Tensor],
    *,
    summary: Summary,
    t: float,
    threshold: Fraction = 0.9995,
    eps: NonNegative = 1e-8,
) -> Tensor:
    """Walk from one model to the other along the arc between them.

    Per tensor, flattened: c = ⟨v₀, v₁⟩ / (‖v₀‖ ‖v₁‖), θ = arccos c, y = [sin((1−t)θ) v₀ + sin(tθ) v₁] / sin θ
    with the vectors as they are, not normalized. Where |c| > `threshold` the two are (anti)parallel and y is
    the straight line (1−t) v₀ + t v₁. Models lightly tuned from one ancestor usually have c > 0.9995 in every
    tensor, so that slerp equals `linear`; interpolate task vectors with `nuslerp` and a base instead. Angles
    are taken in float64.

    Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985.

    Args:
        t: place on the arc, 0 is the first model (MergeKit: the base) and 1 the second; beyond them the arc goes
            on
        threshold: absolute cosine above which the line replaces the arc
        eps: a vector of this norm or less has no direction and is not normalized when the cosine is taken
    """
    return combined(tensors, _coefficients(matrix_of(summary, single(t)), t, threshold, eps))


def _coefficients(matrix: Any, t: Any, threshold: float, eps: float) -> tuple[Any, Any]:
    xp = single(matrix)
    norms = [xp.sqrt(matrix[i][i]) for i in range(2)]
    first, second = (xp.where(norm > eps, norm, 1.0) for norm in norms)
    cosine = xp.clip(matrix[0][1] / first / second, -1, 1)
    return arc(cosine, t, xp.absolute(cosine) > threshold)
