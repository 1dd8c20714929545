"""Dropping at random that spares large entries: the MagPrune step of DELLA. Owns its probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from cuvee.core.lazy import torch
from cuvee.core.random import keep
from cuvee.methods.conditions.rescaling import l1_factor
from cuvee.methods.contract import Block, Scope, Stream, Summary, Uniforms, stage
from cuvee.methods.parameters import Fraction, NonNegative, PerExpert

if TYPE_CHECKING:
    from torch import Tensor


def half_width(epsilon: float, window_size: float | None) -> float:
    """Half the width of the window of keep probabilities: `window_size` / 2 where given, else `epsilon`."""
    return epsilon if window_size is None else window_size / 2


def _check(values: Mapping[str, Any]) -> str | None:
    density = values["density"]
    half = half_width(values["epsilon"], values.get("window_size"))
    if density in (0, 1) or (density - half > 0 and density + half < 1):
        return None
    shown = f"{density - half:g} … {density + half:g}"
    return f"`density` ± `epsilon` must lie strictly between 0 and 1, got {shown}"


def _scope(values: Mapping[str, Any]) -> Scope | None:
    return "tensor" if values["rescale"] == "l1" and 0 < values["density"] < 1 else None


def _summarise(
    stream: Stream, *, density: float, epsilon: float, window_size: float | None, **_: Any
) -> Summary:
    half = half_width(epsilon, window_size)

    def thinned(block: Block) -> Tensor:
        delta = block.tensors[0]
        return _pruned(delta, probabilities(delta, density, half), stream.uniforms(block.number), block.start)

    return {"factor": l1_factor(stream, thinned)}


@stage(
    "magprune",
    role="condition",
    access="row",
    summarise=_summarise,
    scope=_scope,
    check=_check,
    random=True,
    upcast=True,
    paper="arXiv:2406.11617",
)
def magprune(
    delta: Tensor,
    *,
    density: PerExpert[Fraction] = 0.5,
    epsilon: PerExpert[NonNegative] = 0.05,
    window_size: PerExpert[NonNegative | None] = None,
    rescale: Literal["inverse_q", "l1", "none"] = "inverse_q",
    summary: Summary,
    uniforms: Uniforms,
    block: Block,
) -> Tensor:
    """Drop entries at random, small ones more often, and scale up the rest (MagPrune, arXiv:2406.11617).

    Within each row of n entries, the one of rank r by |τ| (1 the smallest; equal ones rank in index order) is
    kept with probability q = (density − ε) + 2ε(r − 1)/(n − 1), and τ̃ = m ⊙ τ / q, so that E[τ̃] = τ. A row
    of one entry is kept with probability `density`. `delta` has shape (rows, n); vectors are one row,
    convolutions are flattened to (out, rest). Density 1 and 0 keep all and nothing; else 0 < density ± ε < 1
    must hold.

    Args:
        density: mean probability of keeping an entry (the paper's drop rate p is 1 − density)
        epsilon: half the width of the window of probabilities around the density
        window_size: the full width, as in the paper and its configuration files; replaces `epsilon` where
            given
        rescale: divide by each entry's probability (`inverse_q`), restore the tensor's sum of |τ| (`l1`,
            MergeKit), or `none`
    """
    if density >= 1:
        return delta
    if density <= 0:
        return torch.zeros_like(delta)
    chance = probabilities(delta, density, half_width(epsilon, window_size))
    kept = _pruned(delta, chance, uniforms, block.start)
    if rescale == "l1":
        factor: float = summary["factor"]
        return kept * factor
    return torch.div(kept, chance.to(kept.dtype)) if rescale == "inverse_q" else kept


def probabilities(delta: Tensor, density: float, half: float) -> Tensor:
    """Keep probability of each entry of a (rows, n) tensor, float64: (density − half) + 2·half·(r − 1)/(n −
    1).
    """
    order = delta.detach().abs().argsort(dim=1, stable=True)
    places = torch.arange(delta.shape[1], dtype=torch.float64, device=delta.device)
    ranks = torch.empty(delta.shape, dtype=torch.float64, device=delta.device)
    ranks.scatter_(1, order, places.expand_as(ranks))
    share = ranks / (delta.shape[1] - 1) if delta.shape[1] > 1 else torch.full_like(ranks, 0.5)
    return (density - half) + 2 * half * share


def _pruned(delta: Tensor, chance: Tensor, uniforms: Uniforms, start: int) -> Tensor:
    words = uniforms.words(start, start + delta.numel()).to(delta.device)
    return torch.where(keep(words, chance.reshape(-1)).reshape(delta.shape), delta, 0.0)
