"""Reinforced agent merging: average where experts moved together, keep what only one of them moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from cuvee.core.lazy import torch
from cuvee.methods.contract import Block, Scope, Stream, Summary, stage
from cuvee.methods.parameters import NonNegative, Positive
from cuvee.methods.summaries import totals

if TYPE_CHECKING:
    from torch import Tensor


@stage("ram", role="combine", upcast=True, paper="arXiv:2601.13572")
def ram(deltas: list[Tensor], *, epsilon: NonNegative = 1e-5) -> Tensor:
    """Average each coordinate over the experts that moved it by more than ε (RAM, arXiv:2601.13572).

    y = Σ τᵢnᵢ / max(Σ nᵢ, 1) with nᵢ = 1 where |τᵢ| > ε: unique changes pass whole, shared ones are averaged.

    Args:
        epsilon: changes up to this size count as none; it must exceed the rounding noise of the checkpoints
    """
    return _merged(deltas, epsilon, [1.0] * len(deltas))


def _scope(values: Mapping[str, Any]) -> Scope | None:
    chosen: Scope = values["scope"]
    return chosen


def _summarise(stream: Stream, *, epsilon: float, r: float, alpha: float, **_: Any) -> Summary:
    def shared_and_unique(block: Block) -> list[Tensor]:
        moved = [delta.abs() > epsilon for delta in block.tensors]
        movers = _count(moved)
        return [own & (movers > 1) for own in moved] + [own & (movers == 1) for own in moved]

    figures = totals(stream, shared_and_unique) or [0.0] * (2 * stream.inputs)
    shared, unique = figures[: stream.inputs], figures[stream.inputs :]
    return {"boosts": boosts(shared, unique, epsilon, r, alpha)}


def boosts(
    shared: Sequence[float], unique: Sequence[float], epsilon: float, r: float, alpha: float
) -> list[float]:
    """The factors of the experts' unique entries, from how many entries each moved with others and alone."""
    ratios = [s / max(u, epsilon) for s, u in zip(shared, unique, strict=True)]
    return [1 + r * min(max(ratio, 0.0), alpha) for ratio in ratios]


@stage("ram_plus", role="combine", summarise=_summarise, scope=_scope, upcast=True, paper="arXiv:2601.13572")
def ram_plus(
    deltas: list[Tensor],
    *,
    epsilon: Positive = 1e-5,
    r: NonNegative = 0.1,
    alpha: NonNegative = 0.2,
    scope: Literal["model", "tensor"] = "model",
    summary: Summary,
) -> Tensor:
    """RAM with unique changes scaled up to make good for what averaging takes (RAM+, arXiv:2601.13572).

    An expert's unique entries are multiplied by λᵢ = 1 + r·clip(ρᵢ, 0, α), ρᵢ = sharedᵢ / max(uniqueᵢ, ε),
    where sharedᵢ and uniqueᵢ count the entries it moved together with others and alone.

    Args:
        epsilon: changes up to this size count as none
        r: strength of the scaling
        alpha: greatest ratio of shared to unique entries that counts
        scope: count the entries over the whole model (paper) or within each tensor (MergeKit)
    """
    return _merged(deltas, epsilon, summary["boosts"])


def _merged(deltas: list[Tensor], epsilon: float, boosts: list[float]) -> Tensor:
    moved = [delta.abs() > epsilon for delta in deltas]
    movers = _count(moved)
    alone = movers == 1
    total = torch.zeros_like(deltas[0])
    for delta, own, boost in zip(deltas, moved, boosts, strict=True):
        total = total + torch.where(own, torch.where(alone, delta * boost, delta), 0.0)
    return total / movers.clamp(min=1)


def _count(moved: list[Tensor]) -> Tensor:
    """How many experts moved each coordinate."""
    total = moved[0].to(torch.int32)
    for own in moved[1:]:
        total = total + own
    return total
