"""Weighted average of checkpoints, the plain model soup. Elementwise, one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.methods.coefficients import cancelling, combined, normalized
from cuvee.methods.contract import stage
from cuvee.methods.parameters import PerExpert, each

if TYPE_CHECKING:
    from torch import Tensor


@stage(
    "linear",
    role="combine",
    takes="weight",
    check=cancelling,
    upcast=True,
    paper="arXiv:2203.05482",
)
def linear(tensors: list[Tensor], *, weight: PerExpert[float] = 1.0, normalize: bool = True) -> Tensor:
    """Average the models: y = Σ wᵢ θᵢ / Σ wᵢ.

    Every tensor is averaged element by element in float32 or better; one pass. With `normalize` off the sum
    is taken as it is, so that any linear combination can be written. Works where all models come from one
    pre-trained model (same loss basin); batch-norm statistics must be estimated anew afterwards.

    Wortsman et al., "Model soups", ICML 2022 (arXiv:2203.05482).

    Args:
        weight: share of each model; any number, relative to the others where `normalize` is on
        normalize: divide by the sum of the weights, which then must not be 0
    """
    weights = each(weight, len(tensors))
    return combined(tensors, normalized(weights) if normalize else weights)
