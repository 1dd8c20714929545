"""GGUF files under their own names: plain tensors as stored, packed ones as float32, block by block.

The header is parsed by `gguf_header`; the `gguf` package only dequantises. Names and row orders of Hugging
Face models are the business of `gguf_names`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import numpy, torch
from cuvee.core.limits import DEFAULT, Limits
from cuvee.core.tensors import Extent, TensorMeta
from cuvee.formats.bytes_file import ByteFile, element_range
from cuvee.formats.gguf_header import GgufHeader, Placed, parse_header
from cuvee.formats.refusals import unusable

if TYPE_CHECKING:
    from torch import Tensor

_AT_ONCE = 1 << 18  # elements dequantised in one call; bounds the temporaries


class GgufFile:
    """An opened GGUF file; see `TensorFile`. `metadata` holds its key-values."""

    format = "gguf"

    def __init__(self, raw: ByteFile, header: GgufHeader) -> None:
        self.path = raw.path
        self.tensors: Mapping[str, TensorMeta] = {name: p.meta for name, p in header.tensors.items()}
        self.metadata: Mapping[str, Any] = header.metadata
        self.encodings: Mapping[str, str] = {
            name: p.encoding.name for name, p in header.tensors.items() if p.encoding.plain is None
        }
        self._raw = raw
        self._placed = header.tensors

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements [start, stop); of packed tensors only the blocks that hold them are touched."""
        placed = self._placed[name]
        first, last = element_range(placed.meta, start, stop)
        if placed.encoding.plain is not None:
            offset = placed.offset + first * placed.encoding.size
            return self._raw.tensor_at(offset, last - first, placed.meta.dtype, name)
        out = torch.empty(last - first, dtype=torch.float32)
        begin = first
        while begin < last:
            end = min(last, begin - begin % placed.encoding.elements + _AT_ONCE)
            out[begin - first : end - first] = self._unpacked(placed, begin, end)
            begin = end
        return out

    def _unpacked(self, placed: Placed, first: int, last: int) -> Tensor:
        """Elements [first, last) of a packed tensor."""
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        elements, size = placed.encoding.elements, placed.encoding.size
        low, high = first // elements, -(-last // elements)
        packed = numpy.empty((high - low) * size, dtype=numpy.uint8)
        self._raw.fill(packed.data, placed.offset + low * size, placed.meta.name)
        try:
            with numpy.errstate(all="ignore"):  # NaN and infinite scales are data
                values = dequantize(packed, GGMLQuantizationType[placed.encoding.name])
        except (KeyError, NotImplementedError):
            message = f"the installed `gguf` package cannot read {placed.encoding.name}"
            hint = "pip install --upgrade gguf"
            raise unusable("CV-S067", self.path, message, tensor=placed.meta.name, hint=hint) from None
        flat = numpy.ascontiguousarray(values, dtype=numpy.float32).reshape(-1)
        return torch.from_numpy(flat)[first - low * elements : last - low * elements]

    def extent(self, name: str) -> Extent | None:
        """Where a plain tensor's bytes lie; None for packed ones."""
        placed = self._placed[name]
        if placed.encoding.plain is None:
            return None
        return Extent(self.path, placed.offset, placed.nbytes)

    def raw_bytes(self, name: str) -> bytes:
        """A tensor's bytes as stored; for small tables that are part of the header."""
        placed = self._placed[name]
        return self._raw.bytes_at(placed.offset, placed.nbytes)

    def close(self) -> None:
        """Close the file; reads fail afterwards."""
        self._raw.close()


def open_gguf(path: Path, limits: Limits = DEFAULT) -> GgufFile:
    """Open a GGUF file under its own tensor names and row order."""
    raw = ByteFile(path)
    try:
        file = GgufFile(raw, parse_header(raw, limits))
        if file.encodings and importlib.util.find_spec("gguf") is None:
            first, encoding = next(iter(file.encodings.items()))
            raise unusable(
                "CV-S066",
                path,
                f"the tensors are packed ({encoding}), and the package that unpacks them is not installed",
                tensor=first,
                hint="pip install 'cuvee[gguf]'",
            )
    except BaseException:
        raw.close()
        raise
    return file
