"""LoRE: an approximate base and low-rank task vectors, estimated together from the experts alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from cuvee.core.lazy import torch
from cuvee.methods.combine.spectral.matrices import Matrices, added, matrix_stage
from cuvee.methods.contract import Decomposer
from cuvee.methods.decompositions import gram
from cuvee.methods.parameters import NonNegative, Range

if TYPE_CHECKING:
    from torch import Tensor


@matrix_stage(
    name="lore",
    takes="either",
    paper="arXiv:2502.10749",
    exclude="",
    asks=lambda values, shape, count: (3 * values["steps"] + 2,) * count,
)
def lore(
    matrices: Matrices,
    *,
    decompose: Decomposer,
    mu: NonNegative = 0.01,
    steps: Annotated[int, Range(1)] = 10,
    lam: float = 1.0,
    aggregate: Literal["mean", "sum"] = "mean",
    start: Literal["mean", "base"] = "mean",
) -> Tensor:
    """Estimate a base θ₀ and low-rank changes δᵢ with θᵢ ≈ θ₀ + δᵢ, and merge the changes onto θ₀.

    Minimises Σ ‖θ₀ + δᵢ − θᵢ‖² + μ‖δᵢ‖_* by turns: δᵢ = the singular values of θᵢ − θ₀ less μ/2 (at least 0), then
    θ₀ = mean(θᵢ − δᵢ); the result is θ₀ + λ · aggregate(δᵢ). With `mean` and λ = 1 that is exactly the average of the
    models, whatever μ: choose another λ, or `sum`. Convex, so enough steps find the minimum. K decompositions for each
    step, and three evaluations of each expert; δᵢ are never kept, so memory does not grow with the experts. Other
    tensors are averaged.

    Liu et al., "LoRE-Merging: exploring low-rank estimation for LLM merging", Findings of EMNLP 2025
    (arXiv:2502.10749), which gives no defaults. Where the loss carries ½ before the square, double μ.

    Args:
        mu: μ; singular values of a change up to μ/2 vanish, so it is on the scale of the task matrices' own
        steps: sweeps over all experts
        lam: λ, how much of the merged changes is added to the estimated base
        aggregate: whether the changes are averaged or summed
        start: where θ₀ begins, at the mean of the experts or at the base (at zero, where there is none)
    """
    count = len(matrices)
    centre = matrices.mean() if start == "mean" else torch.zeros_like(matrices[0])
    for _ in range(steps):
        moved = (partial(_moved, matrices, i, centre) for i in range(count))
        change = added(softened(made, decompose, mu / 2) for made in moved).div_(-count)
        centre = change.add_(matrices.mean())
        del change
    merged = matrices.mean().sub_(centre)  # mean(δᵢ) = mean(θᵢ) − θ₀ after a step
    return centre.add_(merged, alpha=lam if aggregate == "mean" else lam * count)


def _moved(matrices: Matrices, index: int, centre: Tensor) -> Tensor:
    return matrices[index] - centre


def softened(made: Callable[[], Tensor], decompose: Decomposer, threshold: float) -> Tensor:
    """A matrix after soft thresholding of its singular values: Σ (1 − t/σⱼ) (A vⱼ) vⱼᵀ over σⱼ > t.

    The directions are eigenvectors of the smaller Gram matrix, in float64, whose rounding is below that of a float32
    decomposition. `made` makes the matrix, anew where it is asked again, so that it takes no memory beside them.
    """
    matrix = made()
    if matrix.dtype == torch.float64:
        u, s, vh = decompose.svd(matrix, spend=True)
        soft = s.sub(threshold).clamp_(min=0)
        return (u * soft) @ vh
    tall = matrix.shape[0] >= matrix.shape[1]
    products = gram(matrix if tall else matrix.T)
    del matrix
    squares, vectors = decompose.eigh(products, spend=True)
    del products
    values = squares.clamp_(min=0).sqrt_()
    kept = values > threshold
    factors = (1 - threshold / values[kept]).float()
    directions = vectors[:, kept].float()
    del vectors
    if tall:
        return (made() @ directions).mul_(factors) @ directions.T
    return directions @ (directions.T @ made()).mul_(factors[:, None])
