"""Iso-C: task arithmetic with a flat spectrum. Owns the flattening, which Iso-CTS shares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.core.lazy import torch
from cuvee.methods.combine.spectral.matrices import Matrices, matrix_stage
from cuvee.methods.contract import Decomposer
from cuvee.methods.decompositions import rank_of
from cuvee.methods.parameters import Tolerance

if TYPE_CHECKING:
    from torch import Tensor


@matrix_stage(name="iso_c", paper="arXiv:2502.04959")
def iso_c(matrices: Matrices, *, decompose: Decomposer, rank_tol: Tolerance = 0.0) -> Tensor:
    """Sum the task matrices and make all singular values of the sum equal to their mean.

    S = Σ τᵢ = UΣVᵀ; τ = mean(σ) U Vᵀ, the mean over all min(rows, columns) values. The nuclear norm of S is kept, and
    no task's directions stand out. One expert does not come back: diag(3, 1) becomes diag(2, 2). Matrices are SUMMED,
    other tensors averaged, as in the official code. One decomposition for each matrix.

    Marczak et al., "No task left behind: isotropic model merging with common and task-specific subspaces", ICML 2025
    (arXiv:2502.04959).

    Args:
        rank_tol: singular values up to this times the largest are left out, of the mean too. 0 is the official code,
            which lifts the null space of a low-rank sum (LoRA) to the mean: what stands there is noise
    """
    return flattened(matrices.sum(), decompose, rank_tol, spend=True)


def flattened(matrix: Tensor, decompose: Decomposer, rank_tol: float, *, spend: bool = False) -> Tensor:
    """mean(σ) U Vᵀ of a matrix, over the directions above the tolerance (all of them for 0)."""
    u, s, vh = decompose.svd(matrix, spend=spend)
    rank = rank_of(s, rank_tol) if rank_tol else len(s)
    if not float(s[0]):
        return torch.zeros_like(matrix)
    return (u[:, :rank] @ vh[:rank]).mul_(s[:rank].mean())
