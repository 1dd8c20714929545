"""One expert's task vector as the conditions before left it: what a package stores for each of several experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.methods.combine.donor import asks_for_one, not_one, only
from cuvee.methods.contract import stage
from cuvee.methods.parameters import PerExpert

if TYPE_CHECKING:
    from torch import Tensor


@stage(
    "restore_expert",
    role="combine",
    check=lambda values: not_one(values.get("restore"), "restore"),
    lazy=True,
    asks=asks_for_one("restore"),
)
def restore_expert(deltas: list[Tensor], *, restore: PerExpert[bool] = False) -> Tensor:
    """Give one expert's task vector, as the stages before made it.

    In a package it is stored for every expert: as signs behind `one_bit`, as positions and values where most entries
    are 0, else as it is.

    Args:
        restore: whether this expert is the one that is restored; exactly one must be (a package holds all)
    """
    return deltas[only(restore, len(deltas))]
