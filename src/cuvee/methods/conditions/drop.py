"""Random dropping with rescaling: DARE. Owns the mask of independent draws with one probability."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from cuvee.core.lazy import torch
from cuvee.core.random import keep
from cuvee.methods.conditions.rescaling import l1_factor
from cuvee.methods.contract import Block, Scope, Stream, Summary, Uniforms, stage
from cuvee.methods.parameters import Fraction, PerExpert

if TYPE_CHECKING:
    from torch import Tensor


def _scope(values: Mapping[str, Any]) -> Scope | None:
    return "tensor" if values["rescale"] == "l1" and values["density"] < 1 else None


def _summarise(stream: Stream, *, density: float, **_: Any) -> Summary:
    def thinned(block: Block) -> Tensor:
        return _dropped(block.tensors[0], density, stream.uniforms(block.number), block.start)

    return {"factor": l1_factor(stream, thinned)}


@stage(
    "drop",
    role="condition",
    summarise=_summarise,
    scope=_scope,
    random=True,
    upcast=True,
    paper="arXiv:2311.03099",
)
def drop(
    delta: Tensor,
    *,
    density: PerExpert[Fraction] = 0.5,
    rescale: Literal["inverse_p", "l1", "none"] = "inverse_p",
    summary: Summary,
    uniforms: Uniforms,
    block: Block,
) -> Tensor:
    """Drop entries of a task vector at random and scale up the rest (DARE, arXiv:2311.03099).

    Each entry is kept with probability `density`, independently: τ̃ = m ⊙ τ / density, so that E[τ̃] = τ.
    Result: shape and dtype of `delta`.

    Args:
        density: probability of keeping an entry (the paper's drop rate p is 1 − density)
        rescale: divide by the density (`inverse_p`), restore the tensor's sum of |τ| (`l1`, MergeKit), or
            `none`
    """
    if density >= 1:
        return delta
    kept = _dropped(delta, density, uniforms, block.start)
    if rescale == "l1":
        factor: float = summary["factor"]
        return kept * factor
    divisor = density if rescale == "inverse_p" and density > 0 else 1.0
    return torch.div(kept, divisor)


def _dropped(delta: Tensor, density: float, uniforms: Uniforms, start: int) -> Tensor:
    words = uniforms.words(start, start + delta.numel()).to(delta.device)
    return torch.where(keep(words, density).reshape(delta.shape), delta, 0.0)
