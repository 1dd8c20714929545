"""Floats as integer differences from a base, entropy coded: the reference, in NumPy.

Bit patterns are put in the order of their values, so that neighbouring floats are neighbouring integers. The difference
of tuned and base (modulo the width) is folded to 0, -1, 1, -2, …; below 16 it is its own token, above it is told by its
highest bit and the two that follow (4 tokens for each power of two), and the bits below those are stored as they are.
Tokens are coded by interleaved range coders (rANS: 32 states, 16 bits at a time, frequencies of 11 bits), each under
the frequencies of its context, which is the exponent of the base: the nearer to zero a weight is, the more steps an
update moves it.

    body of a chunk    words: u32, states: u32 for each lane, words: u16, then the stored bits, least significant first
    lanes              32, or 4 in chunks of less than 16384 elements; element i is coded in lane i mod lanes

All numbers are little-endian. `packed_native` does the same in C. Must not know files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from cuvee.core.lazy import numpy

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

CHUNK = 1 << 16  # elements
SCALE = 11
SLOTS = 1 << SCALE
CONTEXTS = 32
TOKENS = 128
DIRECT = 16
LONG = 16384  # elements from which on all lanes are used
_LOWEST = 1 << 16


Part: TypeAlias = (
    "tuple[Array, int, Array, Array]"  # bytes that begin with a body, its size, the base, where to
)


@dataclass(frozen=True, slots=True)
class Kind:
    """How a type's bits lie: bytes of an element, bits below the exponent, its mask, and that of context 0."""

    size: int
    shift: int
    mask: int
    top: int


KINDS = {"bfloat16": Kind(2, 7, 255, 130), "float16": Kind(2, 10, 31, 31), "float32": Kind(4, 23, 255, 130)}


def lanes_of(count: int) -> int:
    """Coders that share a chunk of so many elements."""
    return 32 if count >= LONG else 4


def counted(base: Array, tuned: Array, kind: Kind) -> Array:
    """How often each token stands in each context: int64 (CONTEXTS, TOKENS); bits as unsigned integers."""
    places = _contexts(base, kind).astype(numpy.int64) * TOKENS + _tokens(_folded(base, tuned, kind))
    return numpy.bincount(places, minlength=CONTEXTS * TOKENS).reshape(CONTEXTS, TOKENS)


def frequencies(counts: Array) -> Array:
    """Shares of 2048, at least 1 for every token that was seen, by context: uint16; contexts never seen stay 0."""
    found = numpy.zeros((CONTEXTS, TOKENS), numpy.int64)
    for context in numpy.flatnonzero(counts.sum(1)):
        row = counts[context]
        seen = row > 0
        share = numpy.where(seen, numpy.maximum(1, row * SLOTS // row.sum()), 0)
        while (excess := int(share.sum()) - SLOTS) != 0:  # the largest ones take it, where it matters least
            place = int(numpy.argmax(share))
            share[place] -= max(1, min(excess, int(share[place]) // 2)) if excess > 0 else excess
        found[context] = share
    return found.astype(numpy.uint16)


def coding(shares: Array) -> Array:
    """For the encoder: frequency | start << 16 of each token, uint32 (CONTEXTS, TOKENS)."""
    wide = shares.astype(numpy.uint32)
    starts = numpy.cumsum(wide, axis=1, dtype=numpy.uint32) - wide
    found: Array = wide | starts << 16
    return numpy.ascontiguousarray(found)


def decoding(shares: Array) -> Array:
    """For the decoder: token | frequency << 7 | (slot - start) << 19 of each slot, uint32 (CONTEXTS · SLOTS)."""
    table = numpy.zeros((CONTEXTS, SLOTS), numpy.uint32)
    for context in numpy.flatnonzero(shares.sum(1)):
        row = shares[context].astype(numpy.int64)
        tokens = numpy.repeat(numpy.arange(TOKENS), row)
        within = numpy.arange(SLOTS) - (numpy.cumsum(row) - row)[tokens]
        table[context] = tokens | row[tokens] << 7 | within << 19
    found: Array = table.reshape(-1)
    return found


def encode(base: Array, tuned: Array, kind: Kind, table: Array, room: int) -> bytes | None:
    """The body of a chunk; None where it would take more than `room` bytes, or a token has no frequency."""
    count = len(base)
    folded = _folded(base, tuned, kind)
    tokens = _tokens(folded)
    places = table[_contexts(base, kind), tokens]
    if not (places & 0xFFFF).all():
        return None
    states, words = _encoded(places, lanes_of(count))
    body = len(words).to_bytes(4, "little") + states.astype("<u4").tobytes() + words.astype("<u2").tobytes()
    body += _stored(folded, tokens)
    return body if len(body) <= room else None


def decode(bodies: Sequence[bytes], bases: Array, kind: Kind, table: Array) -> Array:
    """Bit patterns of chunks (k, n) from their bodies and the base's (k, n); ValueError where a body is wrong."""
    count = bases.shape[1]
    contexts = _contexts(bases, kind)
    lanes = lanes_of(count)
    split = [_split(body, lanes) for body in bodies]
    tokens = _decoded([s[0] for s in split], [s[1] for s in split], contexts, table, lanes)
    out = numpy.empty_like(bases)
    for row, (_, _, raw) in enumerate(split):
        out[row] = _moved(bases[row], _unfolded(tokens[row], raw), kind)
    return out


def _encoded(places: Array, lanes: int) -> tuple[Array, Array]:
    """Last states and the words between, from the last line of elements to the first."""
    rows = -(-len(places) // lanes)
    padded = numpy.zeros(rows * lanes, numpy.uint64)
    padded[: len(places)] = places
    lines = padded.reshape(rows, lanes)
    states = numpy.full(lanes, _LOWEST, numpy.uint64)
    words = numpy.zeros((rows, lanes), numpy.uint16)
    told = numpy.zeros((rows, lanes), bool)
    for row in range(rows - 1, -1, -1):
        share, start = lines[row] & 0xFFFF, lines[row] >> 16
        here = share > 0
        full = here & (states >= share << (32 - SCALE))
        words[row], told[row] = states & 0xFFFF, full
        states = numpy.where(full, states >> 16, states)
        share = numpy.maximum(share, 1)
        states = numpy.where(here, (states // share << SCALE) + states % share + start, states)
    return states, words[told]


def _split(body: bytes, lanes: int) -> tuple[Array, Array, bytes]:
    """States, words and stored bits of a body."""
    start = 4 + 4 * lanes
    number = int.from_bytes(body[:4], "little")
    if len(body) < start or 2 * number > len(body) - start:
        raise ValueError("the body is shorter than it says")
    states = numpy.frombuffer(body, "<u4", lanes, 4)
    return states, numpy.frombuffer(body, "<u2", number, start), body[start + 2 * number :]


def _decoded(
    states: Sequence[Array], words: Sequence[Array], contexts: Array, table: Array, lanes: int
) -> Array:
    """Tokens of all chunks, one line of lanes after the other."""
    chunks, count = contexts.shape
    lengths = numpy.array([len(w) for w in words])
    stream = numpy.zeros((chunks, int(lengths.max(initial=0)) + lanes), numpy.uint32)
    for row, found in enumerate(words):
        stream[row, : len(found)] = found
    state = numpy.stack(list(states)).astype(numpy.uint32)
    at = numpy.zeros(chunks, numpy.int64)
    rows = numpy.arange(chunks)[:, None]
    tokens = numpy.empty((chunks, count), numpy.uint8)
    for first in range(0, count, lanes):
        part = slice(first, min(first + lanes, count))
        now = state[:, : part.stop - first]
        entry = table[contexts[:, part].astype(numpy.int64) * SLOTS + (now & (SLOTS - 1))]
        tokens[:, part] = entry & (TOKENS - 1)
        now[:] = (entry >> 7 & 4095) * (now >> SCALE) + (entry >> 19)
        low = now < _LOWEST
        ends = numpy.cumsum(low, axis=1)
        following = numpy.minimum(at[:, None] + ends - 1, stream.shape[1] - 1)
        now[:] = numpy.where(low, now << 16 | stream[rows, following], now)
        at += ends[:, -1]
    if (at != lengths).any() or (state != _LOWEST).any():
        raise ValueError("the words do not end where the elements do")
    return tokens


def _stored(folded: Array, tokens: Array) -> bytes:
    """The bits below what tokens tell, one element after the other."""
    extra = _extra(tokens)
    where = numpy.flatnonzero(extra)
    widths = extra[where]
    values = folded[where].astype(numpy.uint64)
    ends = numpy.cumsum(widths)
    bits = numpy.zeros(int(ends[-1]) if len(ends) else 0, numpy.uint8)
    for bit in range(int(widths.max(initial=0))):
        has = widths > bit
        bits[(ends - widths)[has] + bit] = values[has] >> numpy.uint64(bit) & numpy.uint64(1)
    return numpy.packbits(bits, bitorder="little").tobytes()


def _unfolded(tokens: Array, raw: bytes) -> Array:
    """Folded differences from tokens and stored bits."""
    folded = tokens.astype(numpy.uint32)
    extra = _extra(tokens)
    where = numpy.flatnonzero(extra)
    widths = extra[where]
    ends = numpy.cumsum(widths)
    total = int(ends[-1]) if len(ends) else 0
    if (total + 7) // 8 != len(raw):
        raise ValueError("the stored bits do not end where the elements do")
    bits = numpy.unpackbits(numpy.frombuffer(raw, numpy.uint8), bitorder="little")
    values = (4 + ((folded[where] - DIRECT) & 3)) << widths.astype(numpy.uint32)
    for bit in range(int(widths.max(initial=0))):
        has = widths > bit
        values[has] |= bits[(ends - widths)[has] + bit].astype(numpy.uint32) << numpy.uint32(bit)
    folded[where] = values
    return folded


def _contexts(bits: Array, kind: Kind) -> Array:
    exponent = (bits >> kind.shift).astype(numpy.int64) & kind.mask
    found: Array = numpy.clip(kind.top - exponent, 0, CONTEXTS - 1).astype(numpy.uint8)
    return found


def _ordered(bits: Array, kind: Kind) -> Array:
    sign = 1 << (8 * kind.size - 1)
    return numpy.where(bits & sign, ~bits, bits | sign).astype(bits.dtype)


def _folded(base: Array, tuned: Array, kind: Kind) -> Array:
    steps = _ordered(tuned, kind) - _ordered(base, kind)
    signed = steps.view(numpy.int16 if kind.size == 2 else numpy.int32).astype(numpy.int64)
    return (signed << 1 ^ signed >> 63).astype(numpy.uint32)


def _moved(base: Array, folded: Array, kind: Kind) -> Array:
    sign = 1 << (8 * kind.size - 1)
    signed = folded.astype(numpy.int64)
    rank = (_ordered(base, kind).astype(numpy.int64) + (signed >> 1 ^ -(signed & 1))).astype(base.dtype)
    found: Array = numpy.where(rank & sign, rank ^ sign, ~rank).astype(base.dtype)
    return found


def _tokens(folded: Array) -> Array:
    top = numpy.floor(numpy.log2(numpy.maximum(folded, 1).astype(numpy.float64))).astype(numpy.int64)
    after = folded.astype(numpy.int64) >> numpy.maximum(top - 2, 0) & 3
    return numpy.where(folded < DIRECT, folded, DIRECT + 4 * (top - 4) + after).astype(numpy.int64)


def _extra(tokens: Array) -> Array:
    wide = tokens.astype(numpy.int64)
    return numpy.where(wide < DIRECT, 0, 2 + (wide - DIRECT) // 4)


def decode_into(parts: Sequence[Part], kind: Kind, table: Array) -> None:
    """As `decode` for bodies in memory, each from its first byte to its own place; ValueError where one is wrong."""
    for body, nbytes, base, out in parts:
        out[:] = decode([body[:nbytes].tobytes()], base[None], kind, table)[0]
