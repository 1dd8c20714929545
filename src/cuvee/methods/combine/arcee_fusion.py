"""Arcee Fusion: take over only those weights of another model whose change matters most.

Owns the importance score, which the threshold and the mask must compute alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cuvee.core.lazy import torch
from cuvee.methods.contract import Block, Stream, Summary, stage
from cuvee.methods.summaries import order_statistics
from cuvee.methods.vectors import along_last

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["float64", "compute"]
_SMOOTHING = 1e-8


def quartiles(stream: Stream, *, precision: Precision, clamp: bool) -> Summary:
    """The exact values at ranks ⌊q (n−1)⌋ of the ascending importances, q = ¼, ½, ¾."""
    last = sum(stream.sizes) - 1
    ranks = [last // 4, last // 2, 3 * last // 4] if last >= 0 else []

    def value(block: Block) -> Tensor:
        return importance(block, precision=precision, clamp=clamp)

    return {"quartiles": order_statistics(stream, value, ranks)}


@stage(
    "arcee_fusion",
    role="combine",
    takes="weight",
    access="row",
    summarise=quartiles,
    passes=2,
    upcast=True,
    inputs=(2, 2),
)
def arcee_fusion(
    tensors: list[Tensor],
    *,
    block: Block,
    summary: Summary,
    precision: Precision = "float64",
    clamp: bool = True,
) -> Tensor:
    """Take the other model's weight where the importance of its change is an outlier, else the base's.

    With base θ₀ and other θ₁, the two inputs in this order: p, q = softmax(θ₁), softmax(θ₀) along the last
    axis, each + 1e-8; κ = Σ p log(p/q) along that axis; importance s = |θ₁ − θ₀| κ; an element is taken over
    where s ≥ q₅₀ + 1.5 (q₇₅ − q₂₅) over its tensor. Typically 5–15 % are. Quartiles are exact, where MergeKit
    draws a random million from larger tensors, so results do not depend on a seed. Not symmetric in the
    models.

    Arcee AI, MergeKit's `arcee_fusion`; there is no paper.

    Args:
        precision: arithmetic of softmax and divergence, which nearly cancel for similar models: `float64`, or
            `compute` for the recipe's own, as MergeKit
        clamp: raise divergences to at least 0, below which only rounding takes them; MergeKit leaves them
    """
    base, other = tensors
    if not base.numel():
        return base
    lower, median, upper = torch.tensor(summary["quartiles"], dtype=torch.float64)
    scores = importance(Block(tensors, block.start, block.shape), precision=precision, clamp=clamp)
    lower, median, upper = (q.to(scores.dtype) for q in (lower, median, upper))
    return torch.where(scores >= median + 1.5 * (upper - lower), other, base)


def importance(block: Block, *, precision: Precision, clamp: bool) -> Tensor:
    """|θ₁ − θ₀| κ for a row block [base, other], with the shape and dtype of its tensors."""
    base, other = (along_last(tensor, block.shape) for tensor in block.tensors)
    wide, other_wide = (base.double(), other.double()) if precision == "float64" else (base, other)
    p, q = (torch.softmax(x, dim=-1) + _SMOOTHING for x in (other_wide, wide))
    divergence = (p * torch.log(p / q)).sum(-1, keepdim=True)
    if clamp:
        divergence = divergence.clamp(min=0)
    scores = (other - base).abs() * divergence.to(base.dtype)
    return scores.reshape(block.tensors[0].shape)
