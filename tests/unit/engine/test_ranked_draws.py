"""Rows thinned by the ranks of their magnitudes, as the compiled kernel does it without dividing, against a sort."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cuvee.core.random import Stream
from cuvee.engine.kernels import Kernels, kernels
from cuvee.engine.kernels.operations import TILE

KEY = 0x9E3779B97F4A7C15


@pytest.fixture
def machine() -> Kernels:
    found = kernels()
    if found is None:
        pytest.skip("no compiled kernels here")
    return found


def drawn(machine: Kernels, values: Tensor, first: int, limits: list[int], divided: bool) -> Tensor:
    rows, length = values.shape
    own = values.clone()
    raw = (ctypes.c_uint64 * length)(*limits)
    ones = (ctypes.c_float * length)(*[1.0] * length) if divided else None
    scratch = (ctypes.c_uint64 * (2 * length + (rows * length + length) // 2 + 1))()
    at = ctypes.addressof(scratch)
    machine.prune(own.data_ptr(), rows, length, first, KEY, raw, ones, (None, None), at)
    return own


def expected(values: Tensor, first: int, limits: list[int]) -> Tensor:
    rows, length = values.shape
    order = values.abs().argsort(dim=1, stable=True)
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(length).expand_as(order))
    words = Stream(KEY).words(first, first + rows * length).reshape(rows, length)
    return torch.where(words < torch.tensor(limits)[ranks], values, 0.0)


def rising(length: int, low: float, high: float) -> list[int]:
    return [round((low + (high - low) * rank / max(length - 1, 1)) * 2**32) for rank in range(length)]


def heavy(rows: int, length: int, draw: torch.Generator) -> Tensor:
    return torch.randn(rows, length, generator=draw).pow(3) * 3e-4


def steps(rows: int, length: int, draw: torch.Generator) -> Tensor:
    """As light fine-tuning leaves bfloat16: mostly nothing, else a step of one of few sizes."""
    size = 2.0 ** torch.randint(-14, -8, (rows, length), generator=draw).float()
    moved = torch.rand(rows, length, generator=draw) < 0.4
    return torch.where(moved, size * torch.randn(rows, length, generator=draw).sign(), 0.0)


def wide(rows: int, length: int, draw: torch.Generator) -> Tensor:
    """From subnormal numbers to the largest."""
    return torch.randn(rows, length, generator=draw).clamp(-1, 1) * 2.0 ** torch.randint(
        -149, 127, (rows, length), generator=draw
    )


def equal(rows: int, length: int, draw: torch.Generator) -> Tensor:
    return torch.where(torch.rand(rows, length, generator=draw) < 0.5, 0.5, -0.5)


def zeros(rows: int, length: int, draw: torch.Generator) -> Tensor:
    return torch.where(torch.rand(rows, length, generator=draw) < 0.5, 0.0, -0.0)


Kind = Callable[[int, int, torch.Generator], Tensor]


@pytest.mark.parametrize("kind", [heavy, steps, wide, equal, zeros])
@pytest.mark.parametrize("shape", [(7, 1), (400, 3), (3, 1000), (5, 1024), (3, 3584), (2, 5000), (1, 20000)])
def test_rows_are_drawn_as_if_they_were_sorted(machine: Kernels, kind: Kind, shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(shape[1])
    values, first = kind(*shape, draw), 5 * TILE
    for low, high in ((0.15, 0.45), (0.001, 0.999), (0.5, 0.5), (0.0, 1.0)):
        limits = rising(shape[1], low, high)
        right = expected(values, first, limits)
        found = drawn(machine, values, first, limits, divided=False)
        assert torch.equal(found, right)
        kept = right.view(torch.int32) != 0
        assert torch.equal(found.view(torch.int32)[kept], right.view(torch.int32)[kept])


@pytest.mark.parametrize("name", ["falling", "bent", "none", "all"])
def test_limits_of_any_kind_are_minded(machine: Kernels, name: str) -> None:
    length = 1500
    limits = {
        "falling": rising(length, 0.2, 0.6)[::-1],
        "bent": [round((rank / length) ** 3 * 2**32) for rank in range(length)],
        "none": [0] * length,
        "all": [1 << 32] * length,
    }[name]
    values = heavy(4, length, torch.Generator().manual_seed(1))
    assert torch.equal(drawn(machine, values, 0, limits, divided=False), expected(values, 0, limits))


def test_dividing_by_one_keeps_the_same(machine: Kernels) -> None:
    values, limits = heavy(6, 3584, torch.Generator().manual_seed(2)), rising(3584, 0.15, 0.45)
    found = [drawn(machine, values, TILE, limits, divided) for divided in (False, True)]
    assert torch.equal(*found)
