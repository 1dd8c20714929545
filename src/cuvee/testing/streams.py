"""Tensors in memory as a stage sees them: cut into blocks by access, with a random stream for each.

Owns the reference meaning of the cuts that `methods/contract.py` describes. Must not know any method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cuvee.methods.contract import NOWHERE, Access, Block, Place, Uniforms, rows_of


@dataclass(frozen=True, slots=True)
class FixedUniforms:
    """Given words instead of random ones: element e of a tensor gets `values[e]` (int64, in [0, 2³²))."""

    values: Tensor

    def words(self, start: int, stop: int) -> Tensor:
        return self.values[start:stop]


@dataclass(frozen=True, slots=True)
class MemoryStream:
    """A `Stream` over tensors in memory: `groups` has one list of equally shaped inputs for each tensor.

    `block` is the number of elements in a block, a multiple of 1024; blocks of rows have at least one row,
    and None hands over each tensor whole. `random` has the uniforms of each tensor, where the stage is
    random, `places` says what each is.
    """

    groups: Sequence[Sequence[Tensor]]
    access: Access = "element"
    block: int | None = None
    random: Sequence[Uniforms] = ()
    places: Sequence[Place] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(group[0].numel() for group in self.groups)

    @property
    def inputs(self) -> int:
        return len(self.groups[0]) if self.groups else 0

    def blocks(self) -> Iterator[Block]:
        for number, group in enumerate(self.groups):
            place = self.places[number] if self.places else NOWHERE
            yield from blocks_of(group, self.access, self.block, number, place)

    def uniforms(self, number: int) -> Uniforms:
        return self.random[number]


def blocks_of(
    inputs: Sequence[Tensor], access: Access, size: int | None, number: int = 0, place: Place = NOWHERE
) -> Iterator[Block]:
    """One tensor's inputs cut into blocks of `size` elements as the access allows; at least one."""
    if size is not None and (size <= 0 or size % 1024):
        raise ValueError(f"blocks are multiples of 1024 elements, got {size}")
    shape = tuple(inputs[0].shape)
    if access == "tensor":
        yield Block(list(inputs), 0, shape, number, place)
        return
    if access == "element":
        length, cut = 1, [tensor.reshape(-1) for tensor in inputs]
    else:
        rows, length = rows_of(shape)
        cut = [tensor.reshape(rows, length) for tensor in inputs]
    step = max(1, size // max(length, 1)) if size else max(1, len(cut[0]))
    for first in range(0, max(1, len(cut[0])), step):
        yield Block([tensor[first : first + step] for tensor in cut], first * length, shape, number, place)


def assembled(parts: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """A tensor put together again from the results of its blocks."""
    return torch.cat([part.reshape(-1) for part in parts]).reshape(tuple(shape))
