"""TALL masks and consensus merging: which weights of a summed task vector each task needs, and which several do.

Owns the mask of one task (`tall_mask`), which packages of several tasks use too, and the consensus of all masks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cuvee.core.lazy import torch
from cuvee.methods.coefficients import combined
from cuvee.methods.combine.elect import Zero, elect
from cuvee.methods.conditions.trim import kept
from cuvee.methods.contract import Block, Scope, Stream, Summary, stage
from cuvee.methods.parameters import Fraction, NonNegative, PerExpert, Range, each
from cuvee.methods.summaries import Cut, Ties, magnitude_of, top, totals

if TYPE_CHECKING:
    from torch import Tensor

Total = Literal["sum", "ties", "ties_official"]


def tall_mask(delta: Tensor, total: Tensor, strength: Any) -> Tensor:
    """Where a task's change outweighs what the others add there: |τ| > strength · |total − τ| (strictly).

    `total` is the merged task vector, unscaled; base + mask ⊙ total restores the task. Elementwise, a boolean tensor.
    """
    needed: Tensor = delta.abs() > (total - delta).abs() * strength
    return needed


def scope(values: Mapping[str, Any]) -> Scope | None:
    """Only the trimmed total looks at the whole model, and the sign of most of its coordinates."""
    total: Total = values["total"]
    return "model" if total == "ties_official" or (total == "ties" and values["density"] < 1) else None


def summarise(stream: Stream, *, total: Total, density: float, **_: Any) -> Summary:
    """The entries that a trimmed total keeps of each expert, and for the official one its majority's sign."""
    ties: Ties = "all" if total == "ties_official" else "index"
    cuts = [
        top(stream, magnitude_of(i), lambda size: kept(density, size, ties), ties=ties)
        for i in range(stream.inputs)
    ]
    if ties != "all":
        return {"cuts": cuts}
    (sign,) = totals(stream, lambda block: [combined(_trimmed(block, cuts), [1.0] * len(cuts)).sign()]) or [
        0.0
    ]
    return {"cuts": cuts, "majority": math.copysign(1.0, sign) if sign else 0.0}


def _trimmed(block: Block, cuts: Sequence[Cut]) -> list[Tensor]:
    return [torch.where(c.mask(d.abs(), block), d, 0.0) for c, d in zip(cuts, block.tensors, strict=True)]


@stage(
    "consensus",
    role="combine",
    summarise=summarise,
    scope=scope,
    upcast=True,
    paper="arXiv:2405.07813",
)
def consensus(
    deltas: list[Tensor],
    *,
    strength: PerExpert[NonNegative] = 0.4,
    agree: Annotated[int, Range(0)] = 2,
    total: Total = "sum",
    density: Fraction = 0.2,
    summary: Summary,
    block: Block,
) -> Tensor:
    """Keep of the summed task vector what at least `agree` experts need (consensus merging, arXiv:2405.07813).

    T = Σ τᵢ; expert i needs a coordinate where |τᵢ| > strengthᵢ · |T − τᵢ|; y = T where at least `agree` do, else 0.
    With `total="ties"` T is the disjoint sum of the trimmed task vectors; masks still compare the untrimmed ones. The
    masks do not depend on a common scale. Result: shape and dtype of the task vectors.

    Args:
        strength: the paper's λ of each task's mask: larger asks for more and keeps less; the paper chooses among 0.2,
            0.3, 0.4, 0.5 and 0.6 on validation data
        agree: how many experts must need a coordinate; 0 keeps all (task arithmetic), 1 drops what nobody needs, 2
            also what a single one needs
        total: the vector that is masked: `sum` (task arithmetic), `ties` (trim over the model, elect, disjoint sum),
            or `ties_official`, the same with the code's count (one entry more, and all equal ones) and with the
            majority's sign where a vote is tied
        density: share of entries that a trimmed total keeps of each expert; without effect on `sum`
    """
    merged = total_vector(deltas, total, density, summary, block)
    votes = torch.zeros_like(merged, dtype=torch.int32)
    for delta, own in zip(deltas, each(strength, len(deltas)), strict=True):
        votes = votes + tall_mask(delta, merged, own)
    return torch.where(votes >= agree, merged, 0.0)


def total_vector(
    deltas: Sequence[Tensor], total: Total, density: float, summary: Summary, block: Block
) -> Tensor:
    """The merged task vector that masks are taken of."""
    if total == "sum":
        return combined(deltas, [1.0] * len(deltas))
    cuts: list[Cut] = summary.get("cuts", [])
    kept = _trimmed(block, cuts) if cuts else list(deltas)
    sign: Zero = "majority" if total == "ties_official" else "plus"
    return elect.function(kept, merge="sum", zero_sign=sign, summary=summary)
