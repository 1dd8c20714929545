"""Rows chosen along a vocabulary axis, block by block: the tensor side of a row table."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from cuvee.core.lazy import torch
from cuvee.plan.nodes import Gather, Node

if TYPE_CHECKING:
    from torch import Tensor

Part = Callable[[Node, int, int], "Tensor"]
Means = dict[int, "Tensor"]  # by the identity of a node
_ROWS = 4096  # rows averaged at once for a mean over all rows


def gather(node: Gather, start: int, stop: int, part: Part, means: Means) -> Tensor:
    """Elements [start, stop) of the realigned tensor; `part` gives elements of a child.

    Along axis 0 the range must be whole rows; along another axis it must be the whole tensor. `means` keeps the mean
    row of each node, which takes a pass over the whole tensor, from block to block.
    """
    if node.axis != 0:
        return _other_axis(node, part)
    width = math.prod(node.shape[1:])
    if width == 0 or start == stop:
        return torch.empty(0)
    rows = _rows(node, start // width, stop // width, part, means)
    return torch.cat(rows).reshape(-1)


def _rows(node: Gather, first: int, last: int, part: Part, means: Means) -> list[Tensor]:
    width = math.prod(node.shape[1:])
    donors = dict(node.others)
    if node.own is not None:
        donors[node.table.model] = node.own
    pieces: list[Tensor] = []
    kind: Tensor | None = None  # a row to take dtype and device from
    for segment in node.table.segments(first, last):
        count = segment.stop - segment.start
        if segment.rule == "own":
            assert node.own is not None
            piece = part(node.own, segment.row * width, (segment.row + count) * width).reshape(count, width)
        elif segment.rule == "blend":
            taken = [part(donors[m], r * width, (r + 1) * width) for m, r in segment.donors]
            piece = mean_of(taken).reshape(1, width).expand(count, width)
        else:
            sample = kind if kind is not None else _sample(node, width, part)
            piece = torch.zeros(count, width, dtype=sample.dtype, device=sample.device)
            if segment.rule == "mean":
                if id(node) not in means:
                    means[id(node)] = _mean_row(node, part)
                piece = piece + means[id(node)]
        kind = piece
        pieces.append(piece)
    return pieces


def mean_of(rows: list[Tensor]) -> Tensor:
    """The mean of equally long rows, summed in the order given; one row is itself."""
    if len(rows) == 1:
        return rows[0]
    total = rows[0]
    for row in rows[1:]:
        total = total + row
    return total / len(rows)


def _sample(node: Gather, width: int, part: Part) -> Tensor:
    child = node.own if node.own is not None else node.others[0][1]
    return part(child, 0, width)


def _mean_row(node: Gather, part: Part) -> Tensor:
    """The mean, in float64, of all output rows that are not themselves filled by the mean."""
    total: Tensor | None = None
    count = 0
    kind = None
    for segment in node.table.parts:
        if segment.rule == "mean":
            continue
        for first in range(segment.start, segment.stop, _ROWS):
            last = min(first + _ROWS, segment.stop)
            rows = torch.cat(_rows(node, first, last, part, {}))
            kind = rows.dtype
            summed = rows.double().sum(0)
            total = summed if total is None else total + summed
            count += last - first
    assert total is not None
    return (total / count).to(kind)


def _other_axis(node: Gather, part: Part) -> Tensor:
    """The table applied along an inner axis: the axis is brought to the front of every child and back."""
    axis = node.axis
    moved = (node.shape[axis], *(s for i, s in enumerate(node.shape) if i != axis))
    cache: dict[int, Tensor] = {}

    def turned(child: Node, start: int, stop: int) -> Tensor:
        if id(child) not in cache:
            whole = part(child, 0, math.prod(child.shape)).reshape(child.shape)
            cache[id(child)] = whole.movedim(axis, 0).reshape(-1)
        return cache[id(child)][start:stop]

    flipped = Gather(node.own, node.others, node.table, 0, moved)
    values = gather(flipped, 0, math.prod(moved), turned, {})
    return values.reshape(moved).movedim(0, axis).reshape(-1)
