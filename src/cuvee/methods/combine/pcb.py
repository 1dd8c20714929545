"""PCB merging: weigh every entry by its size within its task and its agreement with the other tasks.

Owns the balancing score and the order statistics it is cut by; all of them are found without sorting a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cuvee.core.lazy import torch
from cuvee.methods import exponentials
from cuvee.methods.contract import Block, Stream, Summary, stage
from cuvee.methods.parameters import PerExpert, Range, each
from cuvee.methods.summaries import order_statistics_each

if TYPE_CHECKING:
    from torch import Tensor

Variant = Literal["reference", "vision"]
Clamp = Annotated[float, Range(0.0, 0.5, open_high=True)]
_SMALLEST = 1e-12  # least sum of scales that is divided by (the paper's code)


@dataclass(frozen=True, slots=True)
class Span:
    """The smallest and the largest value that count; those beyond are clamped, and [low, high] becomes [0, 1]."""

    low: float
    high: float

    def normalized(self, x: Tensor) -> Tensor:
        """(x − low) / (high − low) of the clamped values, in float64; 0 everywhere where all are equal."""
        width = self.high - self.low
        shifted = x.double().clamp(self.low, self.high) - self.low
        return shifted / width if width > 0 else torch.zeros_like(shifted)


def ranks(size: int, share: float, clamp: float) -> tuple[int, int]:
    """Where the code's clamp looks: positions int(size·share) and int(size·(1 − clamp) − 1) of the sorted values."""
    low = min(int(size * share), size - 1)
    return low, max(int(size * (1 - clamp) - 1), low)


def _summarise(stream: Stream, *, ratio: float, clamp: float, variant: Variant, **_: object) -> Summary:
    size = sum(stream.sizes)
    if size == 0:
        return {}

    def magnitudes(block: Block) -> list[Tensor]:
        return [delta.abs() for delta in block.tensors]

    found = order_statistics_each(stream, magnitudes, ranks(size, clamp, clamp))
    sizes = [Span(low, high) for low, high in found]

    def scores(block: Block) -> list[Tensor]:
        return balanced_scores(block.tensors, sizes, variant)

    cuts = order_statistics_each(stream, scores, ranks(size, 1 - ratio, 0.0))
    return {"sizes": sizes, "scores": [Span(low, high) for low, high in cuts]}


@stage(
    "pcb",
    role="combine",
    summarise=_summarise,
    passes=4,
    scope=lambda values: "model",
    upcast=True,
    paper="arXiv:2410.02396",
)
def pcb(
    deltas: list[Tensor],
    *,
    weight: PerExpert[float] = 1.0,
    ratio: Annotated[float, Range(0.0, 1.0)] = 0.1,
    clamp: Clamp = 1e-4,
    variant: Variant = "reference",
    summary: Summary,
) -> Tensor:
    """Drop most entries of each expert and weigh the rest by size and agreement (PCB merging, arXiv:2410.02396).

    Over the whole model, with K experts and norm01(x) = (x − min) / (max − min) within an expert: aᵢ = |τᵢ| clamped to
    its `clamp` and 1 − `clamp` quantiles; βᵢ = exp(K · norm01(aᵢ)²) · tanh(τᵢ · Σ τⱼ); sᵢ = norm01(βᵢ raised to its
    1 − `ratio` quantile), so that all but the highest share weigh nothing; y = Σ wᵢ · sign(τᵢ)aᵢ · sᵢ / Σ sᵢ (at least
    1e-12). Scores are float64, rounded once. tanh is almost linear at small changes, so the result does depend on the
    scale of the task vectors. An expert whose entries (or scores) are all equal has no scores above the others and is
    left out, where the released code divides 0 by 0.

    Args:
        weight: the paper's λᵢ; 1.2 in the vision script, searched between 0.8 and 1.3
        ratio: share of the entries of each expert that is kept; the paper uses 0.05 to 0.2
        clamp: share of the smallest and of the largest magnitudes that is clamped: 1e-4 in the reference file, 1e-2 in
            the vision script
        variant: what an entry must agree with: Σ τⱼ in the `reference` file, Σ sign(τⱼ) norm01(aⱼ) in the `vision`
            script, which does not depend on the scale of the other experts
    """
    if not summary:
        return deltas[0]
    total = torch.zeros_like(deltas[0], dtype=torch.float64)
    share = torch.zeros_like(total)
    scores = balanced_scores(deltas, summary["sizes"], variant)
    factors = each(weight, len(deltas))
    parts = zip(deltas, scores, factors, summary["sizes"], summary["scores"], strict=True)
    for delta, score, factor, size, cut in parts:
        scale = cut.normalized(score)
        clamped = delta.sign() * delta.abs().clamp(size.low, size.high)
        total = total + clamped * factor * scale
        share = share + scale
    return (total / share.clamp(min=_SMALLEST)).to(deltas[0].dtype)


def balanced_scores(deltas: Sequence[Tensor], sizes: Sequence[Span], variant: Variant) -> list[Tensor]:
    """βᵢ divided by exp(K), which norm01 does not see and which K > 88 would overflow; in the inputs' dtype."""
    count = len(deltas)
    relative = [size.normalized(delta.abs()) for delta, size in zip(deltas, sizes, strict=True)]
    other = torch.zeros_like(relative[0])
    for delta, norm in zip(deltas, relative, strict=True):
        other = other + (delta.double() if variant == "reference" else delta.sign() * norm)
    return [
        _score(count * (norm.square() - 1), delta * other).to(delta.dtype)
        for delta, norm in zip(deltas, relative, strict=True)
    ]


def _score(size: Tensor, agreement: Tensor) -> Tensor:
    return exponentials.exp_below_one(size) * exponentials.tanh(agreement)
