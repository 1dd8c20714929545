"""The largest change of each weight, from whichever expert it comes: MagMax. Elementwise, one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.core.lazy import torch
from cuvee.methods.contract import stage

if TYPE_CHECKING:
    from torch import Tensor


@stage("magmax", role="combine", upcast=True, paper="arXiv:2407.06322")
def magmax(deltas: list[Tensor]) -> Tensor:
    """Take each coordinate from the expert with the largest |τ| there (MagMax, arXiv:2407.06322).

    Of equal magnitudes the later expert's is taken. A fold: merging one expert after the other gives the same.
    Result: shape and dtype of the task vectors.
    """
    largest = deltas[0]
    for delta in deltas[1:]:
        largest = torch.where(delta.abs() >= largest.abs(), delta, largest)
    return largest
