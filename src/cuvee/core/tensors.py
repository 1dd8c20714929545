"""What is known of a tensor without reading it, and where its bytes lie."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cuvee.core.dtypes import DType


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """Name, dtype and shape of one tensor."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes the tensor takes in a plain file."""
        return self.numel * self.dtype.size


@dataclass(frozen=True, slots=True)
class Stored:
    """How a tensor lies in its file: the name of its type or packing (`Q4_K`), and the bytes that reading it takes."""

    kind: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Held:
    """A run of bytes of this process's memory that holds one tensor, row-major, little-endian, without gaps.

    It stays where it is as long as its source is open.
    """

    address: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of bytes in a file that holds one tensor, row-major, little-endian, without gaps."""

    path: Path
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Pieces:
    """Runs of bytes in files that hold one tensor together, in its order.

    Those that are not `own` lie in other sources, which hold the same bytes there.
    """

    parts: tuple[Extent, ...]
    own: tuple[bool, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return sum(part.nbytes for part in self.parts)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A tensor whose bytes are made on the way: `fill(view, first)` makes those of the elements from `first` on."""

    nbytes: int
    fill: Callable[[memoryview, int], None]
