"""One bit for each entry: the sign of a task vector times its mean magnitude."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import torch
from cuvee.methods.contract import Stream, Summary, stage
from cuvee.methods.parameters import PerExpert
from cuvee.methods.summaries import magnitude_of, totals

if TYPE_CHECKING:
    from torch import Tensor


def _summarise(stream: Stream, **_: Any) -> Summary:
    (total,) = totals(stream, lambda block: [magnitude_of(0)(block)]) or [0.0]
    return {"mean": total / max(sum(stream.sizes), 1)}


@stage(
    "one_bit",
    role="condition",
    summarise=_summarise,
    scope=lambda values: "tensor" if values["compress"] else None,
    upcast=True,
    paper="arXiv:2502.10743",
)
def one_bit(delta: Tensor, *, compress: PerExpert[bool] = True, summary: Summary) -> Tensor:
    """Replace every entry by the mean magnitude of its tensor with the entry's sign (1bit-Merging, arXiv:2502.10743).

    τ̂ = s · sign(τ), s = mean |τ|, which is nearest to τ of all multiples of the signs; sign(0) is +, so that one bit is
    enough. Σ|τ̂| = Σ|τ|. Result: shape and dtype of `delta`.

    Args:
        compress: whether this tensor of this expert is compressed; rules by role leave the modules that hold an
            expert's knowledge as they are
    """
    if not compress:
        return delta
    mean: float = summary["mean"]
    return torch.where(delta < 0, -1.0, 1.0).to(delta.dtype) * mean
