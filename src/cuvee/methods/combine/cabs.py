"""CABS: n:m sparse task vectors whose supports do not overlap, one expert after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.core.lazy import torch
from cuvee.methods.conditions.block_top import Count, Size, Trailing, access_of, largest
from cuvee.methods.contract import Block, stage
from cuvee.methods.parameters import PerExpert, each

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from torch import Tensor


def _check(values: Mapping[str, Any]) -> str | None:
    n, m = values["n"], values["m"]
    largest_n = max(each(n, 1))
    return f"`n` must be at most `m`, got {largest_n} of {m}" if largest_n > m else None


@stage("cabs", role="combine", access=access_of, check=_check, upcast=True, paper="arXiv:2503.01874")
def cabs(
    deltas: list[Tensor],
    *,
    weight: PerExpert[float] = 1.0,
    n: PerExpert[Count] = 64,
    m: Size = 256,
    trailing: Trailing = "complete",
    block: Block,
) -> Tensor:
    """Prune each task vector to n of every m entries where no earlier expert kept one (CABS, arXiv:2503.01874).

    In the order of the experts: rᵢ = τᵢ where it is free, maskᵢ = the n largest |rᵢ| of every m consecutive entries
    (zeros never count), which are taken from then on; y = Σ wᵢ · maskᵢ ⊙ τᵢ. Supports are disjoint. Not symmetric: the
    first expert chooses first. Result: shape and dtype of the task vectors.

    Args:
        weight: the paper's λᵢ, chosen by grid search
        n: entries each expert keeps in a group (fewer where fewer are free), at most m
        m: entries in a group; powers of two up to 1024 are read in blocks, others need the whole tensor in memory
        trailing: a last group of fewer entries keeps the same share of them (`complete`), or is dropped whole as by
            the released code (`code`)
    """
    count = len(deltas)
    free = torch.ones_like(deltas[0], dtype=torch.bool)
    total = torch.zeros_like(deltas[0])
    for delta, factor, kept in zip(deltas, each(weight, count), each(n, count), strict=True):
        rest = torch.where(free, delta, 0.0)
        own = largest(rest, kept, m, trailing, block) & (rest != 0)
        total = total + torch.where(own, delta, 0.0) * factor
        free = free & ~own
    return total
