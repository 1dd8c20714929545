"""Magnitudes at the kept places, of tensors in which too many are different to be counted one by one, and of the model.

Owns the passes: bins are counted while tensors are looked at for the first time, magnitudes in the bins that hold a
place in a second pass, and in a third one what each tensor has of those of the model. Must not know where catalogues
are kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import numpy
from cuvee.core.tensors import TensorMeta
from cuvee.sources import catalogue_ranks as ranks
from cuvee.sources.catalogue import Change, Sketch
from cuvee.sources.catalogue_bins import counter
from cuvee.sources.catalogue_look import values
from cuvee.sources.catalogue_ranks import BINNED, IN_BIN, Ranks, Wanted

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

Pieces = Callable[
    [str, int], "Iterable[tuple[Array, Array]]"
]  # bits of the base and of an expert, by its place
Mapped = Callable[[Callable[[str], None], Iterable[str]], object]  # calls with each name, in any threads
_INFINITE = 0x7F800000
_COUNTED = 32  # bits of a count


class Bins:
    """How many magnitudes of a tensor lie in each bin. Memory: 3 MB."""

    def __init__(self, dtype: str) -> None:
        self.counts = numpy.zeros(BINNED, numpy.uint32)
        self._dtype, self._counter = dtype, counter()

    def add(self, base: Array, tuned: Array) -> None:
        """Count elements, as bits."""
        self._counter.binned(values(base, self._dtype), values(tuned, self._dtype), self.counts)


@dataclass(slots=True)
class _Whole:
    """What is known of the model that an expert is: the counts of its bins, and then of magnitudes in some of them."""

    bins: Array
    asked: Wanted | None = None
    counts: Array | None = None
    ranks: Ranks | None = None


class Ranking:
    """The kept places of some experts (by their place among them). Thread-safe.

    Memory: for each expert about 15 MB, and as much for each thread.
    """

    def __init__(self, metas: Mapping[str, TensorMeta], pieces: Pieces) -> None:
        self._metas, self._pieces = metas, pieces
        self._asked: dict[str, dict[int, Wanted]] = {}
        self._wholes: dict[int, _Whole] = {}
        self._lost: set[int] = set()  # experts that have a tensor of which bins are not counted
        self._guard = threading.Lock()

    def take(self, name: str, place: int, change: Change, bins: Bins | None) -> None:
        """A tensor whose magnitudes were given up; its bins, where they were counted on the way."""
        meta = self._metas[name]
        if meta.numel >> _COUNTED or change.largest.max(initial=0) >= _INFINITE:
            self._lost.add(place)
            return
        if bins is None:
            bins = Bins(meta.dtype.name)
            for base, tuned in self._pieces(name, place):
                bins.add(base, tuned)
        asked = ranks.wanted(bins.counts)
        with self._guard:
            self._asked.setdefault(name, {})[place] = asked
            whole = self._wholes.setdefault(place, _Whole(numpy.zeros(BINNED, numpy.int64)))
            whole.bins += bins.counts

    def end(self, sketches: Mapping[str, Sketch], mapped: Mapped) -> dict[int, Ranks]:
        """Note in the sketches what stands at the places of their tensors; returns what does in whole experts."""
        wholes = {place: whole for place, whole in self._wholes.items() if place not in self._lost}
        for place, whole in wholes.items():
            _begin(whole, _counted(sketches, place))

        def second(name: str) -> None:
            for place, asked in self._asked[name].items():
                whole = wholes.get(place)
                every = [asked] if whole is None or whole.asked is None else [asked, whole.asked]
                counts = self._refined(name, place, [(one.rows(), len(one.bins)) for one in every])
                change = sketches[name].changes[place]
                if change is not None:
                    found = ranks.found(asked, counts[0], self._metas[name].numel)
                    sketches[name].changes[place] = replace(change, ranks=found)
                if whole is not None and whole.counts is not None:
                    with self._guard:
                        whole.counts += counts[1]

        mapped(second, self._asked)
        for whole in wholes.values():
            _finish(whole)
        tied = {place: _tied(sketches, place, whole) for place, whole in wholes.items()}

        def third(name: str) -> None:
            for place in self._asked[name].keys() & wholes.keys():
                tied[place][name] = self._equal(name, place, wholes[place])

        mapped(third, self._asked)
        found = {place: whole.ranks for place, whole in wholes.items()}
        return {place: replace(own, tied=tied[place]) for place, own in found.items() if own is not None}

    def _refined(self, name: str, place: int, asked: Sequence[tuple[Array, int]]) -> list[Array]:
        """How often each magnitude of the bins is there that have one of so many rows, for each that asks."""
        counts = [numpy.zeros((many, IN_BIN), numpy.uint32) for _, many in asked]
        dtype, machine = self._metas[name].dtype.name, counter()
        for bits in self._pieces(name, place):
            base, tuned = (values(part, dtype) for part in bits)
            for (rows, _), own in zip(asked, counts, strict=True):
                machine.refined(base, tuned, rows, own)
        return counts

    def _equal(self, name: str, place: int, whole: _Whole) -> Array:
        """How often a tensor has each of the model's magnitudes."""
        if whole.ranks is None or whole.asked is None:
            return numpy.zeros(0, numpy.int64)
        bins = ranks.bins_of(whole.ranks.keys)
        rows = numpy.full(BINNED, -1, numpy.int16)
        held = numpy.unique(bins[bins > 0])
        rows[held] = numpy.arange(len(held))
        (counts,) = self._refined(name, place, [(rows, len(held))])
        zeros = self._asked[name][place].zeros
        own = counts[rows[bins], whole.ranks.keys & (IN_BIN - 1)] if len(held) else zeros
        found: Array = numpy.where(bins > 0, own, zeros)
        return found


def _counted(sketches: Mapping[str, Sketch], place: int) -> dict[str, tuple[Array, Array]]:
    """The magnitudes of an expert's tensors that were not given up, by name."""
    changes = {name: sketch.changes[place] for name, sketch in sketches.items()}
    return {
        name: (change.keys, change.counts)
        for name, change in changes.items()
        if change is not None and change.keys is not None and change.counts is not None
    }


def _begin(whole: _Whole, others: Mapping[str, tuple[Array, Array]]) -> None:
    """Choose the bins that hold the model's places; what is counted already is taken in."""
    for keys, counts in others.values():
        numpy.add.at(whole.bins, ranks.bins_of(keys), counts)
    whole.asked = ranks.wanted(whole.bins)
    every = whole.asked.rows()
    whole.counts = numpy.zeros((len(whole.asked.bins), IN_BIN), numpy.int64)
    for keys, counts in others.values():
        rows = every[ranks.bins_of(keys)].astype(numpy.int64)
        there = rows >= 0
        numpy.add.at(whole.counts, (rows[there], keys[there] & (IN_BIN - 1)), counts[there])


def _finish(whole: _Whole) -> None:
    if whole.asked is not None and whole.counts is not None:
        whole.ranks = ranks.found(whole.asked, whole.counts, int(whole.bins.sum()))
        whole.counts = None


def _tied(sketches: Mapping[str, Sketch], place: int, whole: _Whole) -> dict[str, Array]:
    """Of all tensors of an expert, in their order, what is known already of how often they have the model's."""
    found = {}
    for name, sketch in sketches.items():
        change = sketch.changes[place]
        if change is None or whole.ranks is None:
            continue
        found[name] = (
            ranks.counted(change.keys, whole.ranks, change.counts)
            if change.keys is not None and change.counts is not None
            else numpy.zeros(len(whole.ranks.keys), numpy.int64)
        )
    return found
