"""The header of a safetensors file, checked strictly and in one pass: bytes in, tensor table out.

Stricter than the reference reader: duplicate keys and unknown fields are refused, names are capped. Entries
are matched one at a time instead of loading the JSON whole, so a hostile header costs no more than an honest
one. Must not open files or import torch.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from cuvee.core.dtypes import BY_CODE, DType
from cuvee.core.limits import Limits
from cuvee.core.tensors import TensorMeta
from cuvee.errors import CorruptFile
from cuvee.formats.refusals import corrupt, over_limit, quoted, unusable
from cuvee.formats.safetensors_diagnosis import explain_entry

METADATA = "__metadata__"
_METADATA_ENTRIES = 65_536
_LARGEST = (1 << 63) - 1

# Codes of the format that have no torch counterpart of whole bytes, or that this version does not merge.
_KNOWN_BUT_UNREAD = {
    "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C128", "F4_E2M1", "I4", "U4",
}  # fmt: skip

_CONTROL = re.compile(rb"[\x00-\x1f]")


def _grammar(pattern: str) -> re.Pattern[bytes]:
    """A compiled pattern in which a blank stands for JSON's white space and INT for a whole number."""
    return re.compile(
        pattern.replace("INT", "(?:0|[1-9][0-9]{0,19})").replace(" ", r"[\x20\t\n\r]*+").encode()
    )


_BLANK = _grammar(" ")
_KEY = _grammar(' (?=")')
_COLON = _grammar(" : ")
_PLAIN = r'"([^"\\\x00-\x1f]*+)"'  # nothing escaped: the common case
_PAIR = _grammar(f" {_PLAIN} : {_PLAIN} ")
_DTYPE = r'"dtype" : "(\w{1,32})"'
_SHAPE = r'"shape" : \[( (?:INT (?:, (?=[0-9])|(?=\]))){0,64}+)\]'
_OFFSETS = r'"data_offsets" : \[ (INT) , (INT) \]'
# Three fields in any order; a repeated one leaves the group of another empty.
_FIELD = f"(?:{_DTYPE}|{_SHAPE}|{_OFFSETS})"
_INFO = _grammar(r"\{ (?:" + _FIELD + r" (?:, (?!\})|(?=\}))){3}\} (?=[,}])")


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors in the order of their bytes, where each begins (from the first data byte), and notes."""

    tensors: dict[str, TensorMeta]
    begins: dict[str, int]
    metadata: dict[str, str]


def parse_header(data: bytes, data_bytes: int, path: Path, limits: Limits) -> Header:
    """The checked header of a file whose data part has `data_bytes` bytes; SourceError when it is refused."""
    entries, metadata = _Scan(data, path, limits).entries()
    ordered = sorted(entries.items(), key=lambda item: (item[1][0], item[1][1]))
    _check_layout(ordered, data_bytes, path)
    return Header(
        tensors={name: entry[2] for name, entry in ordered},
        begins={name: entry[0] for name, entry in ordered},
        metadata=metadata,
    )


_Entry = tuple[int, int, TensorMeta]  # begin, end, what


class _Scan:
    """One walk over the header's bytes."""

    def __init__(self, data: bytes, path: Path, limits: Limits) -> None:
        self.data = data
        self.path = path
        self.limits = limits

    def entries(self) -> tuple[dict[str, _Entry], dict[str, str]]:
        """Every tensor's entry, and the metadata."""
        data, limits = self.data, self.limits
        if data[:1] != b"{":
            raise self.malformed("the header does not begin with `{`")
        found: dict[str, _Entry] = {}
        metadata: dict[str, str] | None = None
        position = self.blank(1)
        while data[position : position + 1] != b"}" or found or metadata is not None:
            name, position = self.key(position, None if metadata is None else METADATA, found)
            if name == METADATA:
                metadata, position = self.string_map(position)
            else:
                found[name], position = self.entry(name, position)
                if len(found) > limits.tensors:
                    raise over_limit(self.path, "number of tensors", len(found), limits.tensors)
            if data[position : position + 1] == b"}":
                break
            position += 1
        if data[position + 1 :].strip(b" \t\n\r"):
            raise self.malformed(f"bytes follow the closing brace at byte {8 + position + 1:,}")
        return found, metadata or {}

    def key(self, position: int, metadata: str | None, found: dict[str, _Entry]) -> tuple[str, int]:
        """The next key, checked to be new, and the position of its value."""
        quote = _KEY.match(self.data, position)
        if quote is None:
            raise self.malformed(f"expected a name in quotes at byte {8 + position:,}")
        name, position = self.string(quote.end(), "name")
        if name in found or name == metadata:
            raise corrupt("CV-S058", self.path, f"{quoted(name)} is listed twice in the header", tensor=name)
        if name != METADATA and len(name.encode()) > self.limits.name_bytes:
            size, cap = len(name.encode()), self.limits.name_bytes
            raise over_limit(self.path, "length of a name in bytes", size, cap, tensor=name)
        colon = _COLON.match(self.data, position)
        if colon is None:
            raise self.malformed(f"expected `:` after {quoted(name)}")
        return name, colon.end()

    def entry(self, name: str, position: int) -> tuple[_Entry, int]:
        """One tensor's dtype, shape and offsets."""
        match = _INFO.match(self.data, position)
        groups: tuple[bytes | None, ...] = match.groups() if match else (None,)
        if match is None or None in groups:
            raise explain_entry(self.data, position, name, self.path, self.limits.rank)
        code, dims, begin, end = match.groups()
        dtype = self.dtype(code.decode(), name)
        shape = tuple(map(int, dims.split(b","))) if dims.strip() else ()
        meta = TensorMeta(name, dtype, shape)
        self.check_size(meta, int(begin), int(end))
        return (int(begin), int(end), meta), match.end()

    def dtype(self, code: str, name: str) -> DType:
        found = BY_CODE.get(code)
        if found is None and code in _KNOWN_BUT_UNREAD:
            raise unusable(
                "CV-S057",
                self.path,
                f"the elements are `{code}`, which cuvee does not read",
                tensor=name,
                hint="convert the checkpoint to bfloat16 with the library that wrote it",
            )
        if found is None:
            raise corrupt("CV-S057", self.path, f"the dtype {quoted(code)} is unknown", tensor=name)
        return found

    def check_size(self, meta: TensorMeta, begin: int, end: int) -> None:
        """Rank within the limit, no overflow at any step of the product, as many bytes as the shape says."""
        if len(meta.shape) > self.limits.rank:
            raise over_limit(self.path, "rank", len(meta.shape), self.limits.rank, tensor=meta.name)
        size = 8 * meta.dtype.size  # in bits, as the reference reader counts
        for length in meta.shape:
            size *= length
            if size > _LARGEST or length > _LARGEST:
                message = f"the shape {list(meta.shape)} overflows"
                raise corrupt("CV-S055", self.path, message, tensor=meta.name)
        if end < begin or end > _LARGEST:
            message = f"the offsets [{begin}, {end}] are not a range"
            raise corrupt("CV-S055", self.path, message, tensor=meta.name)
        if end - begin != size // 8:
            raise corrupt(
                "CV-S055",
                self.path,
                f"the offsets hold {end - begin:,} bytes, but {meta.dtype.code} of shape {list(meta.shape)}"
                f" takes {size // 8:,}",
                tensor=meta.name,
            )

    def string_map(self, position: int) -> tuple[dict[str, str], int]:
        """The metadata: an object of strings."""
        data = self.data
        if data[position : position + 1] != b"{":
            raise corrupt("CV-S059", self.path, f"`{METADATA}` is not an object of strings")
        out: dict[str, str] = {}
        position = self.blank(position + 1)
        while data[position : position + 1] != b"}" or out:
            key, value, position = self.pair(position)
            if key in out:
                raise corrupt("CV-S058", self.path, f"the metadata key {quoted(key)} is listed twice")
            out[key] = value
            if len(out) > _METADATA_ENTRIES:
                raise over_limit(self.path, "number of metadata entries", len(out), _METADATA_ENTRIES)
            if data[position : position + 1] == b"}":
                break
            position = self.comma(position)
        position = self.blank(position + 1)
        if data[position : position + 1] not in (b",", b"}"):
            raise self.malformed(f"expected `,` or `}}` after `{METADATA}`")
        return out, position

    def pair(self, position: int) -> tuple[str, str, int]:
        """A metadata key, its value, and the position of what follows."""
        if plain := _PAIR.match(self.data, position):
            try:
                return plain[1].decode(), plain[2].decode(), plain.end()
            except ValueError:
                pass  # the careful way below names the flaw
        quote = _KEY.match(self.data, position)
        if quote is None:
            raise self.malformed(f"expected a key of `{METADATA}` in quotes at byte {8 + position:,}")
        key, position = self.string(quote.end(), "metadata key")
        colon = _COLON.match(self.data, position)
        if colon is None:
            raise self.malformed(f"expected `:` after the metadata key {quoted(key)}")
        if self.data[colon.end() : colon.end() + 1] != b'"':
            raise corrupt("CV-S059", self.path, f"the metadata value of {quoted(key)} is not a string")
        value, position = self.string(colon.end(), "metadata value")
        return key, value, self.blank(position)

    def string(self, position: int, what: str) -> tuple[str, int]:
        """The JSON string that opens at `position`, and the position after it."""
        data = self.data
        end = data.find(b'"', position + 1)
        while end > 0 and _escaped(data, end):
            end = data.find(b'"', end + 1)
        if end < 0:
            raise self.malformed(f"a {what} opens at byte {8 + position:,} of the file and never closes")
        raw = data[position + 1 : end]
        try:
            if b"\\" in raw:
                text = str(json.loads(data[position : end + 1]))
                text.encode()  # half of a surrogate pair cannot be encoded
            else:
                text = raw.decode()
        except ValueError:
            raise self.malformed(f"a {what} is not valid UTF-8 text at byte {8 + position:,}") from None
        if _CONTROL.search(raw):
            raise self.malformed(f"a {what} holds a control character at byte {8 + position:,}")
        return text, end + 1

    def blank(self, position: int) -> int:
        """The position after white space."""
        match = _BLANK.match(self.data, position)
        return match.end() if match else position

    def comma(self, position: int) -> int:
        if self.data[position : position + 1] != b",":
            raise self.malformed(f"expected `,` or `}}` at byte {8 + position:,}")
        return position + 1

    def malformed(self, message: str) -> CorruptFile:
        return corrupt("CV-S054", self.path, f"the header is not valid JSON: {message}")


def _escaped(data: bytes, quote: int) -> bool:
    """Whether the quotation mark there is preceded by an odd number of backslashes."""
    start = quote
    while data[start - 1 : start] == b"\\":
        start -= 1
    return (quote - start) % 2 == 1


def _check_layout(ordered: list[tuple[str, _Entry]], data_bytes: int, path: Path) -> None:
    """Tensors follow each other without overlap or gap and fill the data part exactly."""
    end, before = 0, None
    for name, (begin, stop, _) in ordered:
        if begin < end:
            message = f"the bytes of {quoted(name)} overlap those of {quoted(before or name)}"
            raise corrupt("CV-S056", path, message, tensor=name)
        if begin > end:
            message = f"{begin - end:,} bytes before {quoted(name)} belong to no tensor"
            raise corrupt("CV-S056", path, message, tensor=name)
        end, before = stop, name
    if data_bytes < end:
        name = next(n for n, (_, stop, _) in ordered if stop > data_bytes)
        raise corrupt(
            "CV-S052",
            path,
            f"the file is cut short: its tensors take {end:,} bytes, {data_bytes:,} are there",
            tensor=name,
            hint="fetch the file again",
        )
    if data_bytes > end:
        raise corrupt("CV-S056", path, f"{data_bytes - end:,} bytes follow the last tensor", tensor=before)
