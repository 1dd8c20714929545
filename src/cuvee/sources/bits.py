"""The bits of a source's elements as unsigned integers, and a quick look at the ends of a tensor.

Reads plainly stored tensors past torch, which need not be imported then. Must not know any kind of source.
"""

from __future__ import annotations

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


def bits_of(
    source: Source,
    name: str,
    start: int,
    stop: int,
    into: Array | None = None,
    files: dict[Path, ByteFile] | None = None,
    *,
    exactly: bool = False,
) -> Array:
    """Elements [start, stop) as little-endian integers of their width; fresh memory, or a part of `into` (bytes).

    The first files that are read stay open in `files`, as long as that lives: opening one costs as much as reading a
    piece of 64 KiB. `exactly`: the system is told not to read ahead of these.
    """
    meta = source.tensors[name]
    size = meta.dtype.size
    extent = source.extent(name)
    if extent is not None and extent.nbytes == meta.nbytes:
        memory = numpy.empty((stop - start) * size, numpy.uint8) if into is None else into
        out: Array = memory[: (stop - start) * size].view(f"<u{size}")
        kept = {} if files is None else files
        file = kept.get(extent.path) or ByteFile(extent.path)
        if len(kept) < MOST_OPEN:
            file = kept.setdefault(extent.path, file)
        if exactly:
            file.read_exactly()
        file.fill(memoryview(out.view(numpy.uint8).data), extent.offset + start * size, name)
        return out  # a file that is not kept is closed with its last use
    values = source.read(name, start, stop).contiguous()
    found: Array = values.view(torch.uint8).numpy().view(f"<u{size}")
    return found


def ends_digest(source: Source, name: str) -> str:
    """16 digits of the BLAKE3 of a tensor's first and last 512 elements."""
    count = source.tensors[name].numel
    first = bits_of(source, name, 0, min(ENDS, count)).tobytes()
    last = bits_of(source, name, max(0, count - ENDS), count).tobytes()
    return str(blake3(first + last).hexdigest(length=8))
