"""Tensors as many vectors: along the last axis of a row block, and dot products of them in float64.

Owns what the stages share that treat each row on its own. Must not know any method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def along_last(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A row block of a tensor of this shape as (vectors, last axis); 0-d and 1-D tensors are one vector."""
    length = shape[-1] if shape else 1
    return tensor.reshape(tensor.numel() // max(length, 1), length)


def dot(a: Tensor, b: Tensor, axis: int = -1) -> Tensor:
    """Dot products of vectors along an axis, which is kept with length 1; products and sums in float64."""
    return (a.double() * b.double()).sum(axis, keepdim=True)
