"""Scores of PCB merging that need not be told: those told are right, and all others are below the floor."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch
from torch import Tensor

from cuvee.engine.kernels import Kernels, kernels
from cuvee.engine.kernels.operations import REGISTER, TILE, Balance, Code, Op, Voter
from cuvee.methods.combine.pcb import Span, Variant, balanced_scores, pcb

UNTOLD = -1.0


@pytest.fixture
def machine() -> Kernels:
    found = kernels()
    if found is None:
        pytest.skip("no compiled kernels here")
    return found


def changes(count: int, scale: float, seed: int) -> list[Tensor]:
    """Heavy-tailed changes, some of which are 0, and some of which cancel but for roundings."""
    draw = torch.Generator().manual_seed(seed)
    found = [torch.randn(TILE, generator=draw).pow(3) * scale for _ in range(count)]
    for change in found:
        change[::37] = 0.0
    if count > 1:
        found[-1][100:200] = -sum(change[100:200] for change in found[:-1]) * (1 + 2.0**-22)
    return found


def spans(deltas: list[Tensor], low: float, high: float) -> list[Span]:
    """Between which shares of the sorted magnitudes each counts."""
    ordered = [delta.abs().sort().values for delta in deltas]
    return [Span(float(x[int(low * TILE)]), float(x[int(high * (TILE - 1))])) for x in ordered]


def computed(
    machine: Kernels,
    deltas: list[Tensor],
    sizes: list[Span],
    floors: list[float],
    variant: Variant,
    weights: list[float],
    cuts: list[Span],
) -> tuple[list[Tensor], Tensor]:
    """The scores as they are told, and what is combined by them."""
    count = len(deltas)
    raw = ctypes.create_string_buffer(ctypes.sizeof(Balance) + count * ctypes.sizeof(Voter))
    head = Balance.from_buffer(raw)
    head.count, head.vision = count, int(variant == "vision")
    voters = (Voter * count).from_buffer(raw, ctypes.sizeof(Balance))
    for k, (voter, size, cut) in enumerate(zip(voters, sizes, cuts, strict=True)):
        voter.delta, voter.score, voter.weight, voter.floor = k, count + k, weights[k], floors[k]
        voter.low, voter.high, voter.width = size.low, size.high, (size.high - size.low) or math.inf
        voter.least, voter.most, voter.range = cut.low, cut.high, (cut.high - cut.low) or math.inf
    area = torch.zeros(2 * count + 1, TILE)
    for k, delta in enumerate(deltas):
        area[k] = delta
    ops = (Op * 2)(
        Op(code=Code.SCORES, data=ctypes.addressof(head)),
        Op(code=Code.BALANCED, to=2 * count, data=ctypes.addressof(head)),
    )
    assert area.stride(0) * 4 == REGISTER
    assert machine.run(ops, 2, (ctypes.c_void_p * 1)(), 0, 0, TILE, area.data_ptr()) == 0
    return list(area[count : 2 * count]), area[2 * count]


def cuts_of(scores: list[Tensor], ratio: float) -> list[Span]:
    return [Span(float(s.sort().values[int((1 - ratio) * (TILE - 1))]), float(s.max())) for s in scores]


@pytest.mark.parametrize("variant", ["reference", "vision"])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("scale", [1e-18, 3e-4, 1.0, 1e6])
def test_scores_below_the_floor_alone_are_left_out(
    machine: Kernels, variant: Variant, count: int, scale: float
) -> None:
    for seed in range(4):
        deltas = changes(count, scale, seed)
        sizes = spans(deltas, 0.01, (0.99, 0.5)[seed % 2])
        expected = balanced_scores(deltas, sizes, variant)
        cuts = cuts_of(expected, 0.1)
        floors = [cut.low for cut in cuts]
        told, _ = computed(machine, deltas, sizes, floors, variant, [1.0] * count, cuts)
        for own, right, floor in zip(told, expected, floors, strict=True):
            untold = (own == UNTOLD) & (right != UNTOLD)
            assert torch.equal(own[~untold].view(torch.int32), right[~untold].view(torch.int32))
            assert not untold.any() or float(right[untold].max()) < floor


def test_most_scores_below_the_floor_are_left_out(machine: Kernels) -> None:
    deltas = changes(3, 3e-4, 0)
    sizes = spans(deltas, 0.01, 0.99)
    cuts = cuts_of(balanced_scores(deltas, sizes, "reference"), 0.1)
    told, _ = computed(machine, deltas, sizes, [cut.low for cut in cuts], "reference", [1.0] * 3, cuts)
    assert all(float((own == UNTOLD).float().mean()) > 0.85 for own in told)


def test_an_infinite_floor_leaves_all_out_and_none_leaves_nothing_out(machine: Kernels) -> None:
    deltas = changes(2, 1e-3, 1)
    sizes = spans(deltas, 0.01, 0.99)
    expected = balanced_scores(deltas, sizes, "reference")
    told, _ = computed(machine, deltas, sizes, [math.inf, 0.0], "reference", [1.0] * 2, sizes)
    assert bool((told[0] == UNTOLD).all())
    assert torch.equal(told[1], expected[1])


@pytest.mark.parametrize("variant", ["reference", "vision"])
@pytest.mark.parametrize("weight", [1.2, -0.5, 0.0, 1e38])
def test_what_is_combined_does_not_depend_on_floors(
    machine: Kernels, variant: Variant, weight: float
) -> None:
    for ratio in (0.05, 0.5, 1.0):
        deltas = changes(3, 3e-4 if weight < 2 else 1.0, 7)
        sizes = spans(deltas, 0.01, 0.99)
        cuts = cuts_of(balanced_scores(deltas, sizes, variant), ratio)
        weights = [weight, 0.7, 1.0]
        summary = {"sizes": sizes, "scores": cuts}
        expected = pcb.function(deltas, weight=weights, variant=variant, summary=summary)
        for floors in ([cut.low for cut in cuts], [0.0] * 3):
            _, made = computed(machine, deltas, sizes, floors, variant, weights, cuts)
            assert torch.equal(made.view(torch.int32), expected.view(torch.int32))
