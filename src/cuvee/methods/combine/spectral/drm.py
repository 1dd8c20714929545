"""DRM: bring all task matrices into one basis, renormalise their rows there, prune, elect signs, and merge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

from cuvee.core.lazy import torch
from cuvee.methods.combine.spectral.matrices import Matrices, is_matrix, matrix_stage
from cuvee.methods.contract import Block, Decomposer, Place, Scope, Stream, Summary
from cuvee.methods.parameters import Fraction, PerExpert, Range, Tolerance, each
from cuvee.methods.summaries import order_statistics

if TYPE_CHECKING:
    from torch import Tensor

_RUN = 1 << 20  # elements that are ranked at a time
_ROWS = 256  # rows that are pruned at a time
Parts = Annotated[int, Range(1)]


def _scope(values: Mapping[str, Any]) -> Scope | None:
    return "model" if values["rest_drop_rate"] > 0 else None


def _summarise(stream: Stream, *, rest_drop_rate: float, **values: Any) -> Summary:
    """For each expert the least magnitude that survives among its tensors that are no matrices."""

    def expert(index: int) -> Callable[[], Iterator[Tensor]]:
        def tensors() -> Iterator[Tensor]:
            for block in stream.blocks():
                if not is_matrix(block.shape, block.place, values):
                    yield block.tensors[index] * each(values["weight"], stream.inputs)[index]

        return tensors

    return {"thresholds": [threshold(expert(i), rest_drop_rate) for i in range(stream.inputs)]}


def _asks(values: Mapping[str, Any], shape: tuple[int, ...], count: int) -> Sequence[int]:
    """For the basis, its type, the number of entries, two passes over them, the election and the mean; or the mean."""
    each_once = 0 if values["drop_rate"] == 0 else 5
    first = 1 if values["drop_rate"] else 0
    return tuple((1 + each_once + first * (i == 0)) * values["parts"] for i in range(count))


def _asks_before(
    values: Mapping[str, Any], shape: tuple[int, ...], place: Place, count: int
) -> Sequence[int]:
    """Tensors that are no matrices: in a walk for the number of entries and in two for the threshold."""
    return (0 if is_matrix(shape, place, values) else 1,) * count


def _rest(deltas: Sequence[Tensor], *, summary: Summary, coefficient: Any, weight: Any, **_: Any) -> Tensor:
    """Tensors that are no matrices: trimmed over the whole model, signs elected, mean of those that agree."""
    count = len(deltas)
    least = summary.get("thresholds", [0.0] * count)
    weights = each(weight, count)

    def trimmed(index: int) -> Tensor:
        delta = deltas[index] * weights[index]
        return torch.where(delta.abs() < least[index], 0.0, delta)

    return disjoint_mean(trimmed, each(coefficient, count), elect=True)


def _merged(matrices: Matrices, *, across: bool, **values: Any) -> Tensor:
    """Merge the matrices part by part (fused projections are several matrices in one)."""
    rows, parts = matrices.shape[0], values.pop("parts")
    if parts == 1:
        return aligned(matrices, across=across, **values)
    bounds = [(i * (rows // parts) + min(i, rows % parts)) for i in range(parts + 1)]
    return torch.cat(
        [
            aligned(_Rows(matrices, slice(first, last)), across=across, **values)
            for first, last in pairwise(bounds)
            if last > first
        ]
    )


@matrix_stage(
    name="drm_h",
    paper="arXiv:2505.23117",
    asks=_asks,
    asks_rest=2,
    asks_before=_asks_before,
    passes=3,
    apart=True,
    elsewhere=None,
    tensors="layers",
    exclude="",
    cut=False,
    summarise=_summarise,
    scope=_scope,
    rest=_rest,
)
def drm_h(
    matrices: Matrices,
    *,
    decompose: Decomposer,
    summary: Summary,
    drop_rate: Fraction = 0.8,
    coefficient: PerExpert[float] = 1.0,
    rank_cut: Tolerance = 1e-2,
    parts: Parts = 1,
    rest_drop_rate: Fraction = 0.0,
) -> Tensor:
    """Merge the task matrices in the left basis they share, where every direction of every task has the same length.

    [τ₁ … τ_K] = U S Vᵀ with the directions S > 0.01 S_max; the block of Vᵀ that belongs to task i has rows of norm ν,
    which are brought to length 1, and their strengths become s = Sν. The smallest entries of all blocks together are
    dropped (share p); of what remains, times s, one sign is elected for each entry, those that disagree are dropped,
    and the rest is averaged over those that are not zero: τ = U · M. p = 0 is a plain average without zeros, in the
    official code too. One eigendecomposition of rows × rows and five evaluations of each expert.

    Chaichana et al., "Decom-Renorm-Merge: model merging on the right space improves multitasking", 2025
    (arXiv:2505.23117). Tensors that are no matrices: entries dropped over the whole model, signs elected, mean of
    those that agree.

    Args:
        drop_rate: p, share of the entries of the normalised directions that is dropped
        coefficient: factor of each task after the election of signs
        rank_cut: directions up to this times the strongest are left out; they carry noise, but also small changes
        parts: number of matrices that are fused in one along its rows (3 for query, key and value in one), each
            merged by itself
        rest_drop_rate: share of the entries dropped from tensors that are no matrices
    """
    values = {"drop_rate": drop_rate, "coefficient": coefficient, "rank_cut": rank_cut, "parts": parts}
    return _merged(matrices, across=False, decompose=decompose, **values)


@matrix_stage(
    name="drm_v",
    paper="arXiv:2505.23117",
    asks=_asks,
    asks_rest=2,
    asks_before=_asks_before,
    passes=3,
    apart=True,
    elsewhere=None,
    tensors="layers",
    exclude="",
    cut=False,
    summarise=_summarise,
    scope=_scope,
    rest=_rest,
)
def drm_v(
    matrices: Matrices,
    *,
    decompose: Decomposer,
    summary: Summary,
    drop_rate: Fraction = 0.8,
    coefficient: PerExpert[float] = 1.0,
    rank_cut: Tolerance = 1e-2,
    parts: Parts = 1,
    rest_drop_rate: Fraction = 0.0,
) -> Tensor:
    """Merge the task matrices in the right basis they share: `drm_h` of the transposed matrices, transposed back.

    The matrices are stacked as rows, [τ₁; …; τ_K] = U S Vᵀ, and the blocks of U are renormalised, pruned, elected and
    averaged; τ = M · Vᵀ. One eigendecomposition of columns × columns. Paper: arXiv:2505.23117.

    Args:
        drop_rate: p, share of the entries of the normalised directions that is dropped
        coefficient: factor of each task after the election of signs
        rank_cut: directions up to this times the strongest are left out
        parts: number of matrices that are fused in one along its rows, each merged by itself
        rest_drop_rate: share of the entries dropped from tensors that are no matrices
    """
    values = {"drop_rate": drop_rate, "coefficient": coefficient, "rank_cut": rank_cut, "parts": parts}
    return _merged(matrices, across=True, decompose=decompose, **values)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some rows of each matrix."""

    matrices: Matrices
    rows: slice

    def __len__(self) -> int:
        return len(self.matrices)

    def __getitem__(self, index: int) -> Tensor:
        return self.matrices[index][self.rows]


def aligned(
    matrices: Matrices | _Rows,
    *,
    decompose: Decomposer,
    across: bool,
    drop_rate: float,
    coefficient: Any,
    rank_cut: float,
) -> Tensor:
    """DRM of matrices, along their columns (or rows, `across`)."""
    count = len(matrices)
    coefficients = each(coefficient, count)
    if drop_rate == 0:
        return disjoint_mean(lambda i: matrices[i], [1.0] * count, elect=False)

    def one(index: int) -> Tensor:
        matrix = matrices[index]
        return matrix.T if across else matrix

    basis = shared_basis(one, count, decompose, rank_cut)

    def rows(index: int) -> tuple[Tensor, Tensor]:
        inside = basis.T @ one(index)
        return inside, _lengths(inside)

    def normalised() -> Iterator[Tensor]:
        for index in range(count):
            inside, lengths = rows(index)
            yield inside.div_(lengths)

    least = threshold(normalised, drop_rate)

    def pruned(index: int) -> Tensor:
        inside, lengths = rows(index)
        for start in range(0, len(inside), _ROWS):
            run = slice(start, start + _ROWS)
            inside[run].masked_fill_((inside[run] / lengths[run]).abs_() < least, 0.0)
        return inside

    merged = basis @ disjoint_mean(pruned, coefficients, elect=True)
    return merged.T if across else merged


def _lengths(matrix: Tensor) -> Tensor:
    """The length of each row, at least the smallest number; in float64, where no square is too large or too small."""
    starts = range(0, max(1, len(matrix)), _ROWS)
    runs = [torch.linalg.vector_norm(matrix[s : s + _ROWS].double(), dim=1, keepdim=True) for s in starts]
    return torch.cat(runs).to(matrix.dtype).clamp(min=torch.finfo(matrix.dtype).tiny)


def shared_basis(one: Callable[[int], Tensor], count: int, decompose: Decomposer, rank_cut: float) -> Tensor:
    """U of [τ₁ … τ_K], from the float64 sum of τᵢτᵢᵀ: exact enough, since σ below the cut is not wanted."""
    total: Tensor | None = None
    for index in range(count):
        wide = one(index).double()
        total = wide @ wide.T if total is None else total.addmm_(wide, wide.T)
        del wide
    assert total is not None
    values, vectors = decompose.eigh(total, spend=True)
    del total
    sizes = values.clamp(min=0).sqrt()
    left_out = int((sizes <= rank_cut * sizes[-1:]).sum())
    return vectors[:, left_out:].to(one(0).dtype).flip(1).contiguous()


def threshold(tensors: Callable[[], Iterator[Tensor]], drop_rate: float) -> float:
    """The magnitude of rank N − round(N(1 − p)) from below among all entries; entries below it are dropped."""
    stream = _Magnitudes(tensors)
    total = sum(stream.sizes)
    rank = total - round(total * (1 - drop_rate))
    return order_statistics(stream, lambda block: block.tensors[0], [rank - 1])[0] if rank else 0.0


class _Magnitudes:
    """The magnitudes of tensors that are made again for each pass, as a `Stream` of one input."""

    inputs = 1

    def __init__(self, tensors: Callable[[], Iterator[Tensor]]) -> None:
        self.tensors = tensors
        self.sizes = tuple(tensor.numel() for tensor in tensors())

    def blocks(self) -> Iterator[Block]:
        for number, tensor in enumerate(self.tensors()):
            for start in range(0, tensor.numel(), _RUN):
                run = tensor.reshape(-1)[start : start + _RUN].abs()
                yield Block([run], start, tuple(tensor.shape), number)

    def uniforms(self, number: int) -> Any:
        raise LookupError(f"there are no random numbers for tensor {number}")


def disjoint_mean(tensor: Callable[[int], Tensor], coefficients: Sequence[Any], *, elect: bool) -> Tensor:
    """The mean of tensors over their entries that are not zero; with `elect`, of those that have the elected sign.

    The sign is that of the sum, and where that is zero, of the sum of all signs. Beside the tensor at hand, which is
    not changed, it takes memory for two and a quarter.
    """
    sign = elected(tensor, len(coefficients)) if elect else None
    total: Tensor | None = None
    share: Tensor | None = None
    for index, coefficient in enumerate(coefficients):
        value = tensor(index)
        # runs of new zeros are views of them, however `value` lies in memory
        total = value.new_zeros(value.shape) if total is None else total
        share = value.new_zeros(value.shape) if share is None else share
        for part, own, count, agreed in _together(value, total, share, sign):
            part = part if agreed is None else torch.where(part.sign() == agreed, part, 0.0)
            part = part * coefficient
            own.add_(part)
            count.add_(part != 0)
        del value
    assert total is not None
    assert share is not None
    return total.div_(share.clamp_(min=1))


def elected(tensor: Callable[[int], Tensor], count: int) -> Tensor:
    """The sign of each entry's sum as int8, and where that is zero, that of the sum of all signs."""
    total = tensor(0).clone()
    for index in range(1, count):
        total.add_(tensor(index))
    sign = total.sign_().to(torch.int8)
    sign[sign == 0] = int(total.sum().sign())
    return sign


def _together(*tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """The same runs of elements of tensors of one shape; None stays None."""
    flat = [None if tensor is None else tensor.reshape(-1) for tensor in tensors]
    first = flat[0]
    assert first is not None
    for start in range(0, len(first), _RUN):
        yield tuple(None if one is None else one[start : start + _RUN] for one in flat)
