"""Safetensors files: opening them for reading, and the header bytes that a writer puts before its tensors.

The grammar is in `safetensors_header`. Must not write files (sinks do) or import torch for header work.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cuvee.core.limits import DEFAULT, Limits
from cuvee.core.tensors import Extent, TensorMeta
from cuvee.formats.bytes_file import ByteFile, Bytes, element_range
from cuvee.formats.refusals import corrupt, over_limit
from cuvee.formats.safetensors_header import METADATA, Header, parse_header

if TYPE_CHECKING:
    from torch import Tensor

_ALIGNMENT = 64  # bytes; a cache line, and a multiple of every element size


class SafetensorsFile:
    """A checked safetensors file; see `TensorFile`."""

    format = "safetensors"

    def __init__(self, raw: Bytes, header: Header, data_start: int) -> None:
        self.path = raw.path
        self.tensors: Mapping[str, TensorMeta] = header.tensors
        self.metadata: Mapping[str, str] = header.metadata
        self.encodings: Mapping[str, str] = {}
        self._raw = raw
        self._begins = header.begins
        self._start = data_start

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements [start, stop) of a tensor, 1-D, in its stored dtype."""
        meta = self.tensors[name]
        first, last = element_range(meta, start, stop)
        offset = self._start + self._begins[name] + first * meta.dtype.size
        return self._raw.tensor_at(offset, last - first, meta.dtype, name)

    def extent(self, name: str) -> Extent:
        """Where the tensor's bytes lie; always plain in this format."""
        return Extent(self.path, self._start + self._begins[name], self.tensors[name].nbytes)

    def extents(self) -> list[Extent]:
        """Of every tensor, in order."""
        return [self.extent(name) for name in self.tensors]

    def close(self) -> None:
        """Close the file; reads fail afterwards."""
        self._raw.close()


def open_safetensors(path: Path, limits: Limits = DEFAULT) -> SafetensorsFile:
    """Open and check a file's header; its tensors are listed in the order of their bytes."""
    raw = ByteFile(path)
    try:
        header, start = read_header(raw.bytes_at, raw.size, path, limits)
    except BaseException:
        raw.close()
        raise
    return SafetensorsFile(raw, header, start)


def read_header(
    read: Callable[[int, int], bytes], size: int, path: Path, limits: Limits = DEFAULT
) -> tuple[Header, int]:
    """The checked header of a file of `size` bytes, and where its data begins; `read(offset, count)` gives bytes."""
    if size < 8:
        raise corrupt("CV-S052", path, f"the file has {size} bytes, a header needs at least 10")
    length = int.from_bytes(read(0, 8), "little")
    if length > size - 8:
        raise corrupt(
            "CV-S052",
            path,
            f"the header claims {length:,} bytes, the file has {size - 8:,} after the length",
            hint="the file was cut short, or is not a safetensors file",
        )
    if length > limits.header_bytes:
        raise over_limit(path, "header size in bytes", length, limits.header_bytes)
    return parse_header(read(8, length), size - 8 - length, path, limits), 8 + length


def encode_header(tensors: Sequence[TensorMeta], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """The first bytes of a file with these tensors in this order, and where each tensor begins in the file.

    The bytes are the length, then JSON padded with spaces so that data begins at a multiple of 64. Tensors
    follow each other without gaps. ValueError when two tensors share a name or one is called `__metadata__`.
    """
    header: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    begins: dict[str, int] = {}
    end = 0
    for meta in tensors:
        if meta.name in begins or meta.name == METADATA:
            raise ValueError(f"two entries of one header are called {meta.name!r}")
        begins[meta.name] = end
        end += meta.nbytes
        header[meta.name] = {
            "dtype": meta.dtype.code,
            "shape": list(meta.shape),
            "data_offsets": [begins[meta.name], end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: start + begin for name, begin in begins.items()}
