"""What one pass over a base and its experts tells of every block: which changed, and how all changes stand together.

For each block of a MiB and each tensor that an expert shares with the base: whether every bit is the base's, and the
products <δ_i, δ_j> of all experts' changes (their diagonal is the squared norms). With them the error of leaving blocks
out of a weighted sum is known before anything is read. Kept in the cache under what the files are right now. Must not
know plans.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core import cache
from cuvee.core.digests import bytes_digest, canonical_json
from cuvee.core.disk import make_folders, write_file
from cuvee.core.lazy import numpy
from cuvee.core.limits import MIB
from cuvee.core.sampling import sample
from cuvee.sources.bits import bits_of
from cuvee.sources.source import Source, weight_files

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

BLOCK = MIB  # bytes of the base's tensor
_PIECE = 1 << 16  # elements whose products are taken at once
_VERSION = 1
_FLOATS = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class Sketch:
    """One tensor: `same` (experts, blocks) and `gram` (blocks, experts, experts), float64.

    A product is NaN where an expert lacks the tensor or a value is not finite.
    """

    same: Array
    gram: Array


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Sketches by tensor; experts stand in the order they were given in."""

    tensors: Mapping[str, Sketch]

    def ordered(self, order: Sequence[int]) -> Catalogue:
        """The same with the experts in another order."""
        places = list(order)
        return Catalogue(
            {
                name: Sketch(s.same[places], s.gram[:, places][:, :, places])
                for name, s in self.tensors.items()
            }
        )


def step_of(size: int) -> int:
    """Elements of a block whose elements have so many bytes."""
    return BLOCK // size


def fingerprint(source: Source) -> str:
    """What the files of a source are right now: sizes, times, inodes and samples, in any order of files."""
    rows = []
    for path, spans in weight_files(source).items():
        status = path.stat()
        place = [status.st_size, status.st_mtime_ns, status.st_ino]
        rows.append([str(path.resolve()), *place, sample(path, spans)])
    return bytes_digest(canonical_json(sorted(rows)))


def catalogued(base: Source, experts: Sequence[Source]) -> Catalogue | None:
    """The catalogue of exactly these files, from the cache; None when there is none that can be read."""
    prints = [fingerprint(expert) for expert in experts]
    order = sorted(range(len(prints)), key=prints.__getitem__)
    path = _path(base, prints)
    if not path.is_file():
        return None
    try:
        with numpy.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as held:
            names = [str(name) for name in held["names"]]
            found = {n: Sketch(held[f"same{i}"], held[f"gram{i}"]) for i, n in enumerate(names)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return Catalogue(found).ordered([order.index(place) for place in range(len(order))])


def catalogue(base: Source, experts: Sequence[Source]) -> Catalogue:
    """Measure base and experts in one pass and keep what is found in the cache.

    Memory: a block of each. Tensors that are not float of 16 or 32 bits are left out.
    """
    prints = [fingerprint(expert) for expert in experts]
    order = sorted(range(len(prints)), key=prints.__getitem__)
    found: dict[str, Sketch] = {}
    for name, meta in base.tensors.items():
        there = [expert.tensors.get(name) == meta for expert in experts]
        if meta.dtype.name in _FLOATS and meta.numel and any(there):
            found[name] = _measured(base, experts, there, name)
    made = Catalogue(found)
    _keep(_path(base, prints), made.ordered(order))
    return made


def _measured(base: Source, experts: Sequence[Source], there: Sequence[bool], name: str) -> Sketch:
    meta, count = base.tensors[name], len(experts)
    step = step_of(meta.dtype.size)
    blocks = -(-meta.numel // step)
    same = numpy.zeros((count, blocks), bool)
    gram = numpy.zeros((blocks, count, count))
    for block in range(blocks):
        start, stop = block * step, min((block + 1) * step, meta.numel)
        ground = bits_of(base, name, start, stop)
        tuned = [bits_of(e, name, start, stop) if t else None for e, t in zip(experts, there, strict=True)]
        same[:, block] = [t is not None and numpy.array_equal(t, ground) for t in tuned]
        for first in range(0, stop - start, _PIECE):
            part = slice(first, first + _PIECE)
            origin = _values(ground[part], meta.dtype.name)
            with numpy.errstate(invalid="ignore", over="ignore"):
                deltas = numpy.stack(
                    [
                        origin * numpy.nan if t is None else _values(t[part], meta.dtype.name) - origin
                        for t in tuned
                    ]
                )
                gram[block] += deltas @ deltas.T
    return Sketch(same, gram)


def _values(bits: Array, dtype: str) -> Array:
    """Elements as float64."""
    if dtype == "bfloat16":
        bits = bits.astype("<u4") << 16
    found: Array = bits.view("<f2" if dtype == "float16" else "<f4").astype(numpy.float64)
    return found


def _path(base: Source, prints: Sequence[str]) -> Path:
    key = bytes_digest(canonical_json([_VERSION, fingerprint(base), sorted(prints)]))
    return cache.folder() / "catalogue" / f"{key}.npz"


def _keep(path: Path, found: Catalogue) -> None:
    held: dict[str, Array] = {"names": numpy.array(list(found.tensors), dtype=numpy.str_)}
    for number, sketch in enumerate(found.tensors.values()):
        held |= {f"same{number}": sketch.same, f"gram{number}": sketch.gram}
    buffer = io.BytesIO()
    numpy.savez(buffer, allow_pickle=False, **held)
    make_folders(path.parent)
    write_file(path, buffer.getvalue())
