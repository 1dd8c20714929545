"""The core space of low-rank adapters: what their factors span together, a matrix no larger than the sum of ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cuvee.methods.contract import Coordinates, Decomposer, Factors, rows_of, stage
from cuvee.methods.parameters import NonNegative
from cuvee.methods.spaces.bases import left_basis

if TYPE_CHECKING:
    from torch import Tensor


class _Frame(NamedTuple):
    """Bases of the output (out × R) and the input side (in × R), and the shape to come back to."""

    left: Tensor
    right: Tensor
    shape: tuple[int, ...]


def _leave(merged: Tensor, frame: _Frame) -> Tensor:
    return (frame.left.to(merged.dtype) @ merged @ frame.right.T.to(merged.dtype)).reshape(frame.shape)


@stage("core_space", role="space", access="tensor", upcast=True, paper="arXiv:2509.17786", leave=_leave)
def core_space(
    deltas: list[Tensor],
    *,
    cut: NonNegative = 1e-5,
    factors: list[Factors | None],
    decompose: Decomposer,
) -> Coordinates:
    """The core of low-rank task vectors: R × R, R the sum of their ranks (Core Space, arXiv:2509.17786).

    With Δᵢ = BᵢAᵢ, U_B the left singular vectors of [B₁ … B_K] and V_A the right ones of the stacked Aᵢ, the
    coordinates are U_Bᵀ Δᵢ V_A and a merged core M stands for U_B M V_Aᵀ, without loss for any sum. Adapters give their
    own factors, the scale in B. Other task vectors are factored first, as U√Σ · √ΣVᵀ, leaving out singular values up
    to `cut`, so their error in the spectral norm is at most `cut`; with full rank the core is no smaller than the
    matrix. The axes depend on how an adapter is split into factors, though the space does not.

    Args:
        cut: singular values up to this are left out where a task vector is not given by factors
    """
    shape = tuple(deltas[0].shape)
    known = [
        f or _factored(d.reshape(rows_of(shape)), cut, decompose)
        for d, f in zip(deltas, factors, strict=True)
    ]
    wide = [Factors(f.left.double(), f.right.double()) for f in known]
    left = left_basis([f.left for f in wide], None, decompose)
    right = left_basis([f.right.T for f in wide], None, decompose)
    cores = [(left.T @ f.left) @ (f.right @ right) for f in wide]
    return Coordinates(tuple(core.to(deltas[0].dtype) for core in cores), _Frame(left, right, shape))


def _factored(matrix: Tensor, cut: float, decompose: Decomposer) -> Factors:
    u, s, vh = decompose.svd(matrix.double())
    rank = int((s > cut).sum())
    root = s[:rank].sqrt()
    return Factors(u[:, :rank] * root, root[:, None] * vh[:rank])
