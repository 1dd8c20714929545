"""DOGE: task arithmetic whose task vectors are moved closer together outside the subspace they share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cuvee.core.lazy import torch
from cuvee.methods.combine.spectral.matrices import Matrices, is_matrix, matrices_of, matrix_stage
from cuvee.methods.combine.spectral.quadratic import Optimizer, adam_steps, length, sgd_steps
from cuvee.methods.contract import Block, Decomposer, Place, Stream, Summary
from cuvee.methods.parameters import Fraction, NonNegative, Positive, Range
from cuvee.methods.summaries import magnitude_of, top

if TYPE_CHECKING:
    from torch import Tensor

_RUN = 1 << 20  # elements that are ranked at a time
_HELD = 1 << 22  # elements up to which all experts' matrices are kept through the descent


def _summarise(stream: Stream, *, density: float, **values: Any) -> Summary:
    """For each expert its selection of the largest entries over all matrices of the model."""

    def kept(size: int) -> int:
        return (
            int(size * density) + 1
        )  # the official code keeps the threshold itself, and all that tie with it

    experts = range(stream.inputs)
    return {"cuts": [top(_Entries(stream, values, i), magnitude_of(0), kept, ties="all") for i in experts]}


def _asks(values: Mapping[str, Any], shape: tuple[int, ...], count: int) -> Sequence[int]:
    """Once to be kept and once for the subspace; or for lengths, subspace, two sums, each step, and the result."""
    if count * math.prod(shape) <= _HELD:
        return (4, *(2,) * (count - 1))
    each_one = 5 + values["steps"]
    return (each_one + 3, *(each_one,) * (count - 1))


def _asks_before(
    values: Mapping[str, Any], shape: tuple[int, ...], place: Place, count: int
) -> Sequence[int]:
    return (int(is_matrix(shape, place, values)),) * count


@matrix_stage(
    name="doge_ta",
    paper="arXiv:2501.01230",
    tensors="layers",
    exclude="",
    elsewhere="base",
    summarise=_summarise,
    scope=lambda values: "model",
    asks=_asks,
    asks_before=_asks_before,
    passes=2,
    apart=True,
)
def doge_ta(
    matrices: Matrices,
    *,
    decompose: Decomposer,
    block: Block,
    summary: Summary,
    eta: NonNegative = 0.07,
    subspace: Positive = 6.0,
    density: Fraction = 0.3,
    steps: Annotated[int, Range(0)] = 400,
    lr: Positive = 1e-4,
    optimizer: Optimizer = "adam",
) -> Tensor:
    """Task arithmetic with equal strengths, after a common change Δ has brought the task vectors closer together.

    λᵢ = η / ‖τᵢ‖, matrix by matrix. Shared subspace P: the first int(n / `subspace`) left singular vectors of
    [U₁ … U_K], int(n / K) leading left vectors of each task. Δ minimises Σⱼ Σ_rows (Σ_columns τⱼ ⊙ (τⱼ − Σ λᵢτᵢ −
    ΔΣλᵢ))² from 0, by 400 steps of Adam whose gradient has its part in P taken away. mᵢ: the largest 30 % of |τᵢ| over
    the whole model. θ = θ₀ + Σ λᵢ (τᵢ + Δ) ⊙ mᵢ. Without steps it is task arithmetic of normalised, trimmed task
    vectors. Adam does not keep Δ out of P, SGD does. K + 1 decompositions; each step reads all experts, anew where
    they are large.

    Wei et al., "Modeling multi-task model merging as adaptive projective gradient descent", ICML 2025
    (arXiv:2501.01230). As in FusionBench, all but the matrices of the layers stays at the base.

    Args:
        eta: η, the norm that each task matrix is brought to
        subspace: one in so many directions is shared
        density: share of each expert's entries that is kept, over all matrices of the model
        steps: of the optimizer, for each matrix
        lr: learning rate
        optimizer: `adam`, or `sgd` with momentum 0.9
    """
    held: Matrices | list[Tensor] = matrices
    if len(matrices) * matrices.shape[0] * matrices.shape[1] <= _HELD:
        held = list(matrices)
    strengths = [eta / size if (size := length(m)) else 0.0 for m in held]
    basis = shared_subspace(matrices, decompose, subspace)
    walk = adam_steps if optimizer == "adam" else sgd_steps
    point = walk(_Slope(held, strengths, basis), matrices[0].new_zeros(matrices.shape), steps, lr)
    total = torch.zeros_like(point)
    whole = Block([], 0, block.shape, block.number)
    for matrix, strength, cut in zip(held, strengths, summary["cuts"], strict=True):
        mask = cut.mask(matrix.abs(), whole)
        total.addcmul_(matrix + point, mask.to(point.dtype), value=strength)
    return total


def shared_subspace(matrices: Matrices, decompose: Decomposer, divisor: float) -> Tensor:
    """An orthonormal basis of the leading left directions of all tasks' leading left directions."""
    n, count = matrices.directions, len(matrices)
    each_task = n // count
    stacked = matrices[0].new_zeros(matrices.shape[0], n)
    for index in range(count):
        u = decompose.svd(matrices[index], each_task)[0]
        stacked[:, index * each_task : (index + 1) * each_task] = u
    return decompose.svd(stacked, int(n / divisor))[0]


class _Slope:
    """The gradient of the loss at Δ, without its part in the shared subspace."""

    def __init__(self, matrices: Sequence[Tensor] | Matrices, strengths: list[float], basis: Tensor) -> None:
        self.matrices, self.basis, self.strength = matrices, basis, sum(strengths)
        merged = torch.zeros_like(matrices[0])
        for index, strength in enumerate(strengths):
            merged.add_(matrices[index], alpha=strength)
        self.gaps = [(m * (m - merged)).sum(dim=1) for m in (matrices[i] for i in range(len(matrices)))]

    def __call__(self, point: Tensor) -> Tensor:
        total = torch.zeros_like(point)
        for index, gap in enumerate(self.gaps):
            matrix = self.matrices[index]
            gap = gap - (matrix * point).sum(dim=1) * self.strength
            total.addcmul_(matrix, gap[:, None], value=-2 * self.strength)
            del matrix
        return total.addmm_(self.basis, self.basis.T @ total, alpha=-1)


class _Entries:
    """The entries of one expert's matrices over the model, run by run, as a `Stream` of one input."""

    inputs = 1

    def __init__(self, stream: Stream, values: Mapping[str, Any], index: int) -> None:
        self.stream, self.values, self.index = stream, values, index
        self.sizes = tuple(_count(block) for block in self._matrices())

    def _matrices(self) -> Iterator[Block]:
        return (b for b in self.stream.blocks() if is_matrix(b.shape, b.place, self.values))

    def blocks(self) -> Iterator[Block]:
        for block in self._matrices():
            found = matrices_of(block.tensors, block, self.values)
            assert found is not None
            flat = found[self.index].reshape(-1)
            for start in range(0, len(flat), _RUN):
                yield Block([flat[start : start + _RUN]], start, block.shape, block.number)

    def uniforms(self, number: int) -> Any:
        raise LookupError(f"there are no random numbers for tensor {number}")


def _count(block: Block) -> int:
    count = 1
    for axis in block.shape:
        count *= axis
    return count
