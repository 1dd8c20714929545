"""Reversible merging: one model restored from a few basis tensors that stand for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cuvee.methods.combine.donor import not_one, only
from cuvee.methods.contract import Decomposer, Factors, rows_of, stage
from cuvee.methods.parameters import PerExpert, Range
from cuvee.methods.reversible import basis_of, factor_bases, restored

if TYPE_CHECKING:
    from torch import Tensor


@stage(
    "reversible_merging",
    role="combine",
    access="tensor",
    check=lambda values: not_one(values.get("restore"), "restore"),
    upcast=True,
    paper="arXiv:2510.14163",
)
def reversible_merging(
    deltas: list[Tensor],
    *,
    restore: PerExpert[bool] = False,
    basis: Annotated[int, Range(1)] = 2,
    decompose: Decomposer,
    factors: Sequence[Factors | None],
) -> Tensor:
    """One expert as its coefficients restore it from the best `basis` tensors of all (arXiv:2510.14163).

    Over all experts Σ ‖error‖² is the sum of the squared singular values that are left out, the least that any basis
    of this size leaves. Where all experts are known as products (adapters), their balanced factors have a basis each,
    and the result is the product of what is restored. With `basis` of at least the number of experts each comes back
    as it is. Result: shape and dtype of the task vectors.

    Args:
        restore: whether this expert is the one that is restored; exactly one must be (a package holds all)
        basis: how many basis tensors stand for the experts of each tensor
    """
    number = only(restore, len(deltas))
    if basis >= len(deltas):
        return deltas[number]
    known = [one for one in factors if one is not None]
    rows, columns = rows_of(tuple(deltas[0].shape))
    ranks = [one.right.shape[0] for one in known]
    if len(known) == len(deltas) and 0 < max(ranks) < min(rows, columns):
        left, right = factor_bases(known, basis, decompose)
        return (restored(left, number) @ restored(right, number)).reshape(deltas[0].shape)
    return restored(basis_of(deltas, basis, decompose), number)
