"""OptMerge: WUDI on task matrices without their noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cuvee.core.lazy import torch
from cuvee.methods.combine.spectral.cart import leading
from cuvee.methods.combine.spectral.matrices import (
    Matrices,
    is_excluded,
    matrix_stage,
    merged_elsewhere,
)
from cuvee.methods.combine.spectral.quadratic import descended, length, ranged, slope
from cuvee.methods.contract import Block, Decomposer
from cuvee.methods.parameters import Fraction, Positive, Range

if TYPE_CHECKING:
    from torch import Tensor

_HELP = """\
    exclude: parts of names, separated by commas; tensors with one of them in their name stay at the base, whatever
        `elsewhere` says
    elsewhere: what happens to other tensors that are no matrices: the `mean` or the `sum` of the task vectors is added
        to the base, or the `base` stays as it is
"""
_LR = {"full": 1e-5, "lora": 1e-4}


def _rest(deltas: Sequence[Tensor], *, block: Block, **values: Any) -> Tensor:
    if is_excluded(block.place, values):
        return torch.zeros_like(deltas[0])
    return merged_elsewhere(deltas, values)


@matrix_stage(
    name="optmerge",
    paper="arXiv:2505.19892",
    asks=5,
    asks_rest=lambda values, shape, place, count: (1, *(int(not is_excluded(place, values)),) * (count - 1)),
    exclude="visual,embed_tokens,lm_head,norm,bias",
    rest=_rest,
    rest_help=_HELP,
)
def optmerge(
    matrices: Matrices,
    *,
    decompose: Decomposer,
    experts: Literal["full", "lora"] = "full",
    steps: Annotated[int, Range(0)] = 300,
    lr: Positive | None = None,
    rank_fraction: Fraction | None = None,
) -> Tensor:
    """WUDI with targets and projectors cut to their leading r = max(1, int(n / K)) directions.

    Minimises Σ ‖(τ − Tᵢ) Pᵢᵀ‖² / ‖τᵢ‖² with Pᵢ = (ΣVᵀ)_r of τᵢ. For fully tuned experts Tᵢ = τ̄ + svd_r(τᵢ − τ̄), from
    τ = Σ τᵢ, by Adam; for LoRA-tuned ones Tᵢ = svd_r(τᵢ), from τ = τ̄, by gradient descent with momentum 0.9, which
    keeps the norm small. One expert comes back. Excluded tensors stay at the base, tensors with other than two axes
    follow `elsewhere`. 2K decompositions (K for LoRA).

    Wei et al., "Unifying multimodal large language model capabilities and modalities via model merging", ICLR 2026
    (arXiv:2505.19892). The official scripts let r be 0 for more experts than directions; here as in their library it
    is at least 1.

    Args:
        experts: how the experts were tuned, which decides targets, start, optimizer and rate
        steps: of the optimizer
        lr: learning rate; 1e-5 for full, 1e-4 for LoRA tuning by default
        rank_fraction: share of the n directions that is kept; 1/K by default
    """
    n, count = matrices.directions, len(matrices)
    rank = max(1, n // count if rank_fraction is None else int(rank_fraction * n))
    mean = matrices.mean()
    curvature, gradient = mean.new_zeros(mean.shape[1], mean.shape[1]), torch.zeros_like(mean)
    for index in range(count):
        norm = length(matrices[index])
        if not norm:
            continue
        u, s, vh = decompose.svd(matrices[index], rank)
        projector, size = ranged(vh * s[:, None], norm)
        if experts == "lora":
            distance = mean - (u * s) @ vh
        else:  # from the target to the start: Kτ̄ − (τ̄ + the leading part of τ − τ̄)
            distance = leading(matrices[index] - mean, decompose, rank).neg_().add_(mean, alpha=count - 1)
        del u, vh
        curvature.addmm_(projector.T, projector, alpha=1 / size)
        gradient.add_(slope(distance, projector), alpha=1 / size)
        del distance
    start = mean if experts == "lora" else matrices.sum()
    del mean
    rate = lr or _LR[experts]
    optimizer: Literal["adam", "sgd"] = "adam" if experts == "full" else "sgd"
    return descended(start, gradient, curvature, steps=steps, lr=rate, optimizer=optimizer)
