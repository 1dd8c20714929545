"""The merged matrix cut to a rank: the last step of PEFT's combinations by singular value decomposition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cuvee.core.lazy import torch
from cuvee.methods.contract import Block, Decomposer, rows_of, stage
from cuvee.methods.parameters import Range
from cuvee.methods.vectors import is_map

if TYPE_CHECKING:
    from torch import Tensor

Rank = Annotated[int, Range(1)]
Quantile = Annotated[float, Range(0.0, 1.0, open_low=True)]


@stage("truncate", role="rescale", access="tensor", upcast=True)
def truncate(
    delta: Tensor,
    *,
    rank: Rank | None = None,
    clamp: Quantile | None = None,
    decompose: Decomposer,
    block: Block,
) -> Tensor:
    """Replace the merged matrix by the nearest one of a rank (Eckart and Young): the leading triplets of its SVD.

    Convolutions are flattened behind their first axis; tensors that are no maps stay as they are.

    Args:
        rank: how many triplets are kept; all when not given
        clamp: PEFT's `svd_clamp`: entries of UΣ and Vᵀ are brought into ± this quantile of all of them. It depends on
            which way singular vectors point, which PEFT leaves to the library: here the largest entry of UΣ is positive
    """
    shape = tuple(delta.shape)
    if (rank is None and clamp is None) or not is_map(shape, block.place):
        return delta
    u, s, vh = decompose.svd(delta.reshape(rows_of(shape)), rank)
    left = u * s
    if clamp is not None:
        largest = left.gather(0, left.abs().argmax(dim=0, keepdim=True))
        way = torch.where(largest < 0, -1.0, 1.0).to(left.dtype)
        left, vh = left * way, vh * way.T
        high = torch.quantile(torch.cat([left.reshape(-1), vh.reshape(-1)]), clamp)
        left, vh = left.clamp(-high, high), vh.clamp(-high, high)
    return (left @ vh).reshape(shape)
