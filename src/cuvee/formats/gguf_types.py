"""The element encodings of GGUF files: number, name, elements and bytes per block, dtype where one is plain.

A fact of the format, kept here so that headers are read without the `gguf` package (tests compare the two).
"""

from __future__ import annotations

from dataclasses import dataclass

from cuvee.core.dtypes import BY_CODE, FLOAT32, DType


@dataclass(frozen=True, slots=True)
class Encoding:
    """How runs of `elements` elements are packed into `size` bytes; `plain` when each is simply stored."""

    name: str
    elements: int
    size: int
    plain: DType | None = None

    @property
    def dtype(self) -> DType:
        """What reading gives."""
        return self.plain or FLOAT32


_PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}

# Blocks that the `gguf` package can turn into float32.
_PACKED = {
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
}

ENCODINGS = {
    number: Encoding(code, 1, BY_CODE[code].size, BY_CODE[code]) for number, code in _PLAIN.items()
} | {number: Encoding(*row) for number, row in _PACKED.items()}

# Encodings that exist but are only used inside computations, or have been withdrawn.
UNREADABLE = {4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 41: "Q1_0"}

_BY_NAME = {encoding.name: encoding for encoding in ENCODINGS.values()}


def packed_bytes(name: str, elements: int) -> int:
    """Bytes that so many elements take under the encoding of this name, in whole blocks."""
    encoding = _BY_NAME[name]
    return -(-elements // encoding.elements) * encoding.size
