"""Scaling of the merged task vector before it is added to the base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.methods.contract import stage

if TYPE_CHECKING:
    from torch import Tensor


@stage("scale", role="rescale", upcast=True, paper="arXiv:2212.04089")
def scale(delta: Tensor, *, lam: float = 1.0) -> Tensor:
    """Multiply the merged task vector by λ: θ = θ₀ + λτ. Result: shape and dtype of `delta`.

    Args:
        lam: how much of the merged task vector is added; 0 gives the base
    """
    return delta * lam


@stage("negate", role="rescale", upcast=True, paper="arXiv:2212.04089")
def negate(delta: Tensor, *, lam: float = 1.0) -> Tensor:
    """Multiply the merged task vector by −λ, so that it is taken away: θ = θ₀ − λτ.

    Args:
        lam: how much of the task vector is taken away; 0 gives the base
    """
    return delta * -lam
