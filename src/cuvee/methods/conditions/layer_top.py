"""Whole layers of a task vector kept or dropped by how much they changed: layer-wise pruning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from cuvee.core.lazy import torch
from cuvee.methods.contract import Block, Scope, Stream, Summary, stage
from cuvee.methods.parameters import Fraction, PerExpert
from cuvee.methods.places import layer_of
from cuvee.methods.summaries import totals_by

if TYPE_CHECKING:
    from torch import Tensor


def _scope(values: Mapping[str, Any]) -> Scope | None:
    return None if values["keep"] >= 1 else "model"


def _summarise(stream: Stream, *, keep: float, **_: Any) -> Summary:
    def squares(block: Block) -> list[Tensor]:
        return [tensor.double().square() for tensor in block.tensors[:2]]

    sums = totals_by(stream, squares, lambda block: layer_of(block.place))
    scores = {layer: _salience(*found) for layer, found in sums.items() if layer is not None}
    order = sorted(scores, key=lambda layer: (-scores[layer], layer))
    return {"kept": frozenset(order[: round(keep * len(order))])}


def _salience(change: float, origin: float = 0.0) -> float:
    """‖τ‖ / ‖θ₀‖ of a layer; changes of a layer that was 0 count as infinite."""
    if origin == 0:
        return math.inf if change else 0.0
    return math.sqrt(change / origin)


@stage(
    "layer_top",
    role="condition",
    summarise=_summarise,
    scope=_scope,
    beside="base",
    upcast=True,
    paper="arXiv:2506.09093",
)
def layer_top(
    delta: Tensor,
    *,
    keep: PerExpert[Fraction] = 0.5,
    outside: Literal["keep", "drop"] = "keep",
    summary: Summary,
    block: Block,
) -> Tensor:
    """Keep the layers of a task vector that changed most, set the others to zero (after LwPTV, arXiv:2506.09093).

    A layer's score is ‖τ‖ / ‖θ₀‖ over all its tensors, in float64; of L layers the round(keep · L) highest are kept, of
    equal ones the lower. In a dropped layer the base remains bit for bit unless another expert changes it. The score is
    ours: the paper's was not to be had. Result: shape and dtype of `delta`.

    Args:
        keep: share of the layers that is kept; 1 keeps all, 0 none
        outside: whether what stands outside the layers (embeddings, final norm, head) is kept
    """
    if keep >= 1:
        return delta
    layer = layer_of(block.place)
    kept = outside == "keep" if layer is None else layer in summary["kept"]
    return delta if kept else torch.zeros_like(delta)
