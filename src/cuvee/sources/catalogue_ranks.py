"""Which magnitude stands at some places of a tensor, or a model, when all are sorted: as far as a catalogue keeps it.

Owns the places (around every per mille, where the shares lie that people ask for), and how what stands there follows
from two counts: of bins of 512 magnitudes, and of the magnitudes in the bins that hold a place. Must not read weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import numpy
from cuvee.sources import catalogue_store as store
from cuvee.sources.catalogue_store import Broken, Row

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

SHARES = 1000
_AROUND = (-1, 0, 1)  # rules round shares up, down, and ask for one more
FINE, LEAST, BINS = 9, (127 - 40) << 14, 48 << 14  # bits of a key below its bin; the first bin; how many
BINNED = BINS + 3  # with those of 0, of what is smaller and of what is larger
IN_BIN = 1 << FINE


@dataclass(frozen=True, slots=True)
class Ranks:
    """Some magnitudes (bits of float32, ascending), how many of all are less than each, and how many equal to it.

    Of several tensors, also by name: how many of each are equal.
    """

    keys: Array
    less: Array
    equal: Array
    tied: Mapping[str, Array] | None = None

    def at(self, place: int) -> tuple[int, int, int] | None:
        """What stands at a place: bits, how many are less, how many equal; None where that is not known."""
        number = int(numpy.searchsorted(self.less, place, "right")) - 1
        if number < 0 or place >= self.less[number] + self.equal[number]:
            return None
        return int(self.keys[number]), int(self.less[number]), int(self.equal[number])

    def equal_to(self, bits: int, name: str | None = None) -> int:
        """How many magnitudes (of the tensor of a name, where there are several) have these bits, which are known."""
        number = int(numpy.searchsorted(self.keys, bits))
        if number == len(self.keys) or self.keys[number] != bits:
            raise LookupError(bits)
        counts = self.equal if name is None or self.tied is None else self.tied[name]
        return int(counts[number])

    @property
    def nbytes(self) -> int:
        """Their memory."""
        own = (self.keys, self.less, self.equal, *(self.tied or {}).values())
        return sum(array.nbytes for array in own)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The bins that hold a place: their numbers, how many magnitudes lie below each, and how many are 0."""

    bins: Array
    less: Array
    zeros: int

    def rows(self) -> Array:
        """Of each bin its number among the wanted, or -1."""
        found = numpy.full(BINNED, -1, numpy.int16)
        found[self.bins] = numpy.arange(len(self.bins))
        return found


def places(total: int) -> Array:
    """The places among so many sorted magnitudes that are kept, ascending."""
    shares = [share * total // SHARES for share in range(SHARES + 1)]  # may exceed 64 bits on the way
    counts = numpy.array(shares, numpy.int64)[:, None] + numpy.array(_AROUND)
    found: Array = numpy.unique(numpy.clip(total - counts, 0, max(total - 1, 0)))
    return found


def bins_of(keys: Array) -> Array:
    """Where magnitudes are counted: 0 for 0, 1 for what is too small, the last for what is too large."""
    inside = numpy.clip((keys >> FINE).astype(numpy.int64) - (LEAST - 2), 1, BINNED - 1)
    found: Array = numpy.where(keys == 0, 0, inside)
    return found


def wanted(counts: Array) -> Wanted:
    """The bins of the kept places, given how many magnitudes each bin holds."""
    ends = numpy.cumsum(counts, dtype=numpy.int64)
    if not ends[-1]:
        return Wanted(numpy.zeros(0, numpy.int64), numpy.zeros(0, numpy.int64), 0)
    held = numpy.unique(numpy.searchsorted(ends, places(int(ends[-1])), "right"))
    held = held[(held > 1) & (held < BINNED - 1)]
    return Wanted(held, ends[held - 1], int(counts[0]))


def found(asked: Wanted, counts: Array, total: int) -> Ranks:
    """What stands at the kept places, given how often each magnitude of the wanted bins is there (bins by 512)."""
    there = numpy.flatnonzero(counts)
    many, row = counts.ravel()[there].astype(numpy.int64), there >> FINE
    before = numpy.cumsum(many) - many
    firsts = numpy.append(before, 0)[numpy.searchsorted(row, numpy.arange(len(counts)))]
    keys = (((asked.bins[row] + (LEAST - 2)) << FINE) | (there & (IN_BIN - 1))).astype(numpy.uint32)
    rows: list[Array] = [keys, (asked.less - firsts)[row] + before, many]
    if asked.zeros:
        first: list[Array] = [numpy.zeros(1, t) for t in (numpy.uint32, numpy.int64)]
        first.append(numpy.array([asked.zeros]))
        rows = [numpy.concatenate(parts) for parts in zip(first, rows, strict=True)]
    where, (_, before, equal) = places(total), rows
    number = numpy.searchsorted(before, where, "right") - 1
    inside = (number >= 0) & (where < numpy.append(before + equal, 0)[number])
    kept = numpy.unique(number[inside])
    return Ranks(rows[0][kept], before[kept], equal[kept])


def counted(keys: Array, ranks: Ranks, counts: Array) -> Array:
    """How often each magnitude of `ranks` is there, where magnitudes (ascending, each once) and counts are known."""
    if not len(keys):
        return numpy.zeros(len(ranks.keys), numpy.int64)
    number = numpy.searchsorted(keys, ranks.keys)
    number[number == len(keys)] = 0
    there: Array = numpy.where(keys[number] == ranks.keys, counts[number], 0)
    return there


def rows_of(found: Sequence[Ranks | None]) -> Iterator[Row]:
    """Ranks as arrays of an archive, one after the other; of each how many."""
    none = Ranks(numpy.zeros(0, numpy.uint32), numpy.zeros(0, numpy.int64), numpy.zeros(0, numpy.int64))
    every = [none if ranks is None else ranks for ranks in found]
    yield "ranked", store.counts_of(-1 if ranks is None else len(ranks.keys) for ranks in found)
    yield "rank_keys", _joined(ranks.keys for ranks in every)
    yield "rank_equal", _narrow(_joined(ranks.equal for ranks in every))
    gaps = (numpy.diff(r.less, prepend=0) - numpy.r_[0, r.equal[:-1]][: len(r.less)] for r in every)
    yield "rank_gaps", _narrow(_joined(gaps))


def ranks_of(held: Mapping[str, Array], count: int) -> list[Ranks | None]:
    """What `rows_of` made of so many; Broken where that cannot be."""
    many = held["ranked"]
    ends = numpy.cumsum(numpy.maximum(many, 0))
    parts = held["rank_keys"], held["rank_equal"].astype(numpy.int64), held["rank_gaps"].astype(numpy.int64)
    if len(many) != count or any(len(part) != (ends[-1] if count else 0) for part in parts):
        raise Broken
    rows = zip(*(numpy.split(part, ends[:-1]) for part in parts), strict=True)
    told = []
    for own, (keys, equal, gaps) in zip(many, rows, strict=False):
        less = numpy.cumsum(gaps + equal) - equal
        told.append(None if own < 0 else Ranks(keys, less, equal))
    return told


def whole_rows(ranks: Ranks) -> Iterator[Row]:
    """Ranks of several tensors as arrays of an archive; what they have of each is mostly nothing."""
    tied = ranks.tied or {}
    yield "whole_names", numpy.array(list(tied), dtype=numpy.str_)
    yield from ((f"whole_{key}", array) for key, array in rows_of([ranks]))
    every = numpy.stack(list(tied.values())) if tied else numpy.zeros((0, len(ranks.keys)), numpy.int64)
    tensors, keys = numpy.nonzero(every)
    for key, array in (("tensors", tensors), ("keys", keys), ("counts", every[tensors, keys])):
        yield f"whole_tied_{key}", _narrow(array)


def whole_of(held: Mapping[str, Array]) -> Ranks | None:
    """What `whole_rows` made; None where there is none, Broken where that cannot be."""
    if "whole_names" not in held:
        return None
    own = {key.removeprefix("whole_"): array for key, array in held.items() if key.startswith("whole_")}
    (ranks,) = ranks_of(own, 1)
    names = own["names"].tolist()
    if ranks is None:
        raise Broken
    every = numpy.zeros((len(names), len(ranks.keys)), numpy.int64)
    every[own["tied_tensors"], own["tied_keys"]] = own["tied_counts"]
    return Ranks(ranks.keys, ranks.less, ranks.equal, dict(zip(names, every, strict=True)))


def _joined(parts: Iterable[Array]) -> Array:
    every = list(parts)
    return numpy.concatenate(every) if every else numpy.zeros(0, numpy.int64)


def _narrow(array: Array) -> Array:
    """Numbers from 0 on in as few bytes as they need."""
    return array.astype(numpy.min_scalar_type(int(array.max(initial=0))))
