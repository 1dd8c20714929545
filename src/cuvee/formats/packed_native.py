"""The codec of packed tensors in C, where a compiler is found; else the reference, with the same results.

Owns when C may be used: never unless it agreed with the reference in this process, nor where `CUVEE_KERNELS` is off.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core import native
from cuvee.core.lazy import numpy
from cuvee.formats import packed_codec as reference
from cuvee.formats.packed_codec import CHUNK, CONTEXTS, KINDS, TOKENS, Kind, Part

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

SOURCE = Path(__file__).with_name("packed_codec.c")
PADDING = 128  # bytes that may be read after a body


class _Kind(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int32) for name in ("size", "shift", "mask", "top"))


class Native:
    """The functions of the library; calls give other threads way."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        pointer, wide = ctypes.c_void_p, ctypes.c_int64
        self._count, self._encode = library.cuvee_packed_count, library.cuvee_packed_encode
        self._decode = library.cuvee_packed_decode
        self._count.restype, self._count.argtypes = None, [pointer, pointer, wide, pointer, pointer]
        self._encode.restype, self._decode.restype = wide, ctypes.c_int32
        self._encode.argtypes = [pointer, pointer, wide, pointer, pointer, pointer, wide, pointer]
        self._decode.argtypes = [ctypes.c_int32, *[pointer] * 3, wide, *[pointer] * 3]

    def counted(self, base: Array, tuned: Array, kind: Kind) -> Array:
        """See `packed_codec.counted`."""
        counts = numpy.zeros((CONTEXTS, TOKENS), numpy.uint64)
        self._count(_at(base), _at(tuned), len(base), ctypes.byref(_kind(kind)), _at(counts))
        return counts.astype(numpy.int64)

    def encode(self, base: Array, tuned: Array, kind: Kind, table: Array, room: int) -> bytes | None:
        """See `packed_codec.encode`."""
        out, scratch = numpy.empty(max(room, 1), numpy.uint8), numpy.empty(2 * len(base) + 16, numpy.uint32)
        where = (_at(base), _at(tuned), len(base), ctypes.byref(_kind(kind)), _at(table))
        size = self._encode(*where, _at(out), room, _at(scratch))
        return None if size < 0 else out[:size].tobytes()

    def decode(self, bodies: Sequence[bytes], bases: Array, kind: Kind, table: Array) -> Array:
        """See `packed_codec.decode`."""
        out = numpy.empty_like(bases)
        held = [numpy.frombuffer(body + bytes(PADDING), numpy.uint8) for body in bodies]
        parts = zip(held, map(len, bodies), bases, out, strict=True)
        self.decode_into(list(parts), kind, table)
        return out

    def decode_into(self, parts: Sequence[Part], kind: Kind, table: Array) -> None:
        """See `packed_codec.decode_into`, two of a length at a time.

        At least 128 bytes can be read behind each body.
        """
        first = 0
        while first < len(parts):
            pair = parts[first : first + 2]
            pair = pair if len({len(base) for _, _, base, _ in pair}) == 1 else pair[:1]
            bodies, sizes, bases, outs = zip(*pair, strict=True)
            lengths = (ctypes.c_int64 * len(pair))(*sizes)
            places = [(ctypes.c_void_p * len(pair))(*map(_at, arrays)) for arrays in (bodies, bases, outs)]
            where = (places[0], lengths, places[1], len(bases[0]), ctypes.byref(_kind(kind)))
            if not self._decode(len(pair), *where, _at(table), places[2]):
                raise ValueError("the body does not decode")
            first += len(pair)


def codec() -> Any:
    """What counts, encodes and decodes: C where it can be had and agrees with the reference."""
    return native.agreed(SOURCE, Native, _agrees) or reference


def _agrees(loaded: Native) -> bool:
    """Whether C makes the same bytes as the reference of random, equal and hostile bits, and reads them back."""
    random = numpy.random.default_rng(7)
    for kind in KINDS.values():
        whole = f"u{kind.size}"
        for count in (1, 77, reference.LONG + 5):
            base = random.integers(0, 1 << 8 * kind.size, count, dtype=whole)
            steps = (random.standard_normal(count) ** 3 * 4).astype("i4")
            tuned = (base + steps.astype(whole)).astype(whole)
            counts = reference.counted(base, tuned, kind)
            shares = reference.frequencies(counts)
            there, back = reference.coding(shares), reference.decoding(shares)
            body = reference.encode(base, tuned, kind, there, 8 * count + 1024)
            if body is None or not numpy.array_equal(counts, loaded.counted(base, tuned, kind)):
                return False
            if loaded.encode(base, tuned, kind, there, len(body)) != body:
                return False
            try:
                found = loaded.decode(
                    [body] * 3, numpy.stack([base] * 3), kind, back
                )  # a pair, and one alone
            except ValueError:
                return False
            if not (found == tuned).all():
                return False
    return True


def _at(array: Array) -> int:
    found: int = array.ctypes.data
    return found


def _kind(kind: Kind) -> _Kind:
    return _Kind(kind.size, kind.shift, kind.mask, kind.top)


__all__ = ["CHUNK", "Native", "codec"]
