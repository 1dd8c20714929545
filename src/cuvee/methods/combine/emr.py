"""EMR merging as pure functions: the unified task vector, each expert's mask of it, and its rescaler.

The unified vector alone is `elect` with `merge="max"` and `zero_sign="minus"`; packages store it with the masks. Owns
the meaning of the three pieces; must not know how they are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from cuvee.core.lazy import torch
from cuvee.methods.combine.donor import not_one, only
from cuvee.methods.combine.elect import elect
from cuvee.methods.contract import Block, Stream, Summary, stage
from cuvee.methods.parameters import PerExpert
from cuvee.methods.summaries import totals_by

if TYPE_CHECKING:
    from torch import Tensor

Sums = Literal["sum", "mean"]


def unified(deltas: Sequence[Tensor]) -> Tensor:
    """γ ⊙ max |τᵢ| over the experts with sign γ = sign Σ τᵢ (− where the sum is 0); 0 where none has it."""
    return elect.function(deltas, merge="max", zero_sign="minus", summary={})


def mask(delta: Tensor, merged: Tensor) -> Tensor:
    """Where an expert's change has the sign of the unified vector, as a boolean tensor."""
    return delta.sign() * merged.sign() > 0


def rescalers(stream: Stream, sums: Sums = "sum") -> list[float]:
    """λᵢ = Σ |τᵢ| / Σ |maskᵢ ⊙ unified| of each expert over the stream, in float64; 1 where that is 0 / 0.

    `sums="mean"` adds the mean of each tensor instead, so that small tensors count like large ones (the paper's code).
    """

    def figures(block: Block) -> list[Tensor]:
        merged = unified(block.tensors)
        masked = [torch.where(mask(delta, merged), merged, 0.0) for delta in block.tensors]
        return [tensor.abs() for tensor in (*block.tensors, *masked)]

    count = stream.inputs
    totals = [0.0] * (2 * count)
    for number, found in totals_by(stream, figures, lambda block: block.number).items():
        size = stream.sizes[number] if sums == "mean" else 1
        totals = [total + value / size for total, value in zip(totals, found, strict=True)]
    pairs = zip(totals[:count], totals[count:], strict=True)
    return [before / after if after else 1.0 for before, after in pairs]


def _summarise(stream: Stream, *, sums: Sums, **_: Any) -> Summary:
    return {"rescalers": rescalers(stream, sums)}


@stage(
    "emr_expert",
    role="combine",
    summarise=_summarise,
    scope=lambda values: "model",
    check=lambda values: not_one(values.get("restore"), "restore"),
    upcast=True,
    paper="arXiv:2405.17461",
)
def emr_expert(
    deltas: list[Tensor], *, restore: PerExpert[bool] = False, sums: Sums = "sum", summary: Summary
) -> Tensor:
    """One expert as EMR merging restores it: λᵢ · maskᵢ ⊙ unified vector (arXiv:2405.17461).

    Over the model Σ |result| = Σ |τᵢ| (with `sums="sum"`). Result: shape and dtype of the task vectors.

    Args:
        restore: whether this expert is the one that is restored; exactly one must be
        sums: λ from sums over the whole model (the paper) or from the tensors' means (its code)
    """
    number = only(restore, len(deltas))
    merged = unified(deltas)
    factor: float = summary["rescalers"][number]
    return torch.where(mask(deltas[number], merged), merged, 0.0) * factor
