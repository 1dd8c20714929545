"""Selection among what probes found: any position, any bounds, against a plain sort; and how ties are shared."""

from __future__ import annotations

import ctypes
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuvee.core.dtypes import FLOAT32
from cuvee.core.tensors import TensorMeta
from cuvee.engine.fused import probes, selection
from cuvee.engine.fused.builder import Builder, Unfusable
from cuvee.engine.fused.probes import _SPARE, _Places, probed
from cuvee.engine.fused.selection import Probe, Rank, Window, _within, chosen_of, spacing
from cuvee.engine.kernels import kernels
from cuvee.engine.kernels.operations import TILE, Picked
from cuvee.plan.nodes import Apply, Read

MACHINE = kernels()
pytestmark = pytest.mark.skipif(MACHINE is None, reason="no kernels")


def window(bounds: tuple[int, int], values: list[int]) -> Window:
    low, high = bounds
    inner = [v for v in values if low < v < high]
    counts = sum(v < low for v in values), values.count(low), values.count(high)
    return Window(bounds, *counts, (ctypes.c_uint32 * len(inner))(*inner))


@given(
    st.lists(st.lists(st.integers(0, 12) | st.integers(0, 1 << 31), max_size=30), min_size=1, max_size=3),
    st.integers(0, 12),
    st.integers(1, 12) | st.just(1 << 31),
    st.data(),
)
def test_a_rank_is_what_sorting_says(
    tensors: list[list[int]], low: int, more: int, data: st.DataObject
) -> None:
    assert MACHINE is not None
    whole = sorted(v for tensor in tensors for v in tensor)
    place = data.draw(st.integers(0, max(len(whole) - 1, 0)))
    bounds = (low, low + more)
    rank = _within([window(bounds, tensor) for tensor in tensors], place, MACHINE)
    if not whole or not bounds[0] <= whole[place] <= bounds[1]:
        assert rank is None
        return
    key = whole[place]
    less = sum(v < key for v in whole)
    assert rank == Rank(key, less, whole.count(key), tuple(tensor.count(key) for tensor in tensors))


@given(st.lists(st.integers(0, 40) | st.integers(0, (1 << 32) - 1), min_size=1, max_size=60), st.data())
def test_keys_at_a_place_and_below_a_key(values: list[int], data: st.DataObject) -> None:
    assert MACHINE is not None
    keys = (ctypes.c_uint32 * len(values))(*values)
    place = data.draw(st.integers(0, len(values) - 1))
    key = sorted(values)[place]
    assert MACHINE.select(keys, len(keys), place) == (key, sum(v < key for v in values), values.count(key))
    ends = MACHINE.selected(keys, len(keys), [place, 0, len(keys), -1])
    assert ends == [MACHINE.select(keys, len(keys), place), MACHINE.select(keys, len(keys), 0), None, None]
    length = data.draw(st.integers(1, 9))
    runs = [values[s : s + length] for s in range(0, len(values) - length + 1, length)]
    counts = [sum(v < key for v in run) for run in runs]
    assert MACHINE.less(keys, key, length) == (sum(counts), sum(count**2 for count in counts))


@pytest.mark.parametrize("alone", [True, False])
def test_memory_of_keys_is_used_again_once_nobody_holds_them(alone: bool) -> None:
    def placed(key: int) -> Window:
        place = _Places(5, alone=alone)
        head = Picked.from_address(place.address)
        assert (head.less, head.low, head.high, head.picked) == (0, 0, 0, 0)
        head.less, head.picked = 2, 1
        ctypes.c_uint32.from_address(place.address + ctypes.sizeof(Picked)).value = key
        return place.window((1, 9))

    _SPARE.clear()
    first, second = placed(3), placed(4)
    assert (list(first.keys), list(second.keys)) == ([3], [4])
    del first
    third = placed(5)
    assert (list(second.keys), list(third.keys)) == ([4], [5])
    del second, third
    assert len(_SPARE[(5).bit_length()]) == 1 + alone


@given(st.lists(st.floats(-1e290, 1e290) | st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 1.0, 2.0**-53])))
def test_a_sum_is_rounded_once(values: list[float]) -> None:
    assert MACHINE is not None
    assert MACHINE.total((ctypes.c_double * len(values))(*values)) == math.fsum(values)


@pytest.mark.parametrize("values", [[math.nan], [math.inf, -math.inf], [1.7e308, 1.7e308]])
def test_a_sum_that_is_not_finite_is_told(values: list[float]) -> None:
    assert MACHINE is not None
    with pytest.raises((ValueError, OverflowError)):
        MACHINE.total((ctypes.c_double * len(values))(*values))


@pytest.mark.parametrize(("scale", "zeros", "narrow"), [(1.0, 0, True), (50.0, 0, False), (1.0, 500, True)])
def test_where_a_threshold_may_lie_follows_from_how_tiles_differ(
    scale: float, zeros: int, narrow: bool
) -> None:
    """Zeros, as many of them in each tile, do not widen it."""
    assert MACHINE is not None
    rng = random.Random(0)
    sizes = [
        0.0 if place < zeros else abs(rng.gauss(0, 1)) * (scale if tile % 2 else 1.0)
        for tile in range(64)
        for place in range(TILE)
    ]
    bits = (ctypes.c_uint32 * len(sizes)).from_buffer((ctypes.c_float * len(sizes))(*sizes))
    share = (zeros + 0.7 * (TILE - zeros)) / TILE
    found = MACHINE.select(bits, len(bits), round(share * len(bits)))
    assert found is not None
    most = selection._half(share, len(bits), 1 << 22)
    likely = selection._likely(bits, share, found[0], 1 << 22, MACHINE)
    assert likely <= most
    assert (likely < 0.7 * most) == narrow


def test_a_goal_that_depends_on_zeros_moves_with_how_differently_they_lie() -> None:
    assert MACHINE is not None

    def moved(zeros_of: list[int], goal: selection.Goal) -> float:
        keys = [0 if place < zeros else place for zeros in zeros_of for place in range(1, TILE + 1)]
        bits = (ctypes.c_uint32 * len(keys))(*keys)
        return selection._moved(goal, bits, keys.count(0), 1 << 22, MACHINE)

    def tenth(zeros: int) -> int:
        return (1 << 22) - ((1 << 22) - zeros) // 10

    even, uneven = [300] * 64, [100, 500] * 32
    assert moved(even, tenth) < 0.3 * moved(uneven, tenth)
    assert moved(uneven, lambda zeros: 7) == 0.0


def test_too_many_magnitudes_say_nothing() -> None:
    assert MACHINE is not None
    assert _within([Window((0, 5), 0, 1, 2, None)], 0, MACHINE) is None


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.data())
def test_ties_are_kept_in_the_order_of_tensors(ties: list[int], data: st.DataObject) -> None:
    left = data.draw(st.integers(0, sum(ties)))
    steps = chosen_of(left, Rank(7, 0, sum(ties), tuple(ties)), [sum(ties)] + [0] * (len(ties) - 1), "index")
    with pytest.raises(StopIteration) as end:
        next(steps)
    kept = [one.ties for one in end.value.value]
    if left < sum(ties):
        order = [tensor for tensor, count in enumerate(ties) for _ in range(count)][:left]
        assert kept == [order.count(tensor) for tensor in range(len(ties))]
    else:
        assert kept == [selection.ALL] * len(ties)


def test_samples_grow_with_what_they_stand_for() -> None:
    assert spacing(100_000) == 1
    assert spacing(1 << 22) == 48
    for total in (1 << 29, 131072 * 5120, 1 << 30, 1 << 33):  # all of a sample may be gathered
        tiles = -(-(total // TILE) // spacing(total))
        assert 3_900_000 < tiles * TILE <= probes._MOST


@pytest.mark.parametrize("kind", ["high", "low"])
def test_bins_that_could_overflow_are_left_to_the_generic_path(kind) -> None:
    """A tensor of experts may have more elements than 32 bits count, and all may be equal."""
    read = Read("one", TensorMeta("w", FLOAT32, (1 << 32,)))
    node = Apply("trim", (read,), (("density", 0.5),), "w")
    builder = Builder({})
    builder.expect([read])
    with pytest.raises(Unfusable, match="counts"):
        probed(builder, Probe(kind), node, 0, 1 << 32)
    probed(builder, Probe(kind), node, 0, (1 << 32) - 1)
