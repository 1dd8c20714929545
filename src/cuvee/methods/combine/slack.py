"""Two experts where the first has the benefit of the doubt: merging with a slack variable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.core.lazy import torch
from cuvee.methods.contract import stage
from cuvee.methods.parameters import Fraction, PerExpert, each

if TYPE_CHECKING:
    from torch import Tensor


@stage("slack", role="combine", upcast=True, inputs=(2, 2), paper="arXiv:2407.03994")
def slack(deltas: list[Tensor], *, weight: PerExpert[float] = 1.0, slack: Fraction = 0.1) -> Tensor:
    """Add two task vectors; where their signs differ take one of them, the first more readily (after arXiv:2407.03994).

    Where signs do not differ y = w₁τ₁ + w₂τ₂, else w₁τ₁ if |τ₁| ≥ (1 − slack) · |τ₂|, else w₂τ₂. The rule is ours: that
    the paper has a slack variable against the loss of important entries is known, its place in the formula is not.
    Result: shape and dtype of the task vectors.

    Args:
        weight: factor of each of the two task vectors
        slack: how much smaller an entry of the first may be and still win a conflict; 0: the larger wins, 1: the first
            always does
    """
    first, second = deltas
    one, other = (delta * w for delta, w in zip(deltas, each(weight, 2), strict=True))
    conflict = first.sign() * second.sign() < 0
    favoured = first.abs() >= second.abs() * (1 - slack)
    return torch.where(conflict, torch.where(favoured, one, other), one + other)
