"""A flat spectrum for the merged matrix. The flattening itself is Iso-C's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.methods.combine.spectral.iso_c import flattened
from cuvee.methods.contract import Block, Decomposer, rows_of, stage
from cuvee.methods.parameters import Tolerance
from cuvee.methods.vectors import is_map

if TYPE_CHECKING:
    from torch import Tensor


@stage("isotropise", role="rescale", access="tensor", upcast=True, paper="arXiv:2502.04959")
def isotropise(delta: Tensor, *, rank_tol: Tolerance = 0.0, decompose: Decomposer, block: Block) -> Tensor:
    """Make all singular values of the merged matrix equal to their mean: UΣVᵀ → mean(σ) U Vᵀ (arXiv:2502.04959).

    Within a space it does so to the coordinates, before `leave`. Tensors that are no maps stay as they are.

    Args:
        rank_tol: singular values up to this times the largest are left out, of the mean too; 0 keeps all
    """
    shape = tuple(delta.shape)
    if not is_map(shape, block.place):
        return delta
    return flattened(delta.reshape(rows_of(shape)), decompose, rank_tol).reshape(shape)
