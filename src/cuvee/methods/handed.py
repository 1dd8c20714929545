"""What stages are handed: blocks of tensors and where they stand, streams, random numbers, decompositions.

Values and protocols alone; who makes them is the engine's business, and `cuvee.testing` has some of its own. Stages
take these names from `methods.contract`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Heads:
    """How the attention of a module is built: `query` heads of `size` dimensions, keys and values shared in `groups`.

    The first `rotated` dimensions of a head turn with the position: each with the one half that width further (`half`)
    or with its neighbour (`interleaved`). `norm`: the queries and keys of a head pass an RMS norm, one gain for all.
    """

    query: int
    groups: int
    size: int
    rope: Literal["none", "half", "interleaved"] = "none"
    rotated: int = 0
    norm: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """What a tensor of the output is: its name, its role (one of `families.ROLES`, or empty), its layer counted from 0
    (None outside the layers) and how many layers its module has (0 where unknown); for stages that declare
    `heads=True` also how the attention of its module is built.
    """

    name: str = ""
    role: str = ""
    layer: int | None = None
    layers: int = 0
    heads: Heads | None = None


NOWHERE = Place()


@dataclass(frozen=True, slots=True)
class Block:
    """A run of elements of one tensor, and the inputs of a stage there.

    `tensors` has one entry per input (one for condition and rescale stages, before what `beside` adds), each shaped
    as the stage's access says. `start` is the index of the first element within the flattened tensor, `shape` the whole
    tensor's shape, `number` the position of the tensor in its group (0 unless a summary spans several
    tensors), `place` what the tensor is.
    """

    tensors: Sequence[Tensor]
    start: int
    shape: tuple[int, ...]
    number: int = 0
    place: Place = NOWHERE


class Stream(Protocol):
    """The inputs of a stage, block by block, tensors and starts ascending; may be walked repeatedly."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of elements of each tensor in the group (one entry unless the scope is the model)."""
        ...

    @property
    def inputs(self) -> int:
        """Number of inputs (experts) in each block."""
        ...

    def blocks(self) -> Iterator[Block]:
        """One pass over the data."""
        ...

    def uniforms(self, number: int) -> Uniforms:
        """The random stream the stage itself will be handed for tensor `number` of the group."""
        ...


class Uniforms(Protocol):
    """Independent uniform 32-bit integers, one for each element of a tensor (Philox4x32-10, counter =
    element).
    """

    def words(self, start: int, stop: int) -> Tensor:
        """int64 tensor of shape (stop − start,), values in [0, 2³²)."""
        ...


class Decomposer(Protocol):
    """Matrix decompositions, computed once for each content and kept."""

    def svd(
        self, matrix: Tensor, rank: int | None = None, *, spend: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """U (m×k), σ descending (k) and Vᵀ (k×n) of a 2-D tensor in its dtype: all k = min(m, n) triplets, or the
        leading `rank`. `spend`: the matrix is the caller's own and no longer needed, so its memory may be used.
        """
        ...

    def eigh(self, matrix: Tensor, *, spend: bool = False) -> tuple[Tensor, Tensor]:
        """Eigenvalues ascending (n) and eigenvectors (n×n) of a symmetric matrix, in its dtype; `spend` as above."""
        ...


@dataclass(frozen=True, slots=True)
class Coordinates:
    """The inputs of a stage in a space: one tensor for each, all of one shape and dtype, and what leads back."""

    tensors: tuple[Tensor, ...]
    frame: Any


@dataclass(frozen=True, slots=True)
class Factors:
    """A task vector that is known as a product: left (rows, rank) @ right (rank, row length), see `rows_of`.

    `scale` is the adapter's, which is part of `left`: the factor as it was trained is left / scale.
    """

    left: Tensor
    right: Tensor
    scale: float = 1.0


def rows_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and row length of a tensor under `row` access: the first axis counts rows; 0-d and 1-D are one
    row.
    """
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])
