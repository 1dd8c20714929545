"""Figures over more than a block: sums, dot products, exact selection by magnitude, order statistics.

Owns the reductions every `summarise` is made of. Each gives the same bits for any cut of the stream into
blocks: sums are taken in float64 over fixed lines by a fixed tree and then added without rounding error;
selection is radix search on integer histograms of float bits (Knuth, TAOCP 5.2.5), never a sort. Must not
know any method.

Lines: 1024 elements counted from the tensor's start in flat blocks (which start at multiples of 1024) and in
tensors handed over whole; pieces of 1024 counted from the row's start in row blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

from cuvee.core.lazy import torch
from cuvee.errors import RunError
from cuvee.methods.contract import Block, Stream
from cuvee.methods.exact_sums import Exact, line_sums

if TYPE_CHECKING:
    from torch import Tensor

G = TypeVar("G")
Ties = Literal["index", "all", "none"]
_DIGIT = 16  # bits of a float decided in each pass of a selection
_BINS = 1 << _DIGIT
_WIDE = 8  # bytes of a key of float64


@runtime_checkable
class Answering(Protocol):
    """A stream that finds sums by itself, the same to the bit, where whoever made it has a faster way."""

    def totals_by(
        self, figures: Callable[[Block], list[Any]], key: Callable[[Block], Any]
    ) -> dict[Any, list[float]]:
        """As the function of this name."""
        ...


def totals(stream: Stream, figures: Callable[[Block], list[Tensor]]) -> list[float]:
    """The sum of each elementwise figure over the whole stream, in float64.

    `figures` returns, for a block, tensors shaped like the block's own, or one value for each row of a row
    block. An empty stream gives an empty list.
    """
    return totals_by(stream, figures, lambda block: None).get(None, [])


def totals_by(
    stream: Stream, figures: Callable[[Block], list[Tensor]], key: Callable[[Block], G]
) -> dict[G, list[float]]:
    """As `totals`, apart for each group of blocks that `key` names, in the order of first mention."""
    if isinstance(stream, Answering):
        return stream.totals_by(figures, key)
    sums: dict[G, list[Exact]] = {}
    with torch.no_grad():
        for block in stream.blocks():
            found = figures(block)
            own = sums.setdefault(key(block), [Exact() for _ in found])
            for total, figure in zip(own, found, strict=True):
                total.add(line_sums(figure, by_row=block.tensors[0].dim() == 2))
    return {group: [total.value() for total in own] for group, own in sums.items()}


def gram(stream: Stream) -> list[list[float]]:
    """The matrix of dot products of the inputs, products and sums in float64: `gram[i][j] = Σ xᵢ·xⱼ`."""
    count = stream.inputs
    pairs = [(i, j) for i in range(count) for j in range(i, count)]

    def products(block: Block) -> list[Tensor]:
        wide = [tensor.double() for tensor in block.tensors]
        return [wide[i] * wide[j] for i, j in pairs]

    sums = dict(zip(pairs, totals(stream, products), strict=False))
    return [[sums.get((min(i, j), max(i, j)), 0.0) for j in range(count)] for i in range(count)]


def magnitude_of(number: int) -> Callable[[Block], Tensor]:
    """The magnitude of one of the inputs, for `top` and the order statistics."""
    return lambda block: block.tensors[number].abs()


@dataclass(frozen=True, slots=True)
class Cut:
    """The `kept` largest of `total` magnitudes: all whose bits exceed `bits`, and of those equal to it the
    ones that lie before `end` (tensor number, element index); `end` is None where all of them are kept.

    `wide`: the bits are those of float64, as in a stream that has one tensor of it.
    """

    kept: int
    total: int
    bits: int
    end: tuple[int, int] | None
    wide: bool = False

    def mask(self, magnitude: Tensor, block: Block) -> Tensor:
        """Which elements of a block are among the kept, shaped like `magnitude`; any cut gives the same
        answer.
        """
        if self.kept <= 0 or self.kept >= self.total:
            return torch.full_like(magnitude, self.kept > 0, dtype=torch.bool)
        keys = _magnitude_keys(magnitude, self.wide)
        if self.end is None:
            return keys >= self.bits
        number, index = self.end
        first, last = block.start, block.start + magnitude.numel()
        if block.number < number or (block.number == number and last <= index):
            return keys >= self.bits
        if block.number > number or first >= index:
            return keys > self.bits
        place = torch.arange(first, last, device=keys.device).reshape(keys.shape)
        return (keys > self.bits) | ((keys == self.bits) & (place < index))


def top(
    stream: Stream,
    magnitude: Callable[[Block], Tensor],
    keep: int | Callable[[int], int],
    *,
    ties: Ties = "index",
) -> Cut:
    """The exact selection of the `keep` largest non-negative magnitudes of the stream.

    `keep` is a count, or a function from the number of elements to one; it is brought into 0 … n. Equal
    magnitudes at the threshold are kept in index order (tensor number, then element) until the count is
    reached; with `ties="all"` all of them, with `ties="none"` none, nor the `keep`-th itself. NaN counts as
    largest. Two passes for float32 and narrower, four for float64, and one more where only some of several
    equal magnitudes are kept.
    """
    return tops(stream, magnitude, [keep], ties=ties)[0]


def tops(
    stream: Stream,
    magnitude: Callable[[Block], Tensor],
    keeps: Sequence[int | Callable[[int], int]],
    *,
    ties: Ties = "index",
) -> list[Cut]:
    """Several selections of one magnitude (see `top`) in shared passes; each contains the smaller ones."""
    total = sum(stream.sizes)
    counts = [min(max(keep(total) if callable(keep) else keep, 0), total) for keep in keeps]
    inner = [count for count in counts if 0 < count < total + (ties == "none")]

    def keys(block: Block, wide: bool) -> list[Tensor]:
        return [_magnitude_keys(magnitude(block), wide)]

    with torch.no_grad():
        ranked, wide = _select(stream, keys, [total - count for count in inner])
        found = dict(zip(inner, ranked[0] if inner else [], strict=True))
        cuts = []
        for count in counts:
            if count not in found:
                cuts.append(Cut(count, total, 0, None))
                continue
            rank = found[count]
            above = total - rank.less - rank.equal
            if ties != "index":
                kept = above + rank.equal if ties == "all" else above
                cuts.append(Cut(kept, total, rank.key + (ties == "none"), None, wide))
            else:
                whole = above + rank.equal == count
                end = None if whole else _end(stream, lambda b: keys(b, wide)[0], rank.key, count - above)
                cuts.append(Cut(count, total, rank.key, end, wide))
    return cuts


def order_statistics(stream: Stream, value: Callable[[Block], Tensor], ranks: Sequence[int]) -> list[float]:
    """For each rank r (from 0) the value that stands at position r when all are sorted ascending; NaN sorts
    last.

    Exact; −0 counts as less than 0. Ranks outside 0 … n − 1 are an error of the caller (IndexError).
    """
    return order_statistics_each(stream, lambda block: [value(block)], ranks)[0] if ranks else []


def order_statistics_each(
    stream: Stream, values: Callable[[Block], list[Tensor]], ranks: Sequence[int]
) -> list[list[float]]:
    """As `order_statistics`, of several figures in shared passes: for each figure the values at all ranks."""
    total = sum(stream.sizes)
    if any(not 0 <= rank < total for rank in ranks):
        raise IndexError(f"ranks {list(ranks)} of {total} values")

    def keys(block: Block, wide: bool) -> list[Tensor]:
        return [_ordered_keys(torch.where(value == value, value, math.nan), wide) for value in values(block)]

    with torch.no_grad():
        found, wide = _select(stream, keys, ranks)
    return [[_value_of(rank.key, wide) for rank in own] for own in found]


@dataclass(frozen=True, slots=True)
class _Rank:
    """The key at a rank, how many keys are less, and how many equal it."""

    key: int
    less: int
    equal: int


def _select(
    stream: Stream, keys: Callable[[Block, bool], list[Tensor]], ranks: Sequence[int], wide: bool = False
) -> tuple[list[list[_Rank]], bool]:
    """Radix search: each pass counts, among the keys that share a rank's leading digits, the next digit.

    For each figure the keys at these ranks, and whether keys are of 64 bits: where one tensor is float64, those of the
    others are too, and a first pass that met narrower ones before it is taken again.
    """
    found: list[list[_Rank]] = []
    shift = width = 0
    while ranks and (width == 0 or shift > 0):
        counts: list[dict[int, Tensor]] = []
        for block in stream.blocks():
            every = [key.reshape(-1) for key in keys(block, wide)]
            if not wide and every[0].element_size() == _WIDE:
                if width:
                    return _select(stream, keys, ranks, wide=True)
                wide = True
            if not width:
                width = shift = 8 * every[0].element_size()
                found = [[_Rank(0, 0, 0)] * len(ranks) for _ in every]
            counts = counts or [{} for _ in every]
            for key, own, known in zip(every, counts, found, strict=True):
                _tally(own, key, {rank.key for rank in known}, shift, first=shift == width)
        found = [
            [_narrow(rank, goal, own, first=shift == width) for rank, goal in zip(known, ranks, strict=True)]
            for known, own in zip(found, counts, strict=True)
        ]
        shift -= _DIGIT
    return found, wide


def _tally(counts: dict[int, Tensor], key: Tensor, prefixes: set[int], shift: int, *, first: bool) -> None:
    """Count the digit below `shift` of the keys with each of these leading digits."""
    if first:
        _count(counts, 0, (key >> (shift - _DIGIT)) + (_BINS >> 1))
        return
    for prefix in prefixes:
        _count(counts, prefix, (key[(key >> shift) == prefix] >> (shift - _DIGIT)) & (_BINS - 1))


def _count(counts: dict[int, Tensor], prefix: int, digits: Tensor) -> None:
    histogram = torch.bincount(digits, minlength=_BINS)
    counts[prefix] = counts[prefix] + histogram if prefix in counts else histogram


def _narrow(rank: _Rank, goal: int, counts: dict[int, Tensor], *, first: bool) -> _Rank:
    """The rank with one more digit of its key decided."""
    histogram = counts[0 if first else rank.key]
    upto = histogram.cumsum(0)
    if int(upto[-1]) <= goal - rank.less:
        raise _changed()
    digit = int(torch.searchsorted(upto, goal - rank.less, right=True))
    equal = int(histogram[digit])
    less = rank.less + int(upto[digit]) - equal
    return _Rank(digit - (_BINS >> 1) if first else (rank.key << _DIGIT) | digit, less, equal)


def _end(stream: Stream, keys: Callable[[Block], Tensor], bits: int, quota: int) -> tuple[int, int]:
    """Where the first magnitude equal to `bits` stands that is not kept: the one after `quota` of them."""
    for block in stream.blocks():
        ties = (keys(block).reshape(-1) == bits).nonzero().reshape(-1)
        if ties.numel() > quota:
            return block.number, block.start + int(ties[quota])
        quota -= ties.numel()
    raise _changed()


def _changed() -> RunError:
    return RunError("CV-E072", "an input changed between two passes over it")


def _magnitude_keys(magnitude: Tensor, wide: bool) -> Tensor:
    """Integers in the order of non-negative floats; a NaN loses its sign, so that it is the largest."""
    return _ordered_keys(magnitude.detach().abs(), wide)


def _ordered_keys(values: Tensor, wide: bool) -> Tensor:
    """Signed integers in the order of the floats: the bits themselves, negative numbers mirrored.

    64 bits for float64, and for all where `wide`; else 32.
    """
    values = values.double() if wide else values
    if values.dtype == torch.float64:
        bits = values.contiguous().view(torch.int64)
        return bits ^ ((bits >> 63) & 0x7FFF_FFFF_FFFF_FFFF)
    bits = values.float().contiguous().view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFF_FFFF)


def _value_of(key: int, wide: bool) -> float:
    """The float whose ordered key this is (the mirror is its own inverse)."""
    integer, real = (torch.int64, torch.float64) if wide else (torch.int32, torch.float32)
    mirror = (1 << (63 if wide else 31)) - 1
    return float(torch.tensor([key ^ mirror if key < 0 else key], dtype=integer).view(real))
