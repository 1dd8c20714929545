"""NearSwap: take over another model's weights where they are near, and nudge the rest. Elementwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.core.lazy import torch
from cuvee.methods.contract import stage
from cuvee.methods.parameters import NonNegative

if TYPE_CHECKING:
    from torch import Tensor


@stage(
    "nearswap",
    role="combine",
    upcast=True,
    inputs=(1, 1),
    paper="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
)
def nearswap(deltas: list[Tensor], *, t: NonNegative, floor: NonNegative = 1e-6) -> Tensor:
    """Move every weight of the base towards the other model by at most t.

    As published: y = w b + (1−w) a with w = clip(t / max(|a−b|, floor), 0, 1). As computed, with τ = b − a:
    y − a = clip(τ · min(1, t/floor), −t, t), the same without a division that can overflow; for t ≥ floor it
    is plain clipping. Small differences are adopted whole, large ones only hinted at; it is not symmetric in
    the models.

    alchemonaut, QuartetAnemoi-70B (t = 0.0001), 2024.

    Args:
        t: largest change of a weight; 0 gives the base
        floor: differences below it count as this large, so that a t smaller still moves them by a share
            t/floor
    """
    (delta,) = deltas
    limit = torch.as_tensor(t, dtype=delta.dtype)
    share = (limit / floor).clamp(max=1) if floor > 0 else torch.ones_like(limit)
    return torch.minimum(torch.maximum(delta * share, -limit), limit)
