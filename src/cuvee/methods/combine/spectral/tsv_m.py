"""TSV-M: task singular vectors, made orthogonal to each other and summed. Owns the triplets and their assembly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cuvee.core.lazy import torch
from cuvee.methods.combine.spectral.matrices import Matrices, matrix_stage
from cuvee.methods.contract import Decomposer
from cuvee.methods.decompositions import polar, rank_of
from cuvee.methods.parameters import Fraction, Tolerance

if TYPE_CHECKING:
    from torch import Tensor


@matrix_stage(name="tsv_m", paper="arXiv:2412.00081")
def tsv_m(
    matrices: Matrices,
    *,
    decompose: Decomposer,
    rank_fraction: Fraction | None = None,
    rank_tol: Tolerance = 1e-6,
) -> Tensor:
    """Keep the leading singular triplets of each task matrix and make those of different tasks orthogonal.

    With τᵢ = UᵢΣᵢVᵢᵀ and r = int(n / K) of n = min(rows, columns): Û = [U₁…U_K] and V̂ = [V₁…V_K] of r columns each,
    Ŝ their singular values; τ = U⊥ Ŝ V⊥ᵀ with the orthogonal polar factors (P Qᵀ of P D Qᵀ) of Û and V̂. One expert
    comes back as it is; experts in orthogonal subspaces are summed. Where r = 0 (more experts than directions) the mean
    of the τᵢ is taken. K + 2 decompositions for each matrix.

    Gargiulo et al., "Task singular vectors: reducing task interference in model merging", CVPR 2025
    (arXiv:2412.00081). The official code keeps triplets with σ ≈ 0, whose vectors are what the library happens to
    return; here they are left out (`rank_tol`), also where experts are copies of each other.

    Args:
        rank_fraction: share of the n directions that each task keeps; 1/K by default
        rank_tol: singular values up to this times the largest count as zero; raise it to the noise of task vectors
            that are low-rank but for rounding (LoRA merged into bfloat16 weights)
    """
    kept = ranks(matrices, rank_fraction)
    return orthogonal_sum(matrices, [kept] * len(matrices), decompose, rank_tol)


def ranks(matrices: Matrices, fraction: float | None) -> int:
    """How many triplets each task keeps."""
    n = matrices.directions
    return n // len(matrices) if fraction is None else int(fraction * n)


def orthogonal_sum(matrices: Matrices, kept: Sequence[int], decompose: Decomposer, rank_tol: float) -> Tensor:
    """U⊥ Ŝ V⊥ᵀ of the leading triplets of each matrix; the mean where none keeps any."""
    left, values, right = stacked_triplets(matrices, kept, decompose, rank_tol)
    if not len(values):
        return torch.zeros_like(matrices[0]) if any(kept) else matrices.mean()
    left = polar(left, decompose, rank_tol)
    right = polar(right, decompose, rank_tol)
    return (left * values) @ right.T


def stacked_triplets(
    matrices: Matrices, kept: Sequence[int], decompose: Decomposer, rank_tol: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Û (rows × P), Ŝ (P) and V̂ (columns × P): the leading triplets of each matrix side by side."""
    left = right = values = torch.empty(0)
    end = 0
    for index, count in enumerate(kept):
        u, s, vh = decompose.svd(matrices[index], count)
        if index == 0:
            left, right = (s.new_empty(size, sum(kept)) for size in matrices.shape)
            values = s.new_empty(sum(kept))
        rank = min(rank_of(s, rank_tol), count)
        left[:, end : end + rank] = u[:, :rank]
        right[:, end : end + rank] = vh[:rank].T
        values[end : end + rank] = s[:rank]
        end += rank
    return left[:, :end], values[:end], right[:, :end]


def interference(left: Tensor, values: Tensor, right: Tensor) -> Tensor:
    """The singular task interference ‖(ÛᵀÛ − I) Ŝ (V̂ᵀV̂ − I)‖₁ (sum of magnitudes) of stacked triplets.

    0 where the tasks' singular vectors are orthogonal to each other; large where merging them by summation would mix
    them up.
    """
    eye = torch.eye(len(values), dtype=values.dtype, device=values.device)
    overlap: Tensor = ((left.T @ left - eye) * values) @ (right.T @ right - eye)
    return overlap.abs().sum()
