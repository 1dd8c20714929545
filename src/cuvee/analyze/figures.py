"""Gathers the figures of every tensor, and joins them by layer, by role, and over the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from cuvee.analyze.reading import Deltas, Spot
from cuvee.analyze.sums import SHARES, Sums, none, of_block
from cuvee.core.lazy import torch
from cuvee.methods.contract import Block
from cuvee.methods.summaries import Cut, magnitude_of, tops

if TYPE_CHECKING:
    from torch import Tensor

_PIECE = 1 << 20  # elements whose float64 copies are made at once


@dataclass(frozen=True, slots=True)
class Measured:
    """One tensor and its figures."""

    spot: Spot
    sums: Sums


def measure(deltas: Deltas) -> Sums | None:
    """The figures of one tensor; None where a model has NaN or infinity in it."""
    for _, rows in deltas.runs():
        if not bool(torch.isfinite(rows).all()):
            return None
    cuts = [_largest(deltas, number) for number in range(deltas.inputs)]
    total = none(deltas.inputs)
    for begin, whole in deltas.runs():
        for at in range(0, whole.shape[1], _PIECE):
            rows = whole[:, at : at + _PIECE]
            block = Block(list(rows[1:]), begin + at, deltas.spot.shape)
            masks = [torch.stack(_masks(cuts, share, block)) for share in range(len(SHARES))]
            total = total + of_block(rows[0], rows[1:], masks)
    return total


def _largest(deltas: Deltas, number: int) -> list[Cut]:
    """The selection of the largest elements of one task vector for each share, at least one element each."""
    keeps = [max(1, math.ceil(share * deltas.size - 1e-9)) for share in SHARES]
    return tops(deltas.single(number), magnitude_of(0), keeps)


def _masks(cuts: Sequence[Sequence[Cut]], share: int, block: Block) -> list[Tensor]:
    """Which elements of each task vector are among its largest; zeros never are, as nothing changed there."""
    return [
        cut[share].mask(row.abs(), block) & (row != 0) for cut, row in zip(cuts, block.tensors, strict=True)
    ]


def joined(found: Iterable[Measured], key: Callable[[Spot], str]) -> dict[str, Sums]:
    """Figures by layer or role, in the order of first mention."""
    groups: dict[str, list[Sums]] = {}
    for one in found:
        groups.setdefault(key(one.spot), []).append(one.sums)
    return {name: total(parts) for name, parts in groups.items()}


def total(parts: Sequence[Sums]) -> Sums:
    """The sum of at least one."""
    return reduce(add, parts)
