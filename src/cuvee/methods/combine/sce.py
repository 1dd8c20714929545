"""Select, calculate, erase: the combination of FuseChat. Owns its three steps and their degenerate cases."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from cuvee.core.lazy import torch
from cuvee.methods.contract import Block, Stream, Summary, stage
from cuvee.methods.parameters import Fraction
from cuvee.methods.summaries import Cut, top, totals

if TYPE_CHECKING:
    from torch import Tensor

MaskScope = Literal["all", "weights_only"]
Guard = Literal["relative", "mergekit"]

_MERGEKIT_SMALLEST = 1e-6


def _summarise(stream: Stream, *, select_topk: float, guard: Guard, mask_scope: MaskScope) -> Summary:
    cut = _selection(stream, select_topk, guard)

    def squares(block: Block) -> list[Tensor]:
        return [selected.double().square() for selected in _selected(block.tensors, cut, block)]

    energies = totals(stream, squares) or [0.0] * stream.inputs
    return {"cut": cut, "weights": energy_weights(energies, sum(stream.sizes), guard)}


def _passes(values: Mapping[str, Any]) -> int:
    """Where not all is selected: what varies, and two for the threshold; then the energies."""
    return 1 if values["select_topk"] >= 1 else 4


@stage(
    "sce",
    role="combine",
    summarise=_summarise,
    passes=_passes,
    passes_more=1,
    upcast=True,
    paper="arXiv:2408.07990",
)
def sce(
    deltas: list[Tensor],
    *,
    select_topk: Fraction = 0.1,
    mask_scope: MaskScope = "all",
    guard: Guard = "relative",
    summary: Summary,
    block: Block,
) -> Tensor:
    """Merge by element-wise selection, energy weights and sign erasure (SCE of FuseChat, arXiv:2408.07990).

    Per tensor: (S) keep the int(τ·m) coordinates of greatest variance over the experts, m being those of
    non-zero variance; (C) wᵢ = Σ δᵢ² over the kept / the same of all experts; (E) drop what disagrees in sign
    with Σ δᵢ (0 counts as +); the result is Σ wᵢδᵢ / Σ wᵢ over what is left. With one expert the variance is
    0, so that less than the full share selects nothing and the base is returned.

    Args:
        select_topk: share τ of the coordinates that is selected; 1 selects all
        mask_scope: the selection applies to everything (paper) or to the weights alone (the released code)
        guard: weights are uniform only where all energies are 0 (`relative`), or where the mean squares add
            up to less than 1e-6, with divisors raised to 1e-6 and τ·m rounded to float32 (`mergekit`)
    """
    cut: Cut | None = summary["cut"]
    kept = _selected(deltas, cut, block) if mask_scope == "all" else deltas
    vote = torch.zeros_like(deltas[0])
    for delta in kept:
        vote = vote + delta
    sign = torch.where(vote >= 0, 1.0, -1.0).to(vote.dtype)
    total, share = torch.zeros_like(vote), torch.zeros_like(vote)
    for delta, weight in zip(kept, summary["weights"], strict=True):
        agrees = delta.sign() == sign
        total = total + torch.where(agrees, delta * weight, 0.0)
        share = share + agrees.to(share.dtype) * weight
    if guard == "mergekit":
        return total / share.clamp(min=_MERGEKIT_SMALLEST)
    return total / torch.where(share == 0, 1.0, share)


def _selection(stream: Stream, select_topk: float, guard: Guard) -> Cut | None:
    """The coordinates of greatest variance, or None where all are selected."""
    if select_topk >= 1:
        return None
    varying = totals(stream, lambda block: [_variance(block.tensors) != 0]) or [0.0]
    count = selected_count(int(varying[0]), select_topk, guard)
    return top(stream, lambda block: _variance(block.tensors), count)


def selected_count(varying: int, select_topk: float, guard: Guard) -> int:
    """How many of the varying coordinates are selected."""
    if guard == "mergekit":  # it multiplies in float32, so that 0.29 of 100 are 29 there, not 28
        return int(_single(_single(varying) * _single(select_topk)))
    return int(varying * select_topk)


def _single(x: float) -> float:
    """The nearest float32."""
    return ctypes.c_float(x).value


def _selected(deltas: Sequence[Tensor], cut: Cut | None, block: Block) -> list[Tensor]:
    if cut is None:
        return list(deltas)
    mask = cut.mask(_variance(deltas), block)
    return [torch.where(mask, delta, 0.0) for delta in deltas]


def _variance(deltas: Sequence[Tensor]) -> Tensor:
    """Population variance over the experts, of differences to the first: exactly 0 where all are equal."""
    differences = [delta - deltas[0] for delta in deltas]
    mean = torch.zeros_like(deltas[0])
    for difference in differences:
        mean = mean + difference
    mean = mean / len(deltas)
    spread = torch.zeros_like(mean)
    for difference in differences:
        spread = spread + (difference - mean) * (difference - mean)
    return spread / len(deltas)


def energy_weights(energies: list[float], size: int, guard: Guard) -> list[float]:
    """The experts' shares of the energy; equal ones where there is none (or, for MergeKit, next to none)."""
    total = sum(energies)
    negligible = total / max(size, 1) < _MERGEKIT_SMALLEST if guard == "mergekit" else total == 0
    return [1 / len(energies) if negligible else energy / total for energy in energies]
