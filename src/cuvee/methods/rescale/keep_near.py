"""Pulling a merged model back towards the base when it is too far away: ORBIT's step, on finished checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from cuvee.methods.contract import Block, Scope, Stream, Summary, stage
from cuvee.methods.parameters import NonNegative
from cuvee.methods.summaries import totals

if TYPE_CHECKING:
    from torch import Tensor


def _scope(values: Mapping[str, Any]) -> Scope | None:
    chosen: Scope = values["scope"]
    return chosen


def _summarise(stream: Stream, *, radius: float, pull: str, share: float, distance: str, **_: Any) -> Summary:
    def squares(block: Block) -> list[Tensor]:
        return [tensor.double().square() for tensor in block.tensors[:2]]

    lengths = [math.sqrt(total) for total in totals(stream, squares)] or [0.0]
    limit = radius * lengths[-1] if distance == "relative" else radius
    if lengths[0] <= limit:
        return {"factor": 1.0}
    return {"factor": limit / lengths[0] if pull == "project" else share}


@stage(
    "keep_near",
    role="rescale",
    summarise=_summarise,
    scope=_scope,
    beside="base",
    upcast=True,
    paper="arXiv:2605.12419",
)
def keep_near(
    delta: Tensor,
    *,
    radius: NonNegative,
    pull: Literal["project", "average"] = "project",
    share: NonNegative = 0.5,
    distance: Literal["absolute", "relative"] = "absolute",
    scope: Literal["model", "tensor"] = "model",
    summary: Summary,
) -> Tensor:
    """Shrink the merged task vector where it is longer than a radius around the base (after ORBIT, arXiv:2605.12419).

    With d = ‖τ‖₂: y = τ where d ≤ radius, else τ · radius / d (`project`) or `share` · τ (`average`, the weighted mean
    of merged model and base). The direction is kept. Lengths are float64. Result: shape and dtype of `delta`.

    Args:
        radius: largest distance from the base that is left alone
        pull: go to the radius exactly, or multiply by `share`
        share: what `average` leaves of the task vector; 1 changes nothing, 0 is the base
        distance: `radius` in the units of the weights, or as a multiple of the base's own norm
        scope: the distance of the whole model, or of each tensor for itself
    """
    factor: float = summary["factor"]
    return delta if factor == 1 else delta * factor
