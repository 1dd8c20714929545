"""Reversible model merging: a few basis tensors from which each of several models is a linear combination.

Owns the mathematics (arXiv:2510.14163, reconstructed in part): one matrix of coefficients for a layer, by the Eckart–
Young theorem over all its positions. Writing packages is not its business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuvee.core.lazy import torch
from cuvee.methods.contract import Decomposer, Factors
from cuvee.methods.decompositions import Plain
from cuvee.methods.recompression import Bound, compress_product

if TYPE_CHECKING:
    from torch import Tensor

_RUN = 1 << 20  # elements of each model that are float64 at a time


@dataclass(frozen=True, slots=True)
class Basis:
    """`tensors`: p basis tensors; `coefficients` (p × n): model i is Σⱼ cⱼᵢ · tensorⱼ; `missing`: ‖rest‖ / ‖all‖."""

    tensors: tuple[Tensor, ...]
    coefficients: Tensor
    missing: float


def basis_of(models: Sequence[Tensor], count: int, decompose: Decomposer | None = None) -> Basis:
    """The best `count` basis tensors for n tensors of one shape: X ≈ M C with M = U_pΣ_p and C = V_pᵀ.

    X has a column for each model. Its right singular vectors come from the n × n Gram matrix in float64. `count` is
    brought into 1 … n; with n the models come back exactly. Not invariant to how adapters are split into factors:
    give their products, or factors in a canonical form.
    """
    decompose = decompose or Plain()
    flat = [model.reshape(-1) for model in models]
    runs = [slice(first, first + _RUN) for first in range(0, len(flat[0]), _RUN)]
    gram = flat[0].new_zeros(len(flat), len(flat), dtype=torch.float64)
    for run in runs:
        columns = torch.stack([x[run].double() for x in flat])
        gram += columns @ columns.T
    values, vectors = decompose.eigh(gram)
    kept = min(max(count, 1), len(models))
    chosen = vectors.flip(1)[:, :kept]
    tensors = torch.stack(flat[:kept])  # of the right size and type
    for run in runs:
        tensors[:, run] = (chosen.T @ torch.stack([x[run].double() for x in flat])).to(tensors.dtype)
    rest = values.flip(0)[kept:].clamp(min=0).sum()
    total = values.clamp(min=0).sum()
    missing = float((rest / total).sqrt()) if float(total) else 0.0
    shaped = tuple(tensor.reshape(models[0].shape) for tensor in tensors)
    return Basis(shaped, chosen.T.contiguous(), missing)


def factor_bases(
    models: Sequence[Factors], count: int, decompose: Decomposer | None = None
) -> tuple[Basis, Basis]:
    """Bases of the left and of the right factors of n products, each brought into balanced form U√Σ · √ΣVᵀ first.

    That form does not depend on how a product was split. The largest entry of each column of U√Σ is positive; columns
    beyond a product's rank are 0, so that all have the largest rank.
    """
    decompose = decompose or Plain()
    inner = max(model.right.shape[0] for model in models)
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for model in models:
        found = compress_product(model, Bound(rank=inner), decompose).factors
        largest = found.left.gather(0, found.left.abs().argmax(dim=0, keepdim=True))
        way = torch.where(largest < 0, -1.0, 1.0).to(found.left.dtype)
        spare = (0, inner - found.right.shape[0])
        kind = model.left.dtype
        sides[0].append(torch.nn.functional.pad(found.left * way, spare).to(kind))
        sides[1].append(torch.nn.functional.pad(found.right * way.T, (0, 0, *spare)).to(kind))
    return basis_of(sides[0], count, decompose), basis_of(sides[1], count, decompose)


def restored(basis: Basis, number: int) -> Tensor:
    """Model `number`, from the basis."""
    column = basis.coefficients[:, number].tolist()
    total: Tensor = basis.tensors[0] * column[0]
    for tensor, coefficient in zip(basis.tensors[1:], column[1:], strict=True):
        total = total + tensor * coefficient
    return total
