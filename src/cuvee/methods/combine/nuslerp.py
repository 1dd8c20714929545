"""Spherical interpolation by weights: of two models or two task vectors, whole, by row or by column.

Owns the three ways of cutting a tensor into vectors and the access each needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from cuvee.methods.coefficients import arc, combined, matrix_of, products, single, wide
from cuvee.methods.contract import Access, Block, Scope, Summary, stage
from cuvee.methods.parameters import PerExpert, each
from cuvee.methods.vectors import along_last, dot

if TYPE_CHECKING:
    from torch import Tensor

_SHORTEST = 1e-7  # norms are raised to this before dividing
_COLINEAR = 1e-14  # sin² at which the line replaces the arc; a float64 cosine does not resolve less
_BALANCED = 1e-6  # weights whose sum is smaller count as equal


def _access(values: Mapping[str, Any]) -> Access:
    if values["flatten"]:
        return "element"
    return "row" if values["axis"] == "last" else "tensor"


def _scope(values: Mapping[str, Any]) -> Scope | None:
    return "tensor" if values["flatten"] else None


@stage(
    "nuslerp",
    role="combine",
    takes="either",
    access=_access,
    summarise=products,
    scope=_scope,
    upcast=True,
    inputs=(2, 2),
)
def nuslerp(
    tensors: list[Tensor],
    *,
    block: Block,
    summary: Summary | None = None,
    weight: PerExpert[float] = 1.0,
    flatten: bool = True,
    axis: Literal["last", "first"] = "last",
) -> Tensor:
    """Walk from one model, or one task vector, to another along an arc, as far as the weights say.

    t = w₂ / (w₁ + w₂), or ½ where the weights sum to 0. With a base the task vectors are interpolated and the
    base is added back. With `flatten` a whole tensor is one vector; otherwise each vector along an axis is
    interpolated on its own. y = [sin((1−t)θ) v₁ + sin(tθ) v₂] / sin θ, or the line where |sin θ| < 1e-7.
    Norms below 1e-7 count as 1e-7, so an unchanged row stands at a right angle to every other. Angles are
    taken in float64. MergeKit writes `axis: first` as `nuslerp_row_wise: true`.

    Args:
        weight: pull of each of the two models; only their ratio matters
        flatten: treat a whole tensor as one vector
        axis: without `flatten`, vectors run along the last axis (rows of a weight) or along the first
            (columns)
    """
    pull = each(weight, 2)
    xp = single(*pull)
    other = wide(xp, pull[1])
    total = wide(xp, pull[0]) + other
    t = xp.where(xp.absolute(total) < _BALANCED, 0.5, other / xp.where(total == 0, 1.0, total))
    if summary:
        matrix = matrix_of(summary, xp)
        return combined(tensors, _coefficients(matrix[0][0], matrix[1][1], matrix[0][1], t))
    a, b = (along_last(x, block.shape) if axis == "last" else x for x in tensors)
    along = -1 if axis == "last" else 0
    first, second = _coefficients(dot(a, a, along), dot(b, b, along), dot(a, b, along), t)
    merged: Tensor = a * first.to(a.dtype) + b * second.to(b.dtype)
    return merged.reshape(tensors[0].shape)


def _coefficients(square: Any, other: Any, product: Any, t: Any) -> tuple[Any, Any]:
    """Coefficients of both vectors from their squared norms and dot product, elementwise."""
    xp = single(square)
    norms = xp.clip(xp.sqrt(square), _SHORTEST, None) * xp.clip(xp.sqrt(other), _SHORTEST, None)
    cosine = xp.clip(product / norms, -1, 1)
    return arc(cosine, t, 1 - cosine * cosine <= _COLINEAR)
