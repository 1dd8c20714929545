"""Element types of stored tensors: their codes in files, sizes, and torch and user-facing names.

Owns the one table. Must not import torch at module level (headers are read without it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cuvee.core.lazy import torch

if TYPE_CHECKING:
    import torch as torch_types


@dataclass(frozen=True, slots=True)
class DType:
    """One element type: `code` as in safetensors headers, `name` as in torch, `size` in bytes."""

    code: str
    name: str
    size: int
    family: Literal["float", "complex", "int", "bool"]

    @property
    def is_float(self) -> bool:
        return self.family == "float"

    @property
    def torch(self) -> torch_types.dtype:
        """The torch dtype of the same name."""
        found: torch_types.dtype = getattr(torch, self.name)
        return found

    def __str__(self) -> str:
        return self.name


_TABLE = (
    DType("F64", "float64", 8, "float"),
    DType("F32", "float32", 4, "float"),
    DType("F16", "float16", 2, "float"),
    DType("BF16", "bfloat16", 2, "float"),
    DType("F8_E4M3", "float8_e4m3fn", 1, "float"),
    DType("F8_E5M2", "float8_e5m2", 1, "float"),
    DType("C64", "complex64", 8, "complex"),
    DType("I64", "int64", 8, "int"),
    DType("I32", "int32", 4, "int"),
    DType("I16", "int16", 2, "int"),
    DType("I8", "int8", 1, "int"),
    DType("U64", "uint64", 8, "int"),
    DType("U32", "uint32", 4, "int"),
    DType("U16", "uint16", 2, "int"),
    DType("U8", "uint8", 1, "int"),
    DType("BOOL", "bool", 1, "bool"),
)

BY_CODE = {d.code: d for d in _TABLE}
BY_NAME = {d.name: d for d in _TABLE}
FLOAT32 = BY_NAME["float32"]
FLOAT64 = BY_NAME["float64"]
BFLOAT16 = BY_NAME["bfloat16"]

# What people write in recipes and on command lines.
_SPELLINGS = {
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp64": "float64",
    "f64": "float64",
    "double": "float64",
}


def parse_dtype(text: str) -> DType | None:
    """The dtype a person means by `bfloat16`, `bf16`, `torch.bfloat16` or `BF16`; None when unknown."""
    word = text.removeprefix("torch.")
    if word in BY_CODE:
        return BY_CODE[word]
    word = word.lower()
    return BY_NAME.get(_SPELLINGS.get(word, word))


def of_torch(dtype: torch_types.dtype) -> DType:
    """The table's entry for a torch dtype."""
    return BY_NAME[str(dtype).removeprefix("torch.")]
