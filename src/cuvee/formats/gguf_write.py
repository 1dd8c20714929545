"""GGUF files for writing: the header's bytes, where each tensor lies, and elements packed into blocks.

Pure: the layout is known from names and shapes before an element is read, and bytes are written by sinks. Must
not know what tensors mean (`gguf_write_names`) nor where values come from.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import numpy, torch
from cuvee.formats.gguf_types import ENCODINGS, Encoding

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

ALIGNMENT = 32
VERSION = 3
BLOCK = 32  # elements of a Q8_0 block
BY_NAME: Mapping[str, Encoding] = {
    encoding.name if encoding.plain is None else encoding.plain.code: encoding
    for encoding in ENCODINGS.values()
}
_NUMBERS = {
    encoding.name if encoding.plain is None else encoding.plain.code: n for n, encoding in ENCODINGS.items()
}
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_FORMATS = {_UINT32: "I", _INT32: "i", _FLOAT32: "f", _BOOL: "?"}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of the file: its GGUF name, its shape (row-major, as in torch) and its encoding (`Q8_0`)."""

    name: str
    shape: tuple[int, ...]
    encoding: str

    @property
    def numel(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, without the padding that follows them."""
        encoding = BY_NAME[self.encoding]
        return self.numel // encoding.elements * encoding.size

    @property
    def padded(self) -> int:
        """Bytes up to where the next tensor begins."""
        return self.nbytes + -self.nbytes % ALIGNMENT


def encode_header(metadata: Mapping[str, Any], tensors: Sequence[GgufTensor]) -> bytes:
    """Everything before the first tensor, padded; tensors follow in the given order, each padded.

    Key-values are typed by their Python type: truth values, texts, whole numbers (uint32, int32 in lists),
    floats (float32), and lists of one of these. ValueError for anything else.
    """
    parts = [b"GGUF", struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), _value(key, value)]
    offset = 0
    for tensor in tensors:
        rank = len(tensor.shape)
        lengths = struct.pack(f"<{rank}Q", *reversed(tensor.shape))
        place = struct.pack("<IQ", _NUMBERS[tensor.encoding], offset)
        parts += [_text(tensor.name), struct.pack("<I", rank), lengths, place]
        offset += tensor.padded
    header = b"".join(parts)
    return header + bytes(-len(header) % ALIGNMENT)


def _value(key: str, value: Any) -> bytes:
    if isinstance(value, list):
        kind = _list_kind(key, value)
        head = struct.pack("<IIQ", _ARRAY, kind, len(value))
        if kind == _STRING:
            return head + b"".join(map(_text, value))
        return head + struct.pack(f"<{len(value)}{_FORMATS[kind]}", *value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    kind = _scalar_kind(key, value)
    return struct.pack("<I" + _FORMATS[kind], kind, value)


def _scalar_kind(key: str, value: Any) -> int:
    kinds = {bool: _BOOL, int: _UINT32, float: _FLOAT32, str: _STRING}
    if type(value) not in kinds or (type(value) is int and not 0 <= value < 1 << 32):
        raise ValueError(f"{key}: {value!r} cannot be a GGUF value")
    return kinds[type(value)]


def _list_kind(key: str, values: list[Any]) -> int:
    if not values or len({type(value) for value in values}) != 1:
        raise ValueError(f"{key}: a list in a GGUF header holds values of one kind, and at least one")
    kind = {bool: _BOOL, int: _INT32, float: _FLOAT32, str: _STRING}.get(type(values[0]))
    if kind is None:
        raise ValueError(f"{key}: {values[0]!r} cannot be in a GGUF list")
    return kind


def _text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def packed(values: Tensor, encoding: str) -> ndarray[Any, Any]:
    """A float32 tensor's elements as stored bytes (uint8, 1-D).

    F16 and BF16 round to nearest, ties to even; Q8_0 is `quantised`. Whole blocks only.
    """
    if encoding == "Q8_0":
        return quantised(values.contiguous().numpy())
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[encoding]
    out: ndarray[Any, Any] = values.to(dtype).contiguous().view(torch.uint8).numpy()
    return out


def quantised(values: ndarray[Any, Any]) -> ndarray[Any, Any]:
    """Q8_0: of each 32 float32 elements a float16 scale (largest magnitude / 127) and 32 signed bytes.

    Quotients are rounded half away from zero, all in float32, which gives the bytes of ggml's reference.
    """
    blocks = values.reshape(-1, BLOCK)
    scales = numpy.abs(blocks).max(axis=1, keepdims=True) / numpy.float32(127)
    with numpy.errstate(divide="ignore", over="ignore"):
        inverse = numpy.float32(1) / scales
        inverse[~numpy.isfinite(inverse)] = 0  # of zeros, and of scales so small that float16 makes them zero
        stored = scales.astype(numpy.float16)
    scaled = blocks * inverse
    magnitudes = numpy.abs(scaled)
    whole = numpy.floor(magnitudes)
    whole += magnitudes - whole >= 0.5
    out = numpy.empty((len(blocks), 2 + BLOCK), dtype=numpy.uint8)
    out[:, :2] = stored.view(numpy.uint8)
    out[:, 2:] = numpy.copysign(whole, scaled).astype(numpy.int8).view(numpy.uint8)
    flat: ndarray[Any, Any] = out.reshape(-1)
    return flat
