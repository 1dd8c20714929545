"""n:m sparsity: the n largest of every m entries in a row. Owns the cut into groups and the rule for the last one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cuvee.core.lazy import torch
from cuvee.methods.contract import Access, Block, stage
from cuvee.methods.parameters import PerExpert, Range

if TYPE_CHECKING:
    from torch import Tensor

Trailing = Literal["complete", "code"]
Count = Annotated[int, Range(0)]
Size = Annotated[int, Range(1)]
_LINE = 1024  # flat blocks start at its multiples


def access_of(values: Mapping[str, Any]) -> Access:
    """Groups never straddle two blocks where m divides 1024; else the stage needs the whole tensor."""
    return "element" if _LINE % values["m"] == 0 else "tensor"


def problem(values: Mapping[str, Any]) -> str | None:
    """What is wrong with n and m together."""
    n, m = values["n"], values["m"]
    return f"`n` must be at most `m`, got {n} of {m}" if n > m else None


@stage("block_top", role="condition", access=access_of, check=problem, upcast=True, paper="arXiv:2503.01874")
def block_top(
    delta: Tensor,
    *,
    n: PerExpert[Count] = 64,
    m: Size = 256,
    trailing: Trailing = "complete",
    block: Block,
) -> Tensor:
    """Keep the n largest |τ| of every m consecutive entries, so that what is kept is spread evenly (n:m sparsity).

    Groups are counted along the flattened tensor; of equal magnitudes the first are kept. Result: shape and dtype of
    `delta`.

    Args:
        n: entries kept in each group, at most m
        m: entries in a group; powers of two up to 1024 are read in blocks, others need the whole tensor in memory
        trailing: a last group of fewer entries keeps the same share of them (`complete`), or is dropped whole as by
            the released code of CABS (`code`)
    """
    return torch.where(largest(delta, n, m, trailing, block), delta, 0.0)


def largest(delta: Tensor, n: int, m: int, trailing: Trailing, block: Block) -> Tensor:
    """Where the n largest magnitudes of each group stand, for a block that starts at a multiple of m."""
    flat = delta.detach().abs().reshape(-1)
    full = flat.numel() // m * m
    kept = _ranked(flat[:full].reshape(-1, m), n)
    rest = flat[full:].reshape(1, -1)
    share = round(n * rest.shape[1] / m) if trailing == "complete" else 0
    return torch.cat([kept.reshape(-1), _ranked(rest, share).reshape(-1)]).reshape(delta.shape)


def _ranked(groups: Tensor, n: int) -> Tensor:
    """In each row the n largest; of equal ones the first."""
    order = groups.argsort(dim=1, descending=True, stable=True)
    kept = torch.zeros(groups.shape, dtype=torch.bool, device=groups.device)
    return kept.scatter_(1, order[:, :n], True)
