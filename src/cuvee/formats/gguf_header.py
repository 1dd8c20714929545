"""The header of a GGUF file: key-values and tensor table, parsed within limits before any library sees it.

Must not dequantise, and needs neither NumPy nor the `gguf` package.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from cuvee.core.limits import MIB, Limits
from cuvee.core.tensors import TensorMeta
from cuvee.errors import CorruptFile
from cuvee.formats.bytes_file import ByteFile
from cuvee.formats.gguf_types import ENCODINGS, UNREADABLE, Encoding
from cuvee.formats.refusals import corrupt, over_limit, quoted, unusable

_CODE = "CV-S065"
_PAIRS = 65_536
_RANK = 4  # of the format
_LENGTHS = [struct.Struct(f"<{rank}Q") for rank in range(_RANK + 1)]
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor, its encoding, and where its first byte lies in the file."""

    meta: TensorMeta
    encoding: Encoding
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Key-values as plain Python values, and the tensors in the order of their bytes."""

    metadata: dict[str, Any]
    tensors: dict[str, Placed]


def parse_header(raw: ByteFile, limits: Limits) -> GgufHeader:
    """The checked header; CorruptFile or SourceError when it is refused."""
    cursor = _Cursor(raw, limits)
    if cursor.take(4) != b"GGUF":
        raise cursor.malformed("it does not begin with `GGUF`")
    version = cursor.short()
    if version not in (2, 3):
        swapped = version & 0xFFFF == 0
        found = "is stored in big-endian order" if swapped else f"is of version {version}"
        raise unusable(
            "CV-S068", raw.path, f"the file {found}, expected version 2 or 3 in little-endian order"
        )
    tensor_count, pair_count = cursor.long(), cursor.long()
    if tensor_count > limits.tensors:
        raise over_limit(raw.path, "number of tensors", tensor_count, limits.tensors)
    if pair_count > _PAIRS:
        raise over_limit(raw.path, "number of key-values", pair_count, _PAIRS)
    metadata = _pairs(cursor, pair_count)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= MIB or alignment & (alignment - 1):
        raise cursor.malformed(f"its alignment is {quoted(str(alignment))}, expected a power of two from 8")
    if metadata.get("split.count", 1) not in (0, 1):
        raise unusable(
            "CV-S068",
            raw.path,
            "the file is one part of a split model",
            hint="join the parts first: `llama-gguf-split --merge FIRST-PART OUT.gguf`",
        )
    entries = _tensors(cursor, tensor_count, limits)
    start = cursor.position + -cursor.position % alignment
    return GgufHeader(metadata, _placed(raw, entries, start, alignment))


class _Cursor:
    """Reads the header front to back; the buffer grows as far as it must and the limit allows."""

    def __init__(self, raw: ByteFile, limits: Limits) -> None:
        self.raw = raw
        self.limits = limits
        self.position = 0
        self._data = raw.bytes_at(0, min(raw.size, MIB, limits.header_bytes))

    def malformed(self, message: str, tensor: str | None = None) -> CorruptFile:
        return corrupt(_CODE, self.raw.path, f"the GGUF header is malformed: {message}", tensor=tensor)

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        end = self.position + count
        if end > len(self._data):
            self._grow(end)
        out = self._data[self.position : end]
        self.position = end
        return out

    def _grow(self, end: int) -> None:
        cap = self.limits.header_bytes
        if end > self.raw.size:
            raise self.malformed(f"it asks for byte {end:,}, the file has {self.raw.size:,}")
        if end > cap:
            raise over_limit(self.raw.path, "header size in bytes (at least)", end, cap)
        size = min(self.raw.size, cap, max(end, 2 * len(self._data)))
        self._data += self.raw.bytes_at(len(self._data), size - len(self._data))

    def short(self) -> int:
        """An unsigned number of 32 bits."""
        return int.from_bytes(self.take(4), "little")

    def long(self) -> int:
        """An unsigned number of 64 bits."""
        return int.from_bytes(self.take(8), "little")

    def string(self, what: str, cap: int | None = None) -> str:
        """A length and that many bytes of UTF-8."""
        size = self.long()
        if cap is not None and size > cap:
            raise over_limit(self.raw.path, f"length of a {what} in bytes", size, cap)
        try:
            return self.take(size).decode("utf-8")
        except UnicodeDecodeError:
            raise self.malformed(f"a {what} is not valid UTF-8") from None


def _pairs(cursor: _Cursor, count: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.string("key", cursor.limits.name_bytes)
        if not key or key in out:
            raise cursor.malformed(f"the key {quoted(key)} is empty or there twice")
        out[key] = _value(cursor, key, cursor.short())
    return out


def _value(cursor: _Cursor, key: str, kind: int) -> Any:
    if kind == _STRING:
        return cursor.string("value")
    if kind == _ARRAY:
        return _array(cursor, key, cursor.short(), cursor.long())
    if kind not in _SCALARS:
        raise cursor.malformed(f"the value of {quoted(key)} is of the unknown kind {kind}")
    item = struct.Struct("<" + _SCALARS[kind])
    return _checked(cursor, key, kind, list(item.unpack(cursor.take(item.size))))[0]


def _array(cursor: _Cursor, key: str, kind: int, count: int) -> list[Any]:
    if kind == _STRING:
        if 8 * count > cursor.raw.size:
            raise cursor.malformed(f"{quoted(key)} claims {count:,} strings")
        return [cursor.string("value") for _ in range(count)]
    if kind not in _SCALARS:
        raise cursor.malformed(f"{quoted(key)} is a list of the unknown or nested kind {kind}")
    item = struct.Struct("<" + _SCALARS[kind])
    return _checked(
        cursor, key, kind, [value for (value,) in item.iter_unpack(cursor.take(item.size * count))]
    )


def _checked(cursor: _Cursor, key: str, kind: int, values: list[Any]) -> list[Any]:
    """Truth values as such; anything but 0 and 1 is not one."""
    if kind != _BOOL:
        return values
    if any(value > 1 for value in values):
        raise cursor.malformed(f"{quoted(key)} is neither true nor false")
    return [bool(value) for value in values]


_Entry = tuple[TensorMeta, Encoding, int]


def _tensors(cursor: _Cursor, count: int, limits: Limits) -> list[_Entry]:
    out: list[_Entry] = []
    names: set[str] = set()
    for _ in range(count):
        name = cursor.string("tensor name", limits.name_bytes)
        if name in names:
            raise corrupt("CV-S058", cursor.raw.path, f"{quoted(name)} is listed twice", tensor=name)
        names.add(name)
        rank = cursor.short()
        if rank > _RANK:
            raise over_limit(cursor.raw.path, "rank", rank, _RANK, tensor=name)
        lengths = _LENGTHS[rank].unpack(cursor.take(8 * rank))
        number, offset = struct.unpack("<IQ", cursor.take(12))
        encoding = _encoding(cursor, name, number)
        numel = encoding.size
        for length in lengths:
            numel *= length
            if length >= 1 << 63 or numel >= 1 << 63:
                raise cursor.malformed(f"the shape {list(lengths)} overflows", name)
        if lengths and lengths[0] % encoding.elements:
            blocks = f"{encoding.name} blocks of {encoding.elements}"
            raise cursor.malformed(f"rows of {lengths[0]} elements do not divide into {blocks}", name)
        if not lengths and encoding.elements > 1:
            raise cursor.malformed(f"a single number cannot be stored as {encoding.name}", name)
        out.append((TensorMeta(name, encoding.dtype, lengths[::-1]), encoding, offset))
    return out


def _encoding(cursor: _Cursor, name: str, number: int) -> Encoding:
    found = ENCODINGS.get(number)
    if found is None and number in UNREADABLE:
        message = f"the elements are encoded as {UNREADABLE[number]}, which cannot be read back"
        raise unusable("CV-S067", cursor.raw.path, message, tensor=name)
    if found is None:
        raise corrupt("CV-S067", cursor.raw.path, f"the encoding number {number} is unknown", tensor=name)
    return found


def _placed(raw: ByteFile, entries: list[_Entry], start: int, alignment: int) -> dict[str, Placed]:
    """Tensors follow each other, padded to the alignment, and end where the file ends."""
    out: dict[str, Placed] = {}
    end = 0
    for meta, encoding, offset in sorted(entries, key=lambda entry: entry[2]):
        expected = end + -end % alignment
        nbytes = meta.numel // encoding.elements * encoding.size
        if offset != expected:
            flaw = "overlaps the one before" if offset < end else "does not follow the one before"
            message = f"{quoted(meta.name)} begins at byte {offset:,} of the data and {flaw}"
            raise corrupt("CV-S056", raw.path, message, tensor=meta.name)
        end = offset + nbytes
        if start + end > raw.size:
            message = f"the tensor ends at byte {start + end:,}, the file at {raw.size:,}"
            raise corrupt("CV-S052", raw.path, message, tensor=meta.name, hint="fetch the file again")
        out[meta.name] = Placed(meta, encoding, start + offset, nbytes)
    if raw.size > start + end + -end % alignment:
        raise corrupt("CV-S056", raw.path, f"{raw.size - start - end:,} bytes follow the last tensor")
    return out
