"""What a look at a base and its experts tells of every block and tensor, and where in the cache it is kept.

Of every source: a digest of each block of a MiB. Of every expert and tensor that it shares with the base: the size of
its change, block by block, and how often each magnitude stands in it, so that thresholds are known exactly. Of all
experts together: the products <δ_i, δ_j>, from which the error of leaving blocks out follows. Kept under what the
files are right now (size, times, inode), so that a file that was written to has none. Must not know plans.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cuvee.core import cache
from cuvee.core.digests import bytes_digest, canonical_json
from cuvee.core.lazy import numpy
from cuvee.core.limits import MIB
from cuvee.core.names import printable
from cuvee.core.tensors import TensorMeta
from cuvee.errors import SourceError, Where
from cuvee.sources import catalogue_ranks as by_rank
from cuvee.sources import catalogue_store as store
from cuvee.sources.catalogue_ranks import Ranks
from cuvee.sources.catalogue_store import Broken, Row
from cuvee.sources.source import Source, unfetched, weight_files

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

BLOCK = MIB  # bytes of a tensor
DIGEST = 16  # bytes of a block's digest
_VERSION = 6


@dataclass(frozen=True, slots=True)
class Change:
    """What one expert changes in one tensor: by block the squared norm (NaN where not finite), the bits of the largest
    float32 magnitude and the number of elements that differ; for the tensor every magnitude (bits of float32,
    ascending) with its count, or None for both where there are too many different ones, of which some may be known by
    their rank then.
    """

    energy: Array
    largest: Array
    moved: Array
    keys: Array | None = None
    counts: Array | None = None
    ranks: Ranks | None = None


@dataclass(frozen=True, slots=True)
class Sketch:
    """One tensor: `same` (experts, blocks), `gram` (blocks, experts, experts) in float64, and of the base's blocks the
    squared norm and the largest magnitude.

    A product is NaN where an expert lacks the tensor or a value is not finite.
    """

    same: Array
    gram: Array
    ground: Array
    peak: Array
    changes: list[Change | None]  # by expert


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Sketches by tensor; experts stand in the order they were given in."""

    tensors: Mapping[str, Sketch]


@dataclass(frozen=True, slots=True)
class Found:
    """What a pass found: sketches by tensor, digests of blocks for each source (the base first), and how magnitudes of
    an expert (by its place among the experts) are distributed in a tensor. Where there is no base, no sketches.

    `complete`: of every tensor that can be compared. `wholes`: by the place of an expert, magnitudes by their rank in
    all of it.
    """

    sketches: Mapping[str, Sketch]
    digests: Sequence[Mapping[str, Array]]
    magnitudes: Callable[[int, str], tuple[Array, Array] | None]
    complete: bool = True
    wholes: Mapping[int, Ranks] = field(default_factory=dict)


def step_of(size: int) -> int:
    """Elements of a block whose elements have so many bytes."""
    return BLOCK // size


def blocks_of(meta: TensorMeta) -> int:
    """How many blocks a tensor has."""
    return -(-meta.numel // step_of(meta.dtype.size))


def span_of(meta: TensorMeta, number: int) -> tuple[int, int]:
    """The elements [start, stop) of a block."""
    step = step_of(meta.dtype.size)
    return number * step, min((number + 1) * step, meta.numel)


def fingerprint(source: Source) -> str | None:
    """What a source is right now: its identity, and sizes, times and inodes of its files; None without files."""
    rows = []
    for path in weight_files(source):
        try:
            s = path.stat()
        except OSError:
            return None
        rows.append([str(path.resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev])
    if not rows:
        return None
    return bytes_digest(canonical_json([_VERSION, BLOCK, source.identity(), sorted(rows)]))


def kept() -> bool:
    """Whether the cache holds any catalogue at all."""
    return (cache.folder() / "catalogue").is_dir()


def digests_of(source: Source) -> Mapping[str, Array] | None:
    """The digests of a source's blocks by tensor, (blocks, 16) bytes; None where it is in no catalogue."""
    held = store.held("digests", fingerprint(source))
    if held is None:
        return None
    try:
        found = dict(store.by_name(held, "digests", "blocks"))
    except (Broken, KeyError):
        return None
    fits = all(
        name in source.tensors and digests.shape == (blocks_of(source.tensors[name]), DIGEST)
        for name, digests in found.items()
    )
    return found if fits else None


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of an expert and its base: changes by tensor, and magnitudes by their rank among all of them."""

    changes: Mapping[str, Change]
    whole: Ranks | None


def changes_of(base: Source, expert: Source) -> Mapping[str, Change] | None:
    """What an expert changes, by tensor; None where the two are in no catalogue together."""
    found = known_of(base, expert)
    return None if found is None else found.changes


def known_of(base: Source, expert: Source) -> Known | None:
    """What the cache has of the two; None where they are in no catalogue together."""
    held = store.held("change", fingerprint(base), fingerprint(expert))
    if held is None:
        return None
    try:
        parts = [dict(store.by_name(held, key, "blocks")) for key in ("energy", "largest", "moved")]
        found, ranks = {}, by_rank.ranks_of(held, len(parts[0]))
        for number, (name, energy) in enumerate(parts[0].items()):
            lost = held["lost"][number]
            keys, counts = (None, None) if lost else store.unpacked(held[f"told{number}"])
            found[name] = Change(energy, parts[1][name], parts[2][name], keys, counts, ranks[number])
            if len(energy) != blocks_of(base.tensors[name]):
                return None
        return Known(found, by_rank.whole_of(held))
    except (Broken, KeyError, IndexError, ValueError):
        return None


def catalogued(base: Source, experts: Sequence[Source]) -> Catalogue | None:
    """The catalogue of exactly these files, from the cache; None when there is none that can be read."""
    prints = [fingerprint(expert) for expert in experts]
    order = sorted(range(len(prints)), key=lambda place: prints[place] or "")
    held = store.held("together", fingerprint(base), *(prints[place] for place in order))
    if held is None:
        return None
    changes = [changes_of(base, expert) for expert in experts]
    if any(found is None for found in changes):
        return None
    places = [order.index(place) for place in range(len(order))]
    found = {}
    try:
        for number, name in enumerate(held["names"].tolist()):
            same, gram = held[f"same{number}"][places], held[f"gram{number}"][:, places][:, :, places]
            own = [part.get(name) for part in changes if part is not None]
            if len(gram) != blocks_of(base.tensors[name]):
                return None
            found[name] = Sketch(same, gram, held[f"ground{number}"], held[f"peak{number}"], own)
    except (KeyError, IndexError):
        return None
    return Catalogue(found)


def catalogue(base: Source, experts: Sequence[Source], threads: int | None = None) -> Catalogue:
    """Measure base and experts and keep what is found in the cache.

    One pass, and two more over tensors that have too many different magnitudes to count. Memory: a block of each for
    each thread; for such tensors about 15 MB for each expert, and for each thread. Only tensors of float type of 16 or
    32 bits are compared. What lies in no file is measured but not kept.
    """
    from cuvee.sources.catalogue_scan import scan

    before = fingerprints((base, *experts))
    found = scan(base, experts, threads or os.cpu_count() or 1)
    keep((base, *experts), found, before)
    return Catalogue(found.sketches)


def bring(sources: Sequence[Source]) -> None:
    """Fetch what is not here yet; SourceError CV-S392 for a source that lies in no file, of which nothing is kept."""
    for source in sources:
        for file in unfetched(source):
            file.fetch()
        if fingerprint(source) is None:
            raise SourceError(
                "CV-S392",
                f"`{printable(source.label)}` lies in no file of this machine, so no catalogue of it can be kept",
                where=Where(source=source.label),
                hint="fetch the model first and name its folder",
            )


def fingerprints(sources: Sequence[Source]) -> tuple[str | None, ...]:
    """Of each source."""
    return tuple(fingerprint(source) for source in sources)


def keep(sources: Sequence[Source], found: Found, before: Sequence[str | None]) -> bool:
    """Keep what was found of sources (the base first) that had the fingerprints `before`, and still have them.

    What was known of other tensors of the same files stays.
    """
    if None in before or fingerprints(sources) != tuple(before):
        return False
    ground, *prints = map(str, before)
    for source, told, digests in zip(sources, before, found.digests, strict=True):
        store.keep("digests", _digest_rows({**(digests_of(source) or {}), **digests}), told)
    if not found.sketches:
        return True
    for place, told in enumerate(prints):
        known = known_of(sources[0], sources[place + 1]) or Known({}, None)
        store.keep("change", _change_rows(found, place, known), ground, told)
    if found.complete:
        order = sorted(range(len(prints)), key=prints.__getitem__)
        rows = _together_rows(found.sketches, order)
        store.keep("together", rows, ground, *(prints[place] for place in order))
    return True


def _digest_rows(digests: Mapping[str, Array]) -> Iterator[Row]:
    parts = list(digests.values())
    yield store.names_row(digests)
    yield "blocks", store.counts_of(map(len, parts))
    yield "digests", numpy.concatenate([numpy.zeros((0, DIGEST), numpy.uint8), *parts])


def _change_rows(found: Found, place: int, before: Known) -> Iterator[Row]:
    known = before.changes
    own = {name: change for name, s in found.sketches.items() if (change := s.changes[place]) is not None}
    every = {**known, **own}
    yield store.names_row(every)
    yield "blocks", store.counts_of(len(change.energy) for change in every.values())
    for key in ("energy", "largest", "moved"):
        yield key, numpy.concatenate([getattr(change, key) for change in every.values()] or [numpy.zeros(0)])
    lost = []
    for number, (name, change) in enumerate(every.items()):
        keys, counts = change.keys, change.counts
        if name in own:
            old = known.get(name)
            keys, counts = found.magnitudes(place, name) or (old and (old.keys, old.counts)) or (None, None)
        lost.append(keys is None)
        if keys is not None and counts is not None:
            yield f"told{number}", store.packed(keys, counts)
    yield "lost", numpy.array(lost, bool)
    yield from by_rank.rows_of([change.ranks or _ranks(known.get(name)) for name, change in every.items()])
    whole = found.wholes.get(place) or before.whole
    if whole is not None:
        yield from by_rank.whole_rows(whole)


def _ranks(change: Change | None) -> Ranks | None:
    return None if change is None else change.ranks


def _together_rows(sketches: Mapping[str, Sketch], order: list[int]) -> Iterator[Row]:
    yield store.names_row(sketches)
    for number, sketch in enumerate(sketches.values()):
        yield f"same{number}", sketch.same[order]
        yield f"gram{number}", sketch.gram[:, order][:, :, order]
        yield f"ground{number}", sketch.ground
        yield f"peak{number}", sketch.peak
