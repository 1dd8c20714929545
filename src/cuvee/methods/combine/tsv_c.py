"""TSV-Compress: one task restored from the leading singular triplets of its task matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cuvee.methods.combine.donor import asks_for_one, not_one, only
from cuvee.methods.contract import Block, Decomposer, stage
from cuvee.methods.parameters import Fraction, PerExpert
from cuvee.methods.recompression import Bound, compress

if TYPE_CHECKING:
    from torch import Tensor


def kept_rank(shape: tuple[int, ...], count: int, share: float | None) -> int | None:
    """How many triplets each of `count` tasks keeps of a tensor: int(min(m, n) · share), share 1 / count by default.

    None where the tensor is kept as it is: it has other than two axes, no triplet would be left, or its factors would
    take more room than the tensor itself.
    """
    if len(shape) != 2:
        return None
    full = min(shape)
    rank = full // count if share is None else int(full * share)
    return None if rank == 0 or rank * sum(shape) > shape[0] * shape[1] else rank


@stage(
    "tsv_c",
    role="combine",
    access="tensor",
    check=lambda values: not_one(values.get("restore"), "restore"),
    upcast=True,
    lazy=True,
    asks=asks_for_one("restore"),
    paper="arXiv:2412.00081",
)
def tsv_c(
    deltas: Sequence[Tensor],
    *,
    restore: PerExpert[bool] = False,
    share: Fraction | None = None,
    decompose: Decomposer,
    block: Block,
) -> Tensor:
    """One expert as TSV-Compress restores it: U_r Σ_r V_rᵀ of each of its task matrices (arXiv:2412.00081).

    Only tensors of two axes are cut, and those whose factors would take more room stay as they are. Result: shape and
    dtype of the task vectors.

    Args:
        restore: whether this expert is the one that is restored; exactly one must be (a package holds all)
        share: of the singular triplets that each task keeps; 1 / number of experts when not given
    """
    number = only(restore, len(deltas))
    shape = block.shape
    rank = kept_rank(shape, len(deltas), share)
    delta = deltas[number]
    if rank is None:
        return delta
    found = compress(delta, Bound(rank=rank), decompose).factors
    return found.left @ found.right
