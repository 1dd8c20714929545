"""WIDEN: weigh each column of each expert by how far its length and its direction moved. Owns scores and ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from cuvee.core.lazy import torch
from cuvee.methods.contract import Block, Stream, Summary, Uniforms, rows_of, stage
from cuvee.methods.summaries import totals
from cuvee.methods.vectors import dot

if TYPE_CHECKING:
    from torch import Tensor

Axis = Literal["role", "column", "row"]
_RUN = 1 << 14  # elements whose products are taken at a time
_BY_ROW = "embeddings"  # the role whose rows, one for each token, are what columns are elsewhere


def _by_row(block: Block, axis: Axis) -> bool:
    return axis == "row" or (axis == "role" and block.place.role == _BY_ROW)


def _summarise(stream: Stream, *, ratio: float, calibration: float, axis: Axis) -> Summary:
    blocks = stream.blocks()
    first = next(blocks, None)
    if first is None or not sum(stream.sizes):
        return {}
    begun = _Begun(stream, chain([first], blocks))
    if len(first.shape) < 2:
        sums = totals(begun, lambda block: [x.double().abs() for x in _changes(block.tensors)])
        return {"means": [total / sum(stream.sizes) for total in sums]}
    moved = _moves(_products(begun, by_row=_by_row(first, axis)))
    halves = [_scores(_ranks(move), ratio * (move.shape[1] - 1) / 2, calibration) for move in moved]
    return {"weights": (halves[0] + halves[1]) / 2}


@stage(
    "widen",
    role="combine",
    takes="weight",
    access="row",
    summarise=_summarise,
    upcast=True,
    inputs=(2, None),
    paper="arXiv:2408.03092",
)
def widen(
    tensors: list[Tensor],
    *,
    ratio: float = 1.0,
    calibration: float = 1.0,
    axis: Axis = "role",
    summary: Summary,
    block: Block,
) -> Tensor:
    """Add to the base each expert's change, column by column, by how much the column moved (WIDEN, arXiv:2408.03092).

    The first input is the base W₀. For column j of a matrix (out, in) Δmⱼ = |‖Wⱼ‖ − ‖W₀ⱼ‖| and Δdⱼ = 1 − cos(Wⱼ, W₀ⱼ);
    within an expert each is ranked, significance = rank / in; the score is the softmax of the significances over the
    experts, replaced by `calibration` where the significance exceeds `ratio` times its expert's mean. With weights ½
    (score of Δm + score of Δd), y = W₀ + Σ τᵢ ⊙ weightᵢ. Vectors have significance |τ| itself, weight by weight.
    Embeddings are transposed first, so that a column is a token; convolutions are flattened to (out, rest). Lengths and
    cosines are float64, from the changes, so that columns that hardly turned are ranked rightly. A zero column has no
    direction; getting or losing one counts as Δd = 1. Scores do not sum to 1: about half of the columns of every expert
    get `calibration`.

    Args:
        ratio: how many times its expert's mean a significance must exceed to be replaced; below 0 replaces all
        calibration: score of what exceeds it; 1 adds the change whole
        axis: what is ranked: by `role` columns, but rows of embeddings; or always `column`, or `row`
    """
    base, changes = tensors[0], _changes(tensors)
    if not summary:
        return base
    if "means" in summary:
        stacked = torch.stack([change.double().abs() for change in changes])
        means = (
            torch.tensor(summary["means"], dtype=torch.float64, device=stacked.device).reshape(-1, 1, 1)
            * ratio
        )
        weights = torch.softmax(stacked, 0).masked_fill(stacked > means, calibration)
    else:
        weights = summary["weights"][:, None, :]
        if _by_row(block, axis):
            first = block.start // max(rows_of(block.shape)[1], 1)
            weights = summary["weights"][:, first : first + len(base), None]
    total = base
    for change, weight in zip(changes, weights, strict=True):
        total = total + change * weight.to(change.dtype)
    return total


def _changes(tensors: Any) -> list[Tensor]:
    return [tensor - tensors[0] for tensor in tensors[1:]]


@dataclass(frozen=True, slots=True)
class _Begun:
    """A stream for one walk, whose first block was looked at already and is not read again."""

    stream: Stream
    walk: Iterator[Block]

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.stream.sizes

    @property
    def inputs(self) -> int:
        return self.stream.inputs

    def blocks(self) -> Iterator[Block]:
        return self.walk

    def uniforms(self, number: int) -> Uniforms:
        return self.stream.uniforms(number)


def _products(stream: Stream, *, by_row: bool) -> Tensor:
    """‖W₀ⱼ‖², then ‖τᵢⱼ‖² of all experts, then τᵢⱼ·W₀ⱼ, as (1 + 2K, columns or rows) in float64.

    Columns are added up row by row, which gives the same bits for any cut.
    """
    total: Tensor | None = None
    row = 0
    with torch.no_grad():
        for tensors in _pieces(stream):
            base, *others = (tensor.double() for tensor in tensors)
            taus = [other - base for other in others]
            pairs = [(base, base), *((tau, tau) for tau in taus), *((tau, base) for tau in taus)]
            if total is None:
                columns = base.shape[1]
                total = base.new_zeros(len(pairs), sum(stream.sizes) // columns if by_row else columns)
            if by_row:
                total[:, row : row + len(base)] = torch.stack([dot(a, b)[:, 0] for a, b in pairs])
                row += len(base)
                continue
            for figure in torch.stack([a * b for a, b in pairs], dim=1):
                total += figure
    assert total is not None
    return total


def _pieces(stream: Stream) -> Iterator[list[Tensor]]:
    """The inputs a few rows at a time: all products of a run are held at once, in float64."""
    for block in stream.blocks():
        step = max(1, _RUN // max(block.tensors[0].shape[1], 1))
        for first in range(0, len(block.tensors[0]), step):
            yield [tensor[first : first + step] for tensor in block.tensors]


def _moves(products: Tensor) -> tuple[Tensor, Tensor]:
    """Δm and Δd (K, columns); both from the changes, since differences of norms and cosines cancel."""
    count = len(products) // 2
    origin, change, along = products[0], products[1 : 1 + count], products[1 + count :]
    before = origin.sqrt()
    after = (origin + 2 * along + change).clamp(min=0).sqrt()
    both = before + after
    longer = (2 * along + change) / torch.where(both > 0, both, 1.0)
    area = before * after
    turned = (change - longer.square()).clamp(min=0) / (2 * torch.where(area > 0, area, 1.0))
    one_zero = (area == 0) & (both > 0)
    return longer.abs(), torch.where(area > 0, turned, one_zero.double())


def _ranks(moves: Tensor) -> Tensor:
    """Positions 0 … n − 1 within each row, ascending; of equal values the first ranks lower."""
    order = moves.argsort(dim=1, stable=True)
    places = torch.arange(moves.shape[1], dtype=torch.float64, device=moves.device).expand_as(moves)
    return torch.zeros_like(moves).scatter_(1, order, places)


def _scores(ranks: Tensor, limit: float, calibration: float) -> Tensor:
    """Softmax over the experts of rank / n, `calibration` where the rank exceeds `limit`."""
    shares = torch.softmax(ranks / max(ranks.shape[1], 1), 0)
    return shares.masked_fill(ranks > limit, calibration)
