"""Task vectors weighted by their share of the squared change: VaRM for each matrix, MetaGPT for the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from cuvee.core.lazy import torch
from cuvee.methods.coefficients import combined, in_proportion
from cuvee.methods.contract import Block, Place, Scope, Stream, Summary, stage
from cuvee.methods.summaries import totals_by

if TYPE_CHECKING:
    from torch import Tensor

Granularity = Literal["model", "layer", "tensor", "element"]


def _scope(values: Mapping[str, Any]) -> Scope | None:
    scopes: dict[str, Scope | None] = {
        "model": "model",
        "layer": "model",
        "tensor": "tensor",
        "element": None,
    }
    return scopes[values["granularity"]]


def _group(place: Place, granularity: Granularity) -> str | int:
    """Which tensors share their weights: all, those of a layer, or (outside the layers) each for itself."""
    if granularity != "layer":
        return ""
    return place.name if place.layer is None else place.layer


def _summarise(stream: Stream, *, granularity: Granularity) -> Summary:
    def squares(block: Block) -> list[Tensor]:
        return [delta.double().square() for delta in block.tensors]

    sums = totals_by(stream, squares, lambda block: _group(block.place, granularity))
    return {"weights": {group: in_proportion(energies) for group, energies in sums.items()}}


@stage(
    "energy_mean",
    role="combine",
    summarise=_summarise,
    scope=_scope,
    upcast=True,
    paper="arXiv:2402.16107",
)
def energy_mean(
    deltas: list[Tensor], *, granularity: Granularity = "tensor", summary: Summary, block: Block
) -> Tensor:
    """Σ wᵢτᵢ with wᵢ = ‖τᵢ‖² / Σ ‖τⱼ‖²: who changed more, weighs more (VaRM, arXiv:2402.16107; MetaGPT, 2406.11385).

    The weights sum to 1 and do not depend on a common scale; where nobody changed anything they are equal. Squared
    norms are float64. Result: shape and dtype of the task vectors.

    Args:
        granularity: what norms are taken over: the `model` (MetaGPT), a `layer` (tensors outside the layers each for
            themselves), a `tensor` (VaRM), or every `element` for itself
    """
    if granularity == "element":
        return _by_element(deltas)
    weights = summary["weights"].get(_group(block.place, granularity))
    return combined(deltas, weights or [1 / len(deltas)] * len(deltas))


def _by_element(deltas: Sequence[Tensor]) -> Tensor:
    """Σ τᵢ³ / Σ τᵢ², divided through by the largest |τᵢ| first, so that squares neither vanish nor overflow."""
    largest = torch.zeros_like(deltas[0])
    for delta in deltas:
        largest = torch.maximum(largest, delta.abs())
    scale = torch.where(largest == 0, 1.0, largest)
    total, energy = torch.zeros_like(largest), torch.zeros_like(largest)
    for delta in deltas:
        share = (delta / scale).square()
        total = total + share * delta
        energy = energy + share
    return total / torch.where(energy == 0, 1.0, energy)
