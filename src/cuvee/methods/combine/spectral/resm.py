"""RESM: TSV-M whose tasks are weighed by their outliers and ranked by their sparsity. Reconstructed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cuvee.methods.combine.spectral.matrices import Matrices, matrix_stage
from cuvee.methods.combine.spectral.tsv_m import orthogonal_sum
from cuvee.methods.contract import Decomposer
from cuvee.methods.parameters import Fraction, NonNegative, Range, Tolerance

if TYPE_CHECKING:
    from torch import Tensor

Deviations = Annotated[float, Range(0.0)]


@matrix_stage(name="resm", paper="arXiv:2502.06876", asks=2)
def resm(
    matrices: Matrices,
    *,
    decompose: Decomposer,
    reweight: bool = True,
    deviations: Deviations = 3.0,
    gamma: Fraction = 0.5,
    epsilon: NonNegative = 1e-6,
    rank_tol: Tolerance = 1e-6,
) -> Tensor:
    """TSV-M with a weight for each task by the mass of its outliers and a rank by its sparsity, matrix by matrix.

    Outlier mass oᵢ = Σ|τ| over |τ − μ| > 3s with the mean μ and deviation s of the matrix; weight wᵢ = K oᵢ / Σ o (1
    where nothing is an outlier); rank rᵢ = max(1, round((n/K)(1 − γ zᵢ))) with zᵢ the share of |τ| ≤ ε; then TSV-M of
    wᵢτᵢ. Without reweighting and with γ = 0 it is TSV-M. Each expert is evaluated twice.

    RECONSTRUCTED: TSV-M plus reweighting and ranks after the description of Yang et al., "Mix data or merge models?
    Balancing the helpfulness, honesty, and harmlessness of large language models via model merging", NeurIPS 2025
    (arXiv:2502.06876). The formulas of weight and rank, and γ and ε, are ours.

    Args:
        reweight: whether tasks are weighed by their outliers
        deviations: how many standard deviations from the mean an entry counts as an outlier
        gamma: γ, how strongly a sparse task loses rank; 0 gives all n/K
        epsilon: ε, up to which an entry counts as zero
        rank_tol: as in TSV-M
    """
    count, n = len(matrices), matrices.directions
    figures = [outliers_and_zeros(matrices[i], deviations, epsilon) for i in range(count)]
    mass = sum(outlier for outlier, _ in figures)
    weights = [count * outlier / mass if reweight and mass else 1.0 for outlier, _ in figures]
    kept = [rank_for(n, count, gamma * zeros) for _, zeros in figures]
    weighed = Matrices(
        matrices.deltas,
        [own * weight for own, weight in zip(matrices.weights, weights, strict=True)],
        matrices.shape,
        matrices.place,
    )
    return orthogonal_sum(weighed, kept, decompose, rank_tol)


def outliers_and_zeros(matrix: Tensor, deviations: float, epsilon: float) -> tuple[float, float]:
    """The sum of the magnitudes of a matrix's outliers, and the share of entries that are as good as zero."""
    mean, deviation = matrix.double().mean(), matrix.double().std(correction=0)
    outlier = (matrix - mean).abs() > deviations * deviation
    magnitude = matrix.abs()
    return float((magnitude * outlier).double().sum()), float((magnitude <= epsilon).double().mean())


def rank_for(n: int, count: int, loss: float) -> int:
    """Triplets of a task: n/K less a share; at least one, and none more than fit beside the other tasks."""
    return min(n // count, max(1, round(n / count * (1 - loss))))
