"""Rows thinned by the ranks of their magnitudes, as the machine does it while tiles come by, against a sort."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cuvee.core.random import Stream
from cuvee.engine.kernels import Kernels, kernels
from cuvee.engine.kernels.operations import TILE, Code, Op, Ranked

KEY = 0x9E3779B97F4A7C15


@pytest.fixture
def machine() -> Kernels:
    found = kernels()
    if found is None:
        pytest.skip("no compiled kernels here")
    return found


def drawn(
    machine: Kernels, values: Tensor, first: int, limits: list[int], *, divided: bool = False
) -> Tensor:
    """What the machine keeps of rows: its values, which are those that its bits leave."""
    rows, length = values.shape
    count = rows * length
    most = (ctypes.c_uint32 * length)(*(min(limit, 1 << 32) - 1 for limit in limits))
    ones = (ctypes.c_float * length)(*[1.0] * length)
    out, again = torch.full((count,), torch.nan), torch.empty(count)
    bits = (ctypes.c_uint64 * (count // 64 + 2))()  # fewer than a tile that ends early would have
    own = [(ctypes.c_uint32 * size)() for size in (length + 2 * TILE, length + 2 * TILE, 5 * length + 16)]
    head = Ranked(length=length, key=KEY, out=out.data_ptr(), bits=ctypes.addressof(bits))
    head.most, head.divisors = ctypes.addressof(most), ctypes.addressof(ones) if divided else None
    head.values, head.words, head.scratch = map(ctypes.addressof, own)
    load = Op(code=Code.LOAD_F32)
    thin = Op(code=Code.RANKED, data=ctypes.addressof(head))
    left = Op(code=Code.STAYING, to=1, data=ctypes.addressof(bits) - first // 8)
    area = (ctypes.c_char * (2 * 4 * TILE))()
    inputs = (ctypes.c_void_p * 1)(values.data_ptr())
    machine.run((Op * 2)(load, thin), 2, inputs, 0, first, count, ctypes.addressof(area))
    assert head.rows == rows
    assert head.held == 0
    if not divided:
        ops = (Op * 3)(load, left, Op(code=Code.STORE_F32, a=1))
        machine.run(ops, 3, inputs, again.data_ptr(), first, count, ctypes.addressof(area))
        assert torch.equal(again.view(torch.int32), out.view(torch.int32))
    return out.reshape(rows, length)


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
    for low, high in ((0.15, 0.45), (0.001, 0.999), (0.5, 0.5), (1e-9, 1.0)):
        limits = rising(shape[1], low, high)
        right = expected(values, first, limits)
        found = drawn(machine, values, first, limits)
        assert torch.equal(found, right)
        kept = right.view(torch.int32) != 0
        assert torch.equal(found.view(torch.int32)[kept], right.view(torch.int32)[kept])


@pytest.mark.parametrize("name", ["bent", "few", "all"])
def test_limits_of_any_kind_are_minded(machine: Kernels, name: str) -> None:
    length = 1500
    limits = {
        "bent": [round(((rank + 1) / length) ** 3 * 2**32) for rank in range(length)],
        "few": [1] * length,
        "all": [1 << 32] * length,
    }[name]
    values = heavy(4, length, torch.Generator().manual_seed(1))
    assert torch.equal(drawn(machine, values, 0, limits), expected(values, 0, limits))


def test_dividing_by_one_keeps_the_same(machine: Kernels) -> None:
    values, limits = heavy(6, 3584, torch.Generator().manual_seed(2)), rising(3584, 0.15, 0.45)
    found = [drawn(machine, values, TILE, limits, divided=divided) for divided in (False, True)]
    assert torch.equal(*found)
