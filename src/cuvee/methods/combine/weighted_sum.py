"""The weighted sum of task vectors: the whole of task arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.core.lazy import torch
from cuvee.methods.contract import stage
from cuvee.methods.parameters import PerExpert, each

if TYPE_CHECKING:
    from torch import Tensor

_NEGLIGIBLE = 1e-8  # weights that add up to less are not divided by


@stage("weighted_sum", role="combine", upcast=True, paper="arXiv:2212.04089")
def weighted_sum(deltas: list[Tensor], *, weight: PerExpert[float] = 1.0, normalize: bool = False) -> Tensor:
    """Σ wᵢτᵢ, in the order of the experts, multiplied and then added (task arithmetic, arXiv:2212.04089).

    Args:
        weight: factor of each task vector; negative weights take it away
        normalize: divide by Σ wᵢ, unless its absolute value is below 1e-8
    """
    weights = each(weight, len(deltas))
    total = torch.zeros_like(deltas[0])
    for delta, factor in zip(deltas, weights, strict=True):
        total = total + delta * factor
    share = sum(weights)
    return total / share if normalize and abs(share) >= _NEGLIGIBLE else total
