"""Model Stock: how far to go from the base to the average of the experts, from the angle between them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from cuvee.methods.coefficients import factor, matrix_of, products, single
from cuvee.methods.contract import Access, Block, Scope, Summary, stage
from cuvee.methods.parameters import NonNegative
from cuvee.methods.vectors import along_last, dot

if TYPE_CHECKING:
    from torch import Tensor

_SINGULAR = 1e-6  # denominators nearer to 0 have no finite answer


def _access(values: Mapping[str, Any]) -> Access:
    return "row" if values["filter_wise"] else "element"


def _scope(values: Mapping[str, Any]) -> Scope | None:
    return None if values["filter_wise"] else "tensor"


@stage(
    "model_stock",
    role="combine",
    access=_access,
    summarise=products,
    scope=_scope,
    upcast=True,
    inputs=(2, None),
    paper="arXiv:2403.19522",
)
def model_stock(
    deltas: list[Tensor],
    *,
    block: Block,
    summary: Summary | None = None,
    filter_wise: bool = False,
    filter_axis: Literal["output", "last"] = "output",
    average: Literal["cosines", "angles"] = "cosines",
    clamp: bool = True,
    floor: NonNegative = 0.0,
) -> Tensor:
    """Go from the base towards the average of K experts, the further the more their changes agree.

    y − θ₀ = t · mean(τᵢ) with t = K cos θ / (1 + (K−1) cos θ), θ the angle between task vectors: for task
    vectors of equal length and angle, the point nearest to the unseen centre of all fine-tuned models. Two
    fine-tuned models come close to a soup of many. Changes that do not agree (cos θ ≤ 0) leave the base; so
    do a zero denominator and zero task vectors. The paper has one θ; for more than two experts the pairwise
    cosines are averaged (MergeKit), or the pairwise angles (FusionBench). Magnitudes do not enter. Cosines
    are float64.

    Jang, Yun, Han, "Model Stock: all we need is just a few fine-tuned models", ECCV 2024 (arXiv:2403.19522).

    Args:
        filter_wise: one angle for each output filter instead of one for the whole tensor; 1-D tensors are one
            filter
        filter_axis: a filter is one index of the first axis (`output`) or one vector along the last (`last`,
            as in MergeKit); the same for matrices
        average: whether the cosines of all pairs are averaged, or their angles
        clamp: keep t within 0 and 1; without it opposing changes are extrapolated
        floor: least product of two norms that a dot product is divided by; MergeKit's 1e-6 shrinks the cosine
            of small changes
    """
    vectors = deltas
    if filter_wise and filter_axis == "last":
        vectors = [along_last(delta, block.shape) for delta in deltas]
    cosine = _cosine(*_products(vectors, summary), average=average, floor=floor)
    step = _step(cosine, len(deltas), clamp=clamp)
    step = factor(step) if summary else step.to(deltas[0].dtype)
    total = vectors[0]
    for vector in vectors[1:]:
        total = total + vector
    merged: Tensor = total / len(deltas) * step
    return merged.reshape(deltas[0].shape)


def _products(vectors: list[Tensor], summary: Summary | None) -> tuple[list[Any], list[Any]]:
    """Squared norms, and dot products of all pairs: whole tensors from the summary, else by filter."""
    count = range(len(vectors))
    if summary:
        matrix = matrix_of(summary, single())
        return [matrix[i][i] for i in count], [matrix[i][j] for i, j in combinations(count, 2)]
    return [dot(v, v) for v in vectors], [dot(v, w) for v, w in combinations(vectors, 2)]


def _cosine(squares: list[Any], pairs: list[Any], *, average: str, floor: float) -> Any:
    """The mean cosine over all pairs, elementwise; zero vectors have cosine 0."""
    xp = single(*squares)
    found = []
    for (a, b), product in zip(combinations(squares, 2), pairs, strict=True):
        length = xp.clip(xp.sqrt(a) * xp.sqrt(b), floor, None)
        found.append(xp.clip(product / xp.where(length > 0, length, 1.0), -1, 1))
    if average == "cosines":
        return xp.mean(xp.stack(found), 0)
    return xp.cos(xp.mean(xp.stack([xp.arccos(cosine) for cosine in found]), 0))


def _step(cosine: Any, count: int, *, clamp: bool) -> Any:
    """t = K cos θ / (1 + (K−1) cos θ), 0 where the denominator vanishes."""
    xp = single(cosine)
    denominator = 1 + (count - 1) * cosine
    singular = xp.absolute(denominator) < _SINGULAR
    step = xp.where(singular, 0.0, count * cosine / xp.where(singular, 1.0, denominator))
    return xp.clip(step, 0, 1) if clamp else step
