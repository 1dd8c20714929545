"""Catalogues as files of the cache: an archive of arrays for each thing that is known, under a digest of what it is of.

What cannot be read, or does not fit together, counts as not there. Must not know what the arrays mean to anybody.
"""

from __future__ import annotations

import io
import zipfile
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
    NotImplementedError,
    zipfile.BadZipFile,
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
    try:
        with numpy.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except _UNREADABLE:
        return None


def keep(kind: str, rows: Iterable[Row], *prints: str | None) -> None:
    """Write arrays, one at a time, in place of those that were there; whole or not at all."""
    path = path_of(kind, [text for text in prints if text is not None])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
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


def packed(keys: Array, counts: Array) -> bytes:
    """Magnitudes (ascending) and their counts in few bytes."""
    steps = numpy.diff(keys, prepend=numpy.uint32(0)).astype("<u4")
    return zlib.compress(steps.tobytes() + counts.astype("<i8").tobytes(), 1)


def unpacked(data: bytes) -> tuple[Array, Array]:
    """What `packed` was given."""
    both = zlib.decompress(data)
    count = len(both) // 12
    keys = numpy.cumsum(numpy.frombuffer(both, "<u4", count), dtype=numpy.uint32)
    return keys, numpy.frombuffer(both, "<i8", count, 4 * count).astype(numpy.int64)
