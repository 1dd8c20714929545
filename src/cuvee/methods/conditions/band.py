"""Keeping the middle of the magnitudes: the masking of Model Breadcrumbs. Owns its count rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from cuvee.core.lazy import torch
from cuvee.methods.conditions.rescaling import l1_factor
from cuvee.methods.contract import Block, Scope, Stream, Summary, stage
from cuvee.methods.parameters import Fraction, PerExpert
from cuvee.methods.summaries import Cut, tops

if TYPE_CHECKING:
    from torch import Tensor


def _scope(values: Mapping[str, Any]) -> Scope | None:
    return None if values["density"] >= 1 else "tensor"


def counts(size: int, density: float, gamma: float) -> tuple[int, int]:
    """How many of the largest entries are removed, and how many of the rest are kept, of `size` entries.

    int(γn) are removed, fewer where density and γ exceed 1 together, so that int(density·n) remain.
    """
    kept = int(density * size)
    return min(int(gamma * size), size - kept), kept


def _summarise(stream: Stream, *, density: float, gamma: float, rescale: str) -> Summary:
    removed, kept = counts(sum(stream.sizes), density, gamma)
    outer, inner = tops(stream, lambda block: block.tensors[0].abs(), [removed, removed + kept])
    if rescale == "none":
        return {"outliers": outer, "kept": inner}
    factor = l1_factor(stream, lambda block: _banded(block.tensors[0], outer, inner, block))
    return {"outliers": outer, "kept": inner, "factor": factor}


@stage(
    "band",
    role="condition",
    summarise=_summarise,
    passes=lambda values: 2 + (values["rescale"] == "l1"),
    passes_more=2,
    scope=_scope,
    upcast=True,
    paper="arXiv:2312.06795",
)
def band(
    delta: Tensor,
    *,
    density: PerExpert[Fraction] = 0.9,
    gamma: PerExpert[Fraction] = 0.01,
    rescale: Literal["none", "l1"] = "none",
    summary: Summary,
    block: Block,
) -> Tensor:
    """Drop the largest and the smallest entries of each tensor by |τ| (Model Breadcrumbs, arXiv:2312.06795).

    Of n entries the int(γn) largest go, then the int(density·n) next largest are kept; where density + γ
    exceed 1 fewer outliers go. Entries of equal size rank in index order. Result: shape and dtype of `delta`.

    Args:
        density: share of entries that is kept
        gamma: share of the largest entries that is removed as outliers
        rescale: `l1` restores the sum of |τ| of the tensor, `none` leaves the kept entries as they are
    """
    if density >= 1:
        return delta
    kept = _banded(delta, summary["outliers"], summary["kept"], block)
    return kept * summary["factor"] if rescale == "l1" else kept


def _banded(delta: Tensor, outer: Cut, inner: Cut, block: Block) -> Tensor:
    magnitude = delta.abs()
    return torch.where(inner.mask(magnitude, block) & ~outer.mask(magnitude, block), delta, 0.0)
