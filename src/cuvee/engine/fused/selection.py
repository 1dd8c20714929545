"""Exact selection by magnitude: which bits a threshold has, and how many of those equal to it each tensor keeps.

A sample of tiles tells between which magnitudes a threshold lies, one pass counts those below and gathers those in
between, and what was gathered is searched; results never depend on the sample. Where the sample misleads, or too much
would be gathered, magnitudes are counted digit by digit instead, in a pass for each 16 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cuvee.engine.fused.builder import Unfusable
from cuvee.engine.fused.chosen import ALL, Chosen
from cuvee.engine.kernels.library import Kernels
from cuvee.engine.kernels.operations import TILE
from cuvee.methods.summaries import Ties

Kind = Literal["high", "low", "tied", "pick", "norms", "gram", "signs", "energies", "movers", "totals"]


@dataclass(frozen=True, slots=True)
class Probe:
    """One pass: what is gathered, for which leading digits (`low`), whole bits (`tied`), or between which (`pick`).

    `every`: only one of so many tiles is looked at. `by`: what is judged, where a stage judges several things: the
    `size` of the input of this number, or its `score`. `ask`: what is summed where a stage's own summary
    says so (`asking.Question`).
    """

    kind: Kind
    bits: tuple[int, ...] = ()
    windows: tuple[tuple[int, int], ...] = ()
    every: int = 1
    by: tuple[Literal["size", "score"], int] | None = None
    ask: Any = None


# `high`, `low`: one table for each digit, all tensors counted together; the others: an entry for each tensor, with a
# count for each of `bits`, a `Window` for each of `windows`, or lines of float64 sums for each figure.
Found = list[Any]
Gathering = Generator[Probe, Found, Any]
Several = Generator[tuple[Probe, ...], list[Found], Any]  # probes that share a pass, and what each found
Goal = Callable[[int], int]  # a position among all magnitudes when sorted, given how many are 0

_SMALL = 1 << 24  # elements: up to here a sample is one in 48, above one in 128
_MOST = 4_000_000  # elements of a sample, about: there is room for a few more of one tensor (`probes`)
_DEVIATIONS = 6  # of the sample's threshold, for independent magnitudes
_UNEVEN, _UNEVEN_LARGE = 0.03, 0.005  # allowed on top of that for rows and tensors that differ
_EVEN_LEAST = 0.002  # where it is known how tiles differ
_RUNS = 32  # runs of keys at least, for that
_EVEN = 0.02  # of that allowance, near the smallest and the largest
_HELD = 8 << 20  # magnitudes of one figure that may be gathered
_ALL = (0, 0x7FFFFFFF)  # every magnitude but 0 lies between
_EVERY = (-1, 0x7FFFFFFF)  # and 0, too
_ZEROS = (0, 1)  # none does; 0 is counted


@dataclass(frozen=True, slots=True)
class Window:
    """What was found of magnitudes and `bounds`: how many are less than the lower one, equal to it, equal to the
    upper one, and the bits of those in between (None where they were too many)."""

    bounds: tuple[int, int]
    less: int
    low: int
    high: int
    keys: Any

    def equal(self, bits: int, kernels: Kernels) -> int:
        """How many magnitudes have these bits, which are within the bounds."""
        ends = dict(zip(self.bounds, (self.low, self.high), strict=True))
        return ends[bits] if bits in ends else kernels.equal(self.keys, bits)


@dataclass(frozen=True, slots=True)
class Rank:
    """The bits at a position of all magnitudes when sorted, how many are less, how many equal, and how many each
    tensor has of those equal (None where that is not known)."""

    bits: int
    less: int
    equal: int
    ties: tuple[int, ...] | None


def cuts(keeps: Sequence[int], sizes: Sequence[int], kernels: Kernels, *, ties: Ties = "index") -> Gathering:
    """For each tensor the `Chosen` of each count of largest magnitudes of all; ties as `summaries.top` has them."""
    total = sum(sizes)
    counts = [min(max(count, 0), total) for count in keeps]
    inner = sorted({count for count in counts if 0 < count < total + (ties == "none")})
    goals: list[Goal] = [lambda zeros, count=count: total - count for count in inner]  # type: ignore[misc]
    _, found = yield from ranked(goals, total, kernels)
    ranks = dict(zip(inner, found, strict=True))
    chosen: list[list[Chosen]] = [[] for _ in sizes]
    for count in counts:
        for part, one in zip(
            chosen, (yield from chosen_of(count, ranks.get(count), sizes, ties)), strict=True
        ):
            part.append(one)
    return chosen


def together(figures: Sequence[Gathering]) -> Several:
    """Run figures to their ends, the probes of all in the same passes; returns their values."""
    values: list[Any] = [None] * len(figures)
    asked: dict[int, Probe] = {}

    def step(number: int, found: Found | None) -> None:
        try:
            asked[number] = next(figures[number]) if found is None else figures[number].send(found)
        except StopIteration as end:
            asked.pop(number, None)
            values[number] = end.value

    for number in range(len(figures)):
        step(number, None)
    while asked:
        numbers = sorted(asked)
        found = yield tuple(asked[number] for number in numbers)
        for number, own in zip(numbers, found, strict=True):
            step(number, own)
    return values


def chosen_of(
    count: int, rank: Rank | None, sizes: Sequence[int], ties: Ties
) -> Generator[Probe, Found, list[Chosen]]:
    """The `count` largest of all, tensor by tensor; `rank` is that of the least of them, where not all or none are."""
    total = sum(sizes)
    if rank is None:
        return [Chosen(count, total) for _ in sizes]
    above = total - rank.less - rank.equal
    if ties == "none":
        return [Chosen(above, total, rank.bits) for _ in sizes]
    if ties == "all" or above + rank.equal == count:
        return [Chosen(above + rank.equal, total, rank.bits, ALL) for _ in sizes]
    tied: Sequence[int] = rank.ties or ()
    if rank.ties is None:
        found = (yield Probe("tied", (rank.bits,))) if len(sizes) > 1 else [(rank.equal,)]
        tied = [own for (own,) in found]
    return [Chosen(count, total, rank.bits, quota) for quota in _shared(count - above, tied)]


def _shared(left: int, ties: Sequence[int]) -> Iterator[int]:
    """How many of its ties each tensor keeps, the first tensors first."""
    for count in ties:
        yield min(left, count)
        left -= min(left, count)


def ranked(
    goals: Sequence[Goal], total: int, kernels: Kernels, *, zeros: bool = False
) -> Generator[Probe, Found, tuple[int, list[Rank]]]:
    """How many magnitudes are 0 (found out only where `zeros` says that goals depend on it), and what stands at each
    goal when all are sorted."""
    if not goals:
        return 0, []
    windows = yield from _gathered(goals, total, kernels, zeros)
    if zeros and not windows:
        found = yield Probe("tied", (0,))
        none = sum(tied for (tied,) in found)
    else:
        none = sum(window.low for window in windows[0]) if zeros else 0
    places = [goal(none) for goal in goals]
    ranks: dict[int, Rank] = {}
    for place, held in zip(places, windows[-len(goals) :], strict=False):
        rank = _within(held, place, kernels)
        if rank is not None:
            ranks[place] = rank
    ranks |= yield from _counted([place for place in places if place not in ranks], total, kernels)
    return none, [ranks[place] for place in places]


def _gathered(
    goals: Sequence[Goal], total: int, kernels: Kernels, zeros: bool
) -> Generator[Probe, Found, list[list[Window]]]:
    """For each goal the windows (one for each tensor) that probably hold it; nothing where too much would be held.

    With `zeros` those of 0 come first.
    """
    every = spacing(total)
    sample = yield Probe("pick", windows=(_ALL if every == 1 else _EVERY,), every=every)
    seen = [window for (window,) in sample]
    if every == 1:
        return [seen] * (len(goals) + zeros)
    bounds = _bounds(goals, total, seen, kernels)
    windows = (_ZEROS, *bounds) if zeros else bounds
    if not bounds:
        return []
    found = yield Probe("pick", windows=windows)
    return [[entry[number] for entry in found] for number in range(len(windows))]


def spacing(total: int) -> int:
    """One tile of how many makes a sample."""
    target = min(max(total // 48, 1 << 16), 1 << 18)
    if total > _SMALL:
        target = min(max(total // 128, 1 << 18), _MOST)
    return max(total // target, 1)


def _bounds(
    goals: Sequence[Goal], total: int, seen: list[Window], kernels: Kernels
) -> tuple[tuple[int, int], ...]:
    """Magnitudes of a sample between which each goal lies; nothing where too much lies between them."""
    if any(window.keys is None for window in seen):
        return ()
    keys = kernels.joined([window.keys for window in seen])
    count, zeros = len(keys), kernels.equal(keys, 0)
    shares = [goal(round(zeros / count * total)) / total for goal in goals]
    middles = kernels.selected(keys, count, [round(share * count) for share in shares])
    places: list[int] = []
    held = 0.0
    for goal, share, middle in zip(goals, shares, middles, strict=True):
        half = (
            _half(share, count, total) if middle is None else _likely(keys, share, middle[0], total, kernels)
        )
        half += _moved(goal, keys, zeros, total, kernels)
        held += 2 * half / count * total
        places += [min(int(share * count - half), count - 1), int(share * count + half) + 1]
    ends = kernels.selected(keys, count, places)
    lows = [0 if end is None else end[0] for end in ends[::2]]
    highs = [_ALL[1] if end is None else end[0] for end in ends[1::2]]
    bounds = [(low, max(high, low + 1)) for low, high in zip(lows, highs, strict=True)]
    return tuple(bounds) if held <= _HELD else ()


def gatherable(shares: Iterable[float], total: int) -> bool:
    """Whether the magnitudes may be gathered between which thresholds at these shares of all are looked for, where few
    are 0."""
    count = total // spacing(total)
    return sum(2 * _half(share, count, total) / count * total for share in shares) <= _HELD


def _half(share: float, count: int, total: int) -> float:
    """How many places of a sample of `count` a threshold may be off."""
    spread = max(share * (1 - share), 0.0)
    uneven = (_UNEVEN if total <= _SMALL else _UNEVEN_LARGE) * count
    return _DEVIATIONS * math.sqrt(count * spread) + uneven * min(10 * spread + _EVEN, 1)


def _likely(keys: Any, share: float, key: int, total: int, kernels: Kernels) -> float:
    """How many places of a sample a threshold near a key may be off, from how differently keys lie in its tiles.

    No more than where nothing is known of them.
    """
    count, runs = len(keys), len(keys) // TILE
    most = _half(share, count, total)
    if runs < _RUNS:
        return most
    found, squares = kernels.less(keys, key, TILE)
    varied = max(squares / runs - (found / runs) ** 2, 0.0)
    least = _EVEN_LEAST * count * min(10 * share * (1 - share) + _EVEN, 1)
    return min(_DEVIATIONS * math.sqrt(runs * varied) + least, most)


def _moved(goal: Goal, keys: Any, zeros: int, total: int, kernels: Kernels) -> float:
    """How many places of a sample a goal moves where there are more zeros than it says, by as many as it may be off."""
    if goal(0) == goal(total):
        return 0.0
    count = len(keys)
    off = _likely(keys, zeros / count, 1, total, kernels)
    supposed, most = (min(round(found / count * total), total) for found in (zeros, zeros + off))
    return abs(goal(most) - goal(supposed)) / total * count


def _within(windows: list[Window], place: int, kernels: Kernels) -> Rank | None:
    """What stands at a position, where it lies within the windows (of the same bounds)."""
    if any(window.keys is None for window in windows):
        return None
    low, high = windows[0].bounds
    less, at_low, at_high = (
        sum(counts) for counts in zip(*((w.less, w.low, w.high) for w in windows), strict=True)
    )
    keys = kernels.joined([window.keys for window in windows])

    def ties(bits: int) -> tuple[int, ...]:
        return tuple(window.equal(bits, kernels) for window in windows)

    if not less <= place < less + at_low + len(keys) + at_high:
        return None
    if place < less + at_low:
        return Rank(low, less, at_low, ties(low))
    inner = less + at_low
    found = kernels.select(keys, len(keys), place - inner)
    if found is None:
        return Rank(high, inner + len(keys), at_high, ties(high))
    bits, below, equal = found
    return Rank(bits, inner + below, equal, ties(bits))


def _counted(places: Sequence[int], total: int, kernels: Kernels) -> Generator[Probe, Found, dict[int, Rank]]:
    """What stands at positions, in two passes over the bits."""
    if not places:
        return {}
    (table,) = yield Probe("high")
    tops = {place: _found(kernels, table, place) for place in places}
    digits = tuple(sorted({digit for digit, _, _ in tops.values()}))
    tables = dict(zip(digits, (yield Probe("low", digits)), strict=True))
    ranks = {}
    for place, (digit, less, _) in tops.items():
        bottom, below, equal = _found(kernels, tables[digit], place - less)
        ranks[place] = Rank(digit << 16 | bottom, less + below, equal, None)
    return ranks


def _found(kernels: Kernels, table: Any, goal: int) -> tuple[int, int, int]:
    found = kernels.find(table, goal)
    if found is None:
        raise Unfusable("an input changed between two passes")
    return found
