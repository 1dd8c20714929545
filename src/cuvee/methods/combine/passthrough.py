"""One source, taken as it is or scaled: layer stacking, donors, pruning of a block's output. Elementwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.methods.contract import stage
from cuvee.methods.parameters import PerExpert, each

if TYPE_CHECKING:
    from torch import Tensor


@stage("passthrough", role="combine", takes="weight", inputs=(1, 1))
def passthrough(tensors: list[Tensor], *, scale: PerExpert[float | None] = None) -> Tensor:
    """Copy one model's tensor, multiplied by `scale` where that is given.

    y = θ, bit for bit, or y = scale · θ. With slices it stacks layers (frankenmerges, depth up-scaling):
    scaling the attention output and MLP down projections of repeated blocks by 0 makes them the identity to
    start healing from.

    Kim et al., "SOLAR 10.7B", NAACL 2024 (arXiv:2312.15166), for depth up-scaling.

    Args:
        scale: factor of every element; none copies
    """
    (tensor,) = tensors
    (factor,) = each(scale, 1)
    return tensor if factor is None else tensor * factor
