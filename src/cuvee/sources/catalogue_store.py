"""Catalogues as files of the cache: an archive of arrays for each thing that is known, under a digest of what it is of.

What cannot be read, or does not fit together, counts as not there. Must not know what the arrays mean to anybody.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core import cache
from cuvee.core.digests import bytes_digest, canonical_json
from cuvee.core.disk import make_folders, write_file
from cuvee.core.lazy import numpy

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

Row = tuple[str, Any]
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    EOFError,
    TypeError,
    MemoryError,
    RuntimeError,  # a member that says it is encrypted; or packed in another way, which is not implemented
    zlib.error,
)


class Broken(Exception):
    """Arrays that do not fit together."""


def path_of(kind: str, prints: Sequence[str]) -> Path:
    """Where the arrays of a kind lie that are of these fingerprints."""
    return cache.folder() / "catalogue" / f"{kind}-{bytes_digest(canonical_json(list(prints)))}.npz"


def held(kind: str, *prints: str | None) -> dict[str, Array] | None:
    """The arrays; None where there are none that can be read."""
    told = [text for text in prints if text is not None]
    if len(told) < len(prints):
        return None
    path = path_of(kind, told)
    if not path.is_file():
        return None
    import zipfile  # most merges find nothing and keep nothing

    try:
        with numpy.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (*_UNREADABLE, zipfile.BadZipFile):
        return None


def keep(kind: str, rows: Iterable[Row], *prints: str | None) -> None:
    """Write arrays, one at a time, in place of those that were there; whole or not at all.

    Nothing is compressed: that would take longer than finding it out.
    """
    import zipfile

    path = path_of(kind, [text for text in prints if text is not None])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in rows:
            member = io.BytesIO()
            numpy.lib.format.write_array(member, numpy.asanyarray(array), allow_pickle=False)
            archive.writestr(f"{name}.npy", member.getbuffer())
    make_folders(path.parent)
    write_file(path, buffer.getvalue())


def by_name(rows: Mapping[str, Array], key: str, count: str) -> Iterator[tuple[str, Array]]:
    """Joined arrays by the names they belong to; Broken where lengths contradict each other."""
    names, lengths, joined = rows["names"].tolist(), rows[count], rows[key]
    whole = lengths.ndim == 1 and len(lengths) == len(names) and (not len(names) or int(lengths.min()) >= 0)
    if not whole or int(lengths.sum()) != len(joined):
        raise Broken
    parts = numpy.split(joined, numpy.cumsum(lengths)[:-1]) if len(names) else []
    return zip(names, parts, strict=True)


def names_row(found: Iterable[str]) -> Row:
    """The names that other arrays are joined by."""
    return "names", numpy.array(list(found), dtype=numpy.str_)


def counts_of(found: Iterable[int]) -> Array:
    """Lengths of what is joined."""
    return numpy.array(list(found), dtype=numpy.int64)


_SIZES = (1, 2, 4, 8)  # bytes of a number
_HEAD = 4  # numbers of 32 bits: how many entries, the shift, and exceptions and bytes of both parts


def packed(keys: Array, counts: Array) -> Array:
    """Magnitudes (ascending) and their counts in few bytes: steps and counts as short as most are, exceptions apart."""
    low = int(numpy.bitwise_or.reduce(keys, initial=0))
    shift = (low & -low).bit_length() - 1 if low else 0
    steps = numpy.diff(keys >> shift, prepend=numpy.uint32(0))
    head, parts = [len(keys), shift], []
    for part in (steps.astype("<u8"), counts.astype("<u8")):
        over = {size: numpy.flatnonzero(part >> (8 * size)) for size in _SIZES[:-1]} | {8: part[:0]}
        size = min(_SIZES, key=lambda size: size * len(part) + 12 * len(over[size]))
        head.append(len(over[size]) << 4 | size)
        parts += [part.astype(f"<u{size}"), over[size].astype("<u4"), part[over[size].astype(int)]]
    return numpy.concatenate([part.view(numpy.uint8) for part in (numpy.array(head, "<u4"), *parts)])


def unpacked(data: Array) -> tuple[Array, Array]:
    """What `packed` was given; Broken where that cannot be."""
    raw = data.tobytes()
    if len(raw) < 4 * _HEAD:
        raise Broken
    many, shift, *forms = map(int, numpy.frombuffer(raw, "<u4", _HEAD))
    sizes = [(form & 15, form >> 4) for form in forms]
    whole = 4 * _HEAD + sum(size * many + 12 * over for size, over in sizes)
    if shift > 31 or len(raw) != whole or any(size not in _SIZES for size, _ in sizes):
        raise Broken
    found, place = [], 4 * _HEAD
    for size, over in sizes:
        part = numpy.frombuffer(raw, f"<u{size}", many, place).astype(numpy.uint64)
        place += size * many
        where = numpy.frombuffer(raw, "<u4", over, place)
        if over and int(where.max()) >= many:
            raise Broken
        part[where] = numpy.frombuffer(raw, "<u8", over, place + 4 * over)
        place += 12 * over
        found.append(part)
    steps, counts = found
    return numpy.cumsum(steps).astype(numpy.uint32) << numpy.uint32(shift), counts.astype(numpy.int64)
