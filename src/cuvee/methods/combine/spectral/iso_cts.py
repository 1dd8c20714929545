"""Iso-CTS: a flat spectrum over a common subspace and one for each task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.methods.combine.spectral.iso_c import flattened
from cuvee.methods.combine.spectral.matrices import Matrices, matrix_stage
from cuvee.methods.contract import Decomposer
from cuvee.methods.decompositions import polar
from cuvee.methods.parameters import Fraction, Tolerance

if TYPE_CHECKING:
    from torch import Tensor


@matrix_stage(name="iso_cts", paper="arXiv:2502.04959", asks=2)
def iso_cts(
    matrices: Matrices,
    *,
    decompose: Decomposer,
    common_space_fraction: Fraction = 0.8,
    rank_tol: Tolerance = 1e-6,
) -> Tensor:
    """Keep the leading directions of the sum, add leading directions of each task, and make all equally strong.

    With n = min(rows, columns) and K experts: c₀ = int(f·n), each task gets d = round((n − c₀) / K) directions (ties to
    the even number) and the sum c = n − dK of its own. U_c, σ_c, V_c lead S = Σ τᵢ; each task adds the d leading
    triplets of τᵢ − U_c U_cᵀ τᵢ. τ = mean(all n values) · U⊥ V⊥ᵀ with the orthogonal polar factors of the vectors
    side by side. f = 1 is Iso-C; so is a matrix too small for the experts' number, where c < 0 (the official code stops
    there). K + 3 decompositions.

    Marczak et al., ICML 2025 (arXiv:2502.04959).

    Args:
        common_space_fraction: f, the share of directions that the sum of all tasks gets
        rank_tol: directions of the stacked vectors up to this (relative) are left out, since their polar factor is
            arbitrary
    """
    common, each_task = shares(matrices.directions, len(matrices), common_space_fraction)
    total = matrices.sum()
    if common < 0 or each_task == 0:
        return flattened(total, decompose, 0.0, spend=True)
    left = total.new_empty(matrices.shape[0], matrices.directions)
    right = total.new_empty(matrices.shape[1], matrices.directions)
    values = total.new_empty(matrices.directions)
    place = slice(matrices.directions - common, None)
    u, s, vh = decompose.svd(total, common, spend=True)
    del total
    left[:, place], values[place], right[:, place] = u, s, vh.T
    del u, vh
    basis = left[:, place]
    for index in range(len(matrices)):
        matrix = matrices[index]
        matrix = matrix - basis @ (basis.T @ matrix)
        own = decompose.svd(matrix, each_task, spend=True)
        place = slice(index * each_task, (index + 1) * each_task)
        left[:, place], values[place], right[:, place] = own[0], own[1], own[2].T
        del matrix, own
    del basis
    left = polar(left, decompose, rank_tol)
    right = polar(right, decompose, rank_tol)
    return (left @ right.T).mul_(values.mean())


def shares(n: int, tasks: int, fraction: float) -> tuple[int, int]:
    """How many of n directions the sum gets, and how many each task."""
    each_task = round((n - int(fraction * n)) / tasks)
    return n - each_task * tasks, each_task
