"""Trimming by magnitude: the first step of TIES. Owns the rule of how many entries are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from cuvee.core.lazy import torch
from cuvee.methods.conditions.rescaling import l1_factor
from cuvee.methods.contract import Block, Scope, Stream, Summary, stage
from cuvee.methods.parameters import Fraction, PerExpert
from cuvee.methods.summaries import Cut, Ties, magnitude_of, top

if TYPE_CHECKING:
    from torch import Tensor


def _scope(values: Mapping[str, Any]) -> Scope | None:
    chosen: Scope = values["scope"]
    return None if values["density"] >= 1 and values["count"] != "strict" else chosen


def kept(density: float, size: int, ties: Ties) -> int:
    """How many of the largest of `size` magnitudes are asked for; the official code counts one more."""
    if ties == "all":
        return int(density * size) + 1
    return max(1, int(density * size)) if density > 0 else 0


def _summarise(stream: Stream, *, density: float, count: str, rescale: str, **_: Any) -> Summary:
    ties: Ties = "all" if count == "official" else "none" if count == "strict" else "index"
    cut = top(stream, magnitude_of(0), lambda size: kept(density, size, ties), ties=ties)
    if rescale == "none":
        return {"cut": cut}
    return {"cut": cut, "factor": l1_factor(stream, lambda block: _trimmed(block.tensors[0], cut, block))}


@stage(
    "trim",
    role="condition",
    summarise=_summarise,
    scope=_scope,
    passes=lambda values: 2 + (values["rescale"] == "l1"),
    passes_more=lambda values: int(values["count"] == "exact"),
    upcast=True,
    paper="arXiv:2306.01708",
)
def trim(
    delta: Tensor,
    *,
    density: PerExpert[Fraction] = 0.2,
    scope: Literal["model", "tensor"] = "model",
    count: Literal["exact", "official", "strict"] = "exact",
    rescale: Literal["none", "l1"] = "none",
    summary: Summary,
    block: Block,
) -> Tensor:
    """Keep the largest entries of a task vector by |τ| and set the others to zero (TIES, arXiv:2306.01708).

    With n entries in scope, `exact` keeps int(density·n), at least one unless the density is 0; entries of
    equal size at the threshold are kept in index order. Result: shape and dtype of `delta`.

    Args:
        density: share of entries that is kept
        scope: choose the largest over the whole model (paper) or within each tensor (MergeKit)
        count: `exact`; `official` for the paper's code, which keeps one more and all that tie with it; `strict` keeps
            what exceeds the int(density·n)-th largest, so one fewer and none that tie with it (Localize-and-Stitch)
        rescale: `l1` restores the sum of |τ| over the scope, `none` leaves the kept entries as they are
    """
    if density >= 1 and count != "strict":
        return delta
    kept = _trimmed(delta, summary["cut"], block)
    return kept * summary["factor"] if rescale == "l1" else kept


def _trimmed(delta: Tensor, cut: Cut, block: Block) -> Tensor:
    return torch.where(cut.mask(delta.abs(), block), delta, 0.0)
