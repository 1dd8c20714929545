"""The bits of a source's elements as unsigned integers, and a quick look at the ends of a tensor.

Reads plainly stored tensors past torch, which need not be imported then. Must not know any kind of source.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from cuvee.core.lazy import numpy, torch
from cuvee.formats.bytes_file import ByteFile
from cuvee.sources.source import Source

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

ENDS = 512  # elements
MOST_OPEN = 32  # files
Reader = Callable[[int, int, "Array"], "Array"]


def bits_of(
    source: Source, name: str, start: int, stop: int, into: Array | None = None, *, exactly: bool = False
) -> Array:
    """Elements [start, stop) as little-endian integers of their width; fresh memory, or a part of `into` (bytes).

    `exactly`: the system is told not to read ahead of these.
    """
    meta = source.tensors[name]
    memory = numpy.empty((stop - start) * meta.dtype.size, numpy.uint8) if into is None else into
    return reading_of(source, name, {}, exactly=exactly)(start, stop, memory)


def reading_of(source: Source, name: str, files: dict[Path, ByteFile], *, exactly: bool = False) -> Reader:
    """What reads elements [start, stop) of a tensor as `bits_of` does, into a part of some bytes where that can be.

    Files stay open in `files`, the first so many of them, as long as that lives.
    """
    size, extent = source.tensors[name].dtype.size, source.extent(name)
    if extent is None or extent.nbytes != source.tensors[name].nbytes:
        return lambda start, stop, into: _decoded(source, name, start, stop)
    path, at = extent.path, extent.offset

    def read(start: int, stop: int, into: Array) -> Array:
        file = files.get(path) or ByteFile(path)  # which is closed with its last use
        if len(files) < MOST_OPEN:
            file = files.setdefault(path, file)
        if exactly:
            file.read_exactly()
        room = into[: (stop - start) * size]
        file.fill(memoryview(room.data), at + start * size, name)
        found: Array = room.view(f"<u{size}")
        return found

    return read


def _decoded(source: Source, name: str, start: int, stop: int) -> Array:
    values = source.read(name, start, stop).contiguous()
    found: Array = values.view(torch.uint8).numpy().view(f"<u{values.element_size()}")
    return found


def ends_digest(source: Source, name: str) -> str:
    """16 digits of the BLAKE3 of a tensor's first and last 512 elements."""
    count = source.tensors[name].numel
    first = bits_of(source, name, 0, min(ENDS, count)).tobytes()
    last = bits_of(source, name, max(0, count - ENDS), count).tobytes()
    return str(blake3(first + last).hexdigest(length=8))
