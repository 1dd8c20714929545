"""Invertible maps of attention heads that leave what attention computes unchanged (MergeLock, arXiv:2509.01548).

Owns how maps are drawn, under which conditions they commute with rotary positions and norms, and their inverses, which
come from the factors a map is drawn in and not from numerical inversion. Must not know where secrets are kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuvee.core.lazy import torch
from cuvee.methods.contract import Heads
from cuvee.methods.privacy.secret import normals, uniforms

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class HeadMap:
    """An invertible matrix of one head, float64 (size, size), and its inverse."""

    matrix: Tensor
    inverse: Tensor


def free(key: bytes, label: str, size: int, kappa: float) -> HeadMap:
    """U diag(s) Vᵀ with uniformly distributed orthogonal U, V and log-uniform s in [κ^(−1/2), κ^(1/2)]."""
    u, v = (_orthogonal(key, f"{label}/{side}", size) for side in ("u", "v"))
    s = _sizes(key, f"{label}/s", size, kappa)
    return HeadMap((u * s) @ v.T, (v / s) @ u.T)


def commuting(key: bytes, label: str, heads: Heads, kappa: float) -> HeadMap:
    """A map that commutes with rotary positions: a turn and a factor for each pair of dimensions, free elsewhere."""
    pairs = heads.rotated // 2
    turn = 2 * math.pi * uniforms(key, f"{label}/turn", pairs)
    length = _sizes(key, f"{label}/length", pairs, kappa)
    matrix, inverse = (torch.zeros(heads.size, heads.size, dtype=torch.float64) for _ in range(2))
    _place(matrix, heads, length * turn.cos(), length * turn.sin())
    _place(inverse, heads, turn.cos() / length, -turn.sin() / length)
    if heads.rotated < heads.size:
        rest = free(key, f"{label}/rest", heads.size - heads.rotated, kappa)
        matrix[heads.rotated :, heads.rotated :] = rest.matrix
        inverse[heads.rotated :, heads.rotated :] = rest.inverse
    return HeadMap(matrix, inverse)


def signed(key: bytes, label: str, heads: Heads, group: int) -> HeadMap:
    """A signed permutation behind a norm: quarter turns of the rotary pairs.

    Which pairs change places is the same for all heads of a layer, as they share the norm's gain (`exchanged`); which
    way they turn differs from head to head.
    """
    swapped = _swapped(key, label, heads)
    way = torch.where(uniforms(key, f"{label}/{group}/sign", heads.rotated // 2) < 0.5, -1.0, 1.0).double()
    matrix = torch.eye(heads.size, dtype=torch.float64)
    _place(matrix, heads, torch.where(swapped, 0.0, way), torch.where(swapped, way, 0.0))
    return HeadMap(matrix, matrix.T)


def exchanged(key: bytes, label: str, heads: Heads, gain: Tensor) -> Tensor:
    """The norm's gain with the places exchanged as `signed` exchanges them; doing so twice changes nothing."""
    first, second = _pairs(heads)
    swapped = _swapped(key, label, heads)
    order = torch.arange(heads.size)
    order[first[swapped]], order[second[swapped]] = second[swapped], first[swapped]
    return gain.index_select(0, order.to(gain.device))


def _swapped(key: bytes, label: str, heads: Heads) -> Tensor:
    return uniforms(key, f"{label}/swap", heads.rotated // 2) < 0.5


def _pairs(heads: Heads) -> tuple[Tensor, Tensor]:
    """First and second dimension of each rotary pair."""
    numbers, half = torch.arange(heads.rotated // 2), heads.rotated // 2
    return (2 * numbers, 2 * numbers + 1) if heads.rope == "interleaved" else (numbers, numbers + half)


def _place(matrix: Tensor, heads: Heads, cosine: Tensor, sine: Tensor) -> None:
    first, second = _pairs(heads)
    matrix[first, first] = matrix[second, second] = cosine
    matrix[first, second], matrix[second, first] = -sine, sine


def _orthogonal(key: bytes, label: str, size: int) -> Tensor:
    q, r = torch.linalg.qr(normals(key, label, size * size).reshape(size, size))
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0).double()
    uniform: Tensor = q * signs  # without them the distribution is not uniform (Mezzadri, 2007)
    return uniform


def _sizes(key: bytes, label: str, count: int, kappa: float) -> Tensor:
    return torch.exp((uniforms(key, label, count) - 0.5) * math.log(kappa))
