"""STF: superpose the leading features of each task matrix so that each keeps its strength."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.core.lazy import torch
from cuvee.methods.combine.spectral.matrices import Matrices, matrix_stage
from cuvee.methods.combine.spectral.tsv_m import ranks, stacked_triplets
from cuvee.methods.contract import Decomposer
from cuvee.methods.decompositions import rank_of
from cuvee.methods.parameters import Fraction, NonNegative, Tolerance

if TYPE_CHECKING:
    from torch import Tensor


@matrix_stage(name="stf", paper="arXiv:2502.10698", exclude="")
def stf(
    matrices: Matrices,
    *,
    decompose: Decomposer,
    rank_fraction: Fraction | None = None,
    energy: Fraction | None = None,
    ridge: NonNegative = 0.0,
    rank_tol: Tolerance = 1e-6,
) -> Tensor:
    """Find strengths for the leading directions of all tasks so that each task's features come out as strong as alone.

    With the leading triplets (u_p, σ_p, v_p) of all tasks side by side: T = U diag(a) Vᵀ where u_pᵀ T v_p = σ_p for
    every p, the linear system (UᵀU ∘ VᵀV + εI) a = σ. One expert of full rank comes back; tasks in orthogonal
    subspaces are summed. Where features of tasks (nearly) coincide, the least-norm solution is taken. K decompositions
    and one system of P equations, P the number of triplets.

    RECONSTRUCTED from the abstracts of Qiu et al., "Superpose task-specific features for model merging", EMNLP 2025
    (arXiv:2502.10698); the code could not be had. Unknown, and chosen here: the rank (1/K of the directions, as
    TSV-M), the exact constraint of the final version, and that other tensors are averaged.

    Args:
        rank_fraction: share of the directions that each task keeps; 1/K by default
        energy: instead, the share of Σσ² that each task keeps
        ridge: ε, beside 1 on the diagonal; more of it brings tasks with overlapping features closer to a plain sum
        rank_tol: singular values, and directions of the system, up to this times the largest count as zero
    """
    n, count = matrices.directions, len(matrices)
    if energy is None:
        kept = [min(n, max(1, ranks(matrices, rank_fraction)))] * count
    else:
        kept = [energy_rank(decompose.svd(matrices[i])[1], energy) for i in range(count)]
    left, values, right = stacked_triplets(matrices, kept, decompose, rank_tol)
    if not len(values):
        return torch.zeros_like(matrices[0])
    system = (left.T @ left).double() * (right.T @ right)
    system.diagonal().add_(ridge)
    strengths = least_norm(system, values.double(), decompose, rank_tol)
    return (left * strengths.to(left.dtype)) @ right.T


def energy_rank(values: Tensor, energy: float) -> int:
    """The least number of leading singular values that holds this share of Σσ²; at least 1."""
    squares = values.double().square().cumsum(0)
    return min(len(values), int((squares < energy * squares[-1]).sum()) + 1)


def least_norm(system: Tensor, values: Tensor, decompose: Decomposer, tolerance: float) -> Tensor:
    """The shortest least-squares solution of a symmetric positive semidefinite system."""
    eigenvalues, vectors = decompose.eigh(system, spend=True)
    kept = rank_of(eigenvalues.flip(0), tolerance)
    leading = vectors[:, len(eigenvalues) - kept :]
    strengths: Tensor = leading @ ((leading.T @ values) / eigenvalues[len(eigenvalues) - kept :])
    return strengths
