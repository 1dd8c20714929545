"""LiNeS: scale a merged task vector the more, the deeper a layer stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cuvee.methods.coefficients import combined
from cuvee.methods.contract import Block, Stream, Summary, stage
from cuvee.methods.parameters import NonNegative
from cuvee.methods.places import depth_of
from cuvee.methods.summaries import totals

if TYPE_CHECKING:
    from torch import Tensor


def _summarise(stream: Stream, **_: Any) -> Summary:
    def sizes(block: Block) -> list[Tensor]:
        merged, *deltas = block.tensors
        return [merged.abs(), combined(deltas, [1.0] * len(deltas)).abs()]

    merged, summed = totals(stream, sizes) or [0.0, 0.0]
    return {"alpha": (summed / merged if merged else 1.0) / (stream.inputs - 1)}


@stage(
    "lines",
    role="rescale",
    summarise=_summarise,
    scope=lambda values: "model" if values["alpha"] is None else None,
    beside="experts",
    upcast=True,
    paper="arXiv:2410.17146",
)
def lines(
    delta: Tensor,
    *,
    alpha: NonNegative | None = None,
    beta: float | None = None,
    summary: Summary,
    block: Block,
) -> Tensor:
    """Multiply by α + β·ℓ/(L − 1) in layer ℓ of L, and by α outside the layers (LiNeS, arXiv:2410.17146).

    Shallow layers, which hold what the tasks share, are changed least. Where α is not given it is the paper's for
    several tasks: Σ|Σ τᵢ| / Σ|merged| / K over the model, 1/K where the task vectors are summed. Task vectors count as
    they entered the chain. The layer is the one the tensor has in the output, not a number found in its name. Result:
    shape and dtype of `delta`.

    Args:
        alpha: factor of the first layer and of everything outside the layers; found from the task vectors where not
            given, 0 … 1 (chosen on validation data) for a single model
        beta: what the last layer's factor has more; where not given 1 − α, so that the last layer keeps factor 1 (the
            paper's choice for a single model; for several it chooses β on validation data)
    """
    low = summary["alpha"] if alpha is None else alpha
    slope = 1 - low if beta is None else beta
    return delta * (low + slope * depth_of(block.place))
