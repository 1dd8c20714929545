"""STAR: spectral truncation of each task matrix, with its nuclear norm restored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cuvee.core.lazy import torch
from cuvee.methods.combine.spectral.matrices import Matrices, added, matrix_stage
from cuvee.methods.contract import Decomposer
from cuvee.methods.parameters import Range

if TYPE_CHECKING:
    from torch import Tensor


@matrix_stage(name="star", paper="arXiv:2502.10339", exclude="")
def star(
    matrices: Matrices,
    *,
    decompose: Decomposer,
    eta: Annotated[float, Range(0.0, 100.0)] = 40.0,
    known_rank: Annotated[int, Range(1)] | None = None,
) -> Tensor:
    """Keep of each task matrix the leading triplets that hold η percent of its nuclear norm, rescaled, and average.

    With τᵢ = UΣVᵀ: r = the least number with σ₁ + … + σ_r ≥ (η/100) Σσ; the kept values are multiplied by
    Σσ / (σ₁ + … + σ_r), so that the nuclear norm is that of τᵢ; the results are averaged. η = 100 keeps everything. A
    zero matrix stays zero. At small η the largest direction grows strongly. One decomposition for each expert.

    Lee et al., "STAR: spectral truncation and rescale for model merging", NAACL 2025 (arXiv:2502.10339). The official
    command line calls η the percentage that is cut away; its code keeps it, as here.

    Args:
        eta: percentage of the nuclear norm that is kept
        known_rank: the rank of the task vectors where it is known (LoRA): only so many triplets are looked at
    """
    return added(
        truncated(matrices[index], decompose, eta, known_rank) for index in range(len(matrices))
    ).div_(len(matrices))


def truncated(matrix: Tensor, decompose: Decomposer, eta: float, known_rank: int | None) -> Tensor:
    """One matrix cut to the leading part of its spectrum that holds `eta` percent, its nuclear norm restored."""
    u, s, vh = decompose.svd(matrix, known_rank)
    upto = s.cumsum(0)
    if not float(upto[-1]):
        return torch.zeros_like(matrix)
    rank = int((upto < eta / 100 * upto[-1]).sum()) + 1
    rank = min(rank, len(s))
    kept = s[:rank] * (upto[-1] / upto[rank - 1])
    return (u[:, :rank] * kept) @ vh[:rank]
