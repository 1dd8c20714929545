"""Decompositions of single matrices, as stages ask for them (`methods.contract.Decomposer`).

Owns the choice of algorithm by shape and wanted rank. Must not know where results are kept; an engine may wrap it with
a store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Plain:
    """Computes each decomposition when asked."""

    def svd(self, matrix: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Thin singular value decomposition; the leading `rank` triplets if given."""
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], s[:rank], vh[:rank]

    def eigh(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues ascending and eigenvectors of a symmetric matrix."""
        values, vectors = torch.linalg.eigh(matrix)
        return values, vectors
