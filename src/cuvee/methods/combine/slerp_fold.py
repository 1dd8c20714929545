"""Spherical interpolation of many vectors, one after the other: WARP's fold and the family around it.

Owns the sequence of steps. The angle to the running result is found from dot products of the inputs, so the result
itself is only made at the end; coefficients and angles are float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from cuvee.core.lazy import torch
from cuvee.methods.coefficients import arc, combined, matrix_of, products
from cuvee.methods.contract import Access, Block, Scope, Summary, stage
from cuvee.methods.parameters import Fraction, NonNegative, PerExpert, each
from cuvee.methods.vectors import along_last, dot

if TYPE_CHECKING:
    from torch import Tensor

Steps = Literal["share", "weight"]
_COLINEAR = 1e-14  # sin² at which the line replaces the arc; a float64 cosine does not resolve less


def _access(values: Mapping[str, Any]) -> Access:
    return "element" if values["axis"] == "whole" else "row"


def _scope(values: Mapping[str, Any]) -> Scope | None:
    return "tensor" if values["axis"] == "whole" else None


def _check(values: Mapping[str, Any]) -> str | None:
    weights = values["weight"]
    if isinstance(weights, (list, tuple)) and values["steps"] == "share" and not any(weights):
        return "at least one `weight` must be more than 0"
    return None


@stage(
    "slerp_fold",
    role="combine",
    takes="either",
    access=_access,
    summarise=products,
    scope=_scope,
    check=_check,
    upcast=True,
    paper="arXiv:2406.16768",
)
def slerp_fold(
    tensors: list[Tensor],
    *,
    weight: PerExpert[NonNegative] = 1.0,
    steps: Steps = "share",
    axis: Literal["whole", "last"] = "whole",
    threshold: Fraction = 1.0,
    summary: Summary,
    block: Block,
) -> Tensor:
    """Interpolate on arcs from each vector to the next: y ← slerp(y, vᵢ, tᵢ) with tᵢ = wᵢ / Σ wⱼ up to i.

    The first vector is the start, as it is; with equal weights tᵢ = 1/i, the fold of WARP (arXiv:2406.16768), and for
    two inputs plain slerp. slerp(a, b, t) = [sin((1−t)Ω) a + sin(tΩ) b] / sin Ω with the vectors as they are, Ω the
    angle between them; the line where they are parallel, opposite, or one is 0. Order matters from three inputs on;
    `karcher` does not depend on it. With a base, task vectors are interpolated.

    Args:
        weight: share of each model; equal by default
        steps: `share` as above; `weight` starts at w₁v₁ and steps by tᵢ = wᵢ, as the released code of Z-SASLM does,
            which shrinks the norm
        axis: a tensor is one vector (`whole`), or every vector along its last axis is interpolated for itself
        threshold: absolute cosine above which the line replaces the arc; 1 leaves that to rounding
    """
    places = _places(each(weight, len(tensors)), steps)
    if axis == "whole":
        matrix = matrix_of(summary)[:, :, None]
        return combined(tensors, _coefficients(matrix, places, threshold)[:, 0])
    rows = [along_last(tensor, block.shape) for tensor in tensors]
    matrix = torch.stack([torch.stack([dot(a, b)[:, 0] for b in rows]) for a in rows])
    factors = _coefficients(matrix, places, threshold)[:, :, None].to(tensors[0].dtype)
    return combined(rows, factors).reshape(tensors[0].shape)


def _places(weights: list[Any], steps: Steps) -> list[Any]:
    """The factor of the first vector, then how far each step goes."""
    if steps == "weight":
        return weights
    places, total = [1.0], weights[0]
    for weight in weights[1:]:
        total = total + weight
        places.append(weight / total if total else 0.0)
    return places


def _coefficients(matrix: Tensor, places: list[Any], threshold: float) -> Tensor:
    """Coefficients (K, N) of the inputs in the result, from dot products (K, K, N) of N sets of vectors."""
    count, _, lines = matrix.shape
    running = torch.zeros((count, lines), dtype=torch.float64, device=matrix.device)
    running[0] = places[0]
    for number in range(1, count):
        square = torch.einsum("in,ijn,jn->n", running, matrix, running).clamp(min=0)
        product = torch.einsum("in,in->n", running, matrix[:, number])
        length = square.sqrt() * matrix[number, number].sqrt()
        cosine = (product / torch.where(length > 0, length, 1.0)).clamp(-1, 1)
        straight = (length == 0) | (1 - cosine.square() <= _COLINEAR) | (cosine.abs() > threshold)
        first, second = arc(cosine, places[number], straight)
        step = torch.zeros_like(running)
        step[number] = second
        running = running * first + step
    return running
