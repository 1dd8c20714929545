"""The bits of a source's elements as unsigned integers, and a quick look at the ends of a tensor.

Reads plainly stored tensors past torch, which need not be imported then. Must not know any kind of source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blake3 import blake3

from cuvee.core.lazy import numpy, torch
from cuvee.formats.bytes_file import ByteFile
from cuvee.sources.source import Source

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

ENDS = 512  # elements


def bits_of(source: Source, name: str, start: int, stop: int, into: Array | None = None) -> Array:
    """Elements [start, stop) as little-endian integers of their width; fresh memory, or a part of `into` (bytes)."""
    meta = source.tensors[name]
    size = meta.dtype.size
    extent = source.extent(name)
    if extent is not None and extent.nbytes == meta.nbytes:
        memory = numpy.empty((stop - start) * size, numpy.uint8) if into is None else into
        out: Array = memory[: (stop - start) * size].view(f"<u{size}")
        file = ByteFile(extent.path)
        try:
            file.fill(memoryview(out.view(numpy.uint8).data), extent.offset + start * size, name)
        finally:
            file.close()
        return out
    values = source.read(name, start, stop).contiguous()
    found: Array = values.view(torch.uint8).numpy().view(f"<u{size}")
    return found


def ends_digest(source: Source, name: str) -> str:
    """16 digits of the BLAKE3 of a tensor's first and last 512 elements."""
    count = source.tensors[name].numel
    first = bits_of(source, name, 0, min(ENDS, count)).tobytes()
    last = bits_of(source, name, max(0, count - ENDS), count).tobytes()
    return str(blake3(first + last).hexdigest(length=8))
