"""A packed expert on disk: what its table says, and the bytes of one coded tensor, both checked strictly.

    cuvee_packed.json      the base (a reference), and each tensor: type, shape, form, digest
    packed.safetensors     `plain.N` as stored, `coded.N` as the bytes below, `shares.TYPE` the common frequencies

N is a tensor's place in the table. A tensor of form `same` equals the base's and takes no bytes. The bytes of a coded
tensor: size of its own frequencies (u32; 0: the common ones), those, for each chunk its size (u32) and the first 8
bytes of the BLAKE3 of what it decodes to, then the chunks' bodies. A chunk of no bytes equals the base's; one as large
as its elements holds them as they are; any other is coded (`packed_codec`). Frequencies: for each context the number
of tokens (u8), then that many shares (u16). Must not know sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from blake3 import blake3

from cuvee.core.digests import canonical_json
from cuvee.core.dtypes import BY_CODE
from cuvee.core.lazy import numpy
from cuvee.core.limits import Limits
from cuvee.core.tensors import TensorMeta
from cuvee.errors import CorruptFile
from cuvee.formats.folder_files import PACKED
from cuvee.formats.json_file import parse_json
from cuvee.formats.packed_codec import CHUNK, CONTEXTS, SLOTS, TOKENS
from cuvee.formats.refusals import corrupt, over_limit

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

TABLE = PACKED
STEM = "packed"
VERSION = 1
HASH = 8
ENTRY = 4 + HASH
MOST_SHARES = CONTEXTS * (1 + 2 * TOKENS)
Form = Literal["same", "plain", "coded"]
_FORMS = ("same", "plain", "coded")
_LARGEST = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Packed:
    """One tensor of the table. `digest` is the tensor digest of its own bytes, `ends` of its first and last ones."""

    meta: TensorMeta
    form: Form
    digest: str
    ends: str

    @property
    def chunks(self) -> int:
        return -(-self.meta.numel // CHUNK)


@dataclass(frozen=True, slots=True)
class Table:
    """What a packed expert says of itself: the reference of its base, and its tensors in order."""

    base: str
    tensors: Mapping[str, Packed]

    def encode(self) -> bytes:
        """The table as a file."""
        rows = [
            [name, p.meta.dtype.code, list(p.meta.shape), p.form, p.digest, p.ends]
            for name, p in self.tensors.items()
        ]
        return canonical_json({"cuvee_packed": VERSION, "base": self.base, "tensors": rows}) + b"\n"


@dataclass(frozen=True, slots=True)
class Chunks:
    """Where the chunks of a coded tensor lie within its bytes: ends of bodies, and hashes of what they decode to."""

    shares: Array | None
    begin: int
    ends: tuple[int, ...]
    hashes: bytes

    def span(self, chunk: int) -> tuple[int, int]:
        """First byte and size of a body."""
        before = self.ends[chunk - 1] if chunk else 0
        return self.begin + before, self.ends[chunk] - before

    def hash(self, chunk: int) -> bytes:
        """Of the chunk's decoded bytes."""
        return self.hashes[chunk * HASH : (chunk + 1) * HASH]


def parse_table(data: bytes, path: Path, limits: Limits) -> Table:
    """The checked table; CorruptFile when it contradicts itself or passes a limit."""
    value = parse_json(data, path, limits)
    if not isinstance(value, dict) or set(value) != {"cuvee_packed", "base", "tensors"}:
        raise _malformed(path, "it must hold `cuvee_packed`, `base` and `tensors`")
    if value["cuvee_packed"] != VERSION or isinstance(value["cuvee_packed"], bool):
        raise _malformed(path, f"its form is not {VERSION}, the one that this version reads")
    base, rows = value["base"], value["tensors"]
    if not isinstance(base, str) or not base or "\0" in base or not isinstance(rows, list):
        raise _malformed(path, "`base` must be a text and `tensors` a list")
    if len(rows) > limits.tensors:
        raise over_limit(path, "number of tensors", len(rows), limits.tensors)
    tensors: dict[str, Packed] = {}
    for row in rows:
        packed = _row(row, path, limits)
        if packed.meta.name in tensors:
            raise _malformed(path, "a tensor is listed twice", packed.meta.name)
        tensors[packed.meta.name] = packed
    return Table(base, tensors)


def _row(row: Any, path: Path, limits: Limits) -> Packed:
    if not isinstance(row, list) or len(row) != 6:
        raise _malformed(path, "a tensor must be name, type, shape, form and two digests")
    name, code, shape, form, digest, ends = row
    if not isinstance(name, str) or len(name.encode()) > limits.name_bytes:
        raise _malformed(path, "a tensor's name is too long or not a text")
    if not isinstance(code, str) or code not in BY_CODE or form not in _FORMS:
        raise _malformed(path, "its type or form is unknown", name)
    sizes = shape if isinstance(shape, list) else [-1]
    if len(sizes) > limits.rank or not all(type(size) is int and 0 <= size <= _LARGEST for size in sizes):
        raise _malformed(path, "its shape is not a list of sizes", name)
    meta = TensorMeta(name, BY_CODE[code], tuple(sizes))
    if meta.nbytes > _LARGEST:
        raise _malformed(path, "its shape overflows", name)
    if not _hex(digest, 64) or not _hex(ends, 16):
        raise _malformed(path, "its digests are not digests", name)
    return Packed(meta, form, digest, ends)


def encode_chunks(shares: Array | None, sizes: list[int], hashes: list[bytes]) -> bytes:
    """What stands before the bodies of a coded tensor."""
    own = b"" if shares is None else encode_shares(shares)
    index = b"".join(size.to_bytes(4, "little") + digest for size, digest in zip(sizes, hashes, strict=True))
    return len(own).to_bytes(4, "little") + own + index


def parse_chunks(read: Any, nbytes: int, packed: Packed, path: Path) -> Chunks:
    """The checked index of a coded tensor of `nbytes`; `read(offset, count)` gives its bytes."""
    name, count = packed.meta.name, packed.chunks
    own = int.from_bytes(read(0, 4), "little") if nbytes >= 4 else 0
    begin = 4 + own + ENTRY * count
    if own > MOST_SHARES or begin > nbytes:
        raise _broken(path, "its index is longer than its bytes", name)
    head = read(4, begin - 4)
    index = numpy.frombuffer(head, numpy.uint8, ENTRY * count, own).reshape(count, ENTRY)
    sizes = index[:, :4].copy().view("<u4").ravel().tolist()
    size = packed.meta.dtype.size
    last = (packed.meta.numel - 1) % CHUNK + 1 if count else 0
    for number, found in enumerate(sizes):
        if found > size * (last if number == count - 1 else CHUNK):
            raise _broken(path, "a chunk is larger than its elements", name)
    ends = tuple(accumulate(sizes))
    if begin + (ends[-1] if ends else 0) != nbytes:
        raise _broken(path, "its chunks do not fill its bytes", name)
    shares = parse_shares(head[:own], path, name) if own else None
    return Chunks(shares, begin, ends, index[:, 4:].tobytes())


def encode_shares(shares: Array) -> bytes:
    """Frequencies as bytes; see the head of this module."""
    found = bytearray()
    for row in shares:
        used = int(numpy.flatnonzero(row)[-1]) + 1 if row.any() else 0
        found.append(used)
        found += row[:used].astype("<u2").tobytes()
    return bytes(found)


def parse_shares(data: bytes, path: Path, name: str) -> Array:
    """The checked frequencies: of each context none, or 2048 in all."""
    shares = numpy.zeros((CONTEXTS, TOKENS), numpy.uint16)
    at = 0
    for context in range(CONTEXTS):
        used = data[at] if at < len(data) else TOKENS + 1
        if used > TOKENS or at + 1 + 2 * used > len(data):
            raise _broken(path, "its frequencies are cut short", name)
        shares[context, :used] = numpy.frombuffer(data, "<u2", used, at + 1)
        at += 1 + 2 * used
    sums = shares.sum(1, dtype=numpy.int64)
    if at != len(data) or not numpy.isin(sums, (0, SLOTS)).all():
        raise _broken(path, f"its frequencies do not add up to {SLOTS}", name)
    return shares


def chunk_hash(values: Array) -> bytes:
    """What the index keeps of a chunk's decoded elements."""
    return blake3(values.view(numpy.uint8).data).digest(HASH)


def _hex(text: Any, digits: int) -> bool:
    return isinstance(text, str) and len(text) == digits and not set(text) - set("0123456789abcdef")


def _malformed(path: Path, message: str, name: str | None = None) -> CorruptFile:
    return corrupt("CV-S202", path, f"the table of the packed expert is malformed: {message}", tensor=name)


def _broken(path: Path, message: str, name: str) -> CorruptFile:
    return corrupt("CV-S203", path, f"the packed tensor is malformed: {message}", tensor=name)
