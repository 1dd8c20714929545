"""Task vectors between experts: analogies, and forgetting on a deployed model. Linear, one pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cuvee.errors import RunError
from cuvee.methods.coefficients import combined
from cuvee.methods.contract import stage
from cuvee.methods.parameters import PerExpert, each

if TYPE_CHECKING:
    from torch import Tensor


def _check(values: Mapping[str, Any]) -> str | None:
    weights = values["weight"]
    return _even(len(weights)) if isinstance(weights, (list, tuple)) else None


def _even(count: int) -> str | None:
    if count >= 3 and count % 2:
        return None
    return f"an analogy takes pairs of models and then one more, an odd number of at least 3, got {count}"


@stage(
    "analogy",
    role="combine",
    takes="either",
    check=_check,
    upcast=True,
    inputs=(3, None),
    paper="arXiv:2212.04089",
)
def analogy(tensors: list[Tensor], *, weight: PerExpert[float] = 1.0, lam: float = 1.0) -> Tensor:
    """A is to B as C is to the result: y = C + λ · (B − A) (task analogies, arXiv:2212.04089).

    The models stand in the order A, B, C. Several pairs may come before C, as A₁, B₁, A₂, B₂, …, C; their differences
    are averaged (synthetic to real, arXiv:2406.02925). No base is needed; one cancels while C has weight 1.

    Args:
        weight: factor of each model's own part, counted from the base if there is one; of C the card's λ_C
        lam: how much of the difference is added
    """
    count = len(tensors)
    problem = _even(count)
    if problem:
        raise RunError("CV-E141", problem)
    pairs = (count - 1) // 2
    factors = [(1 if i % 2 else -1) * lam / pairs for i in range(count - 1)]
    return combined(tensors, [f * w for f, w in zip((*factors, 1.0), each(weight, count), strict=True)])


@stage("forget", role="combine", upcast=True, inputs=(2, None), paper="arXiv:2212.04089")
def forget(deltas: list[Tensor], *, weight: PerExpert[float] = 1.0, lam: float = 1.0) -> Tensor:
    """Take the task vectors of all experts but the first away from the first (negation, arXiv:2212.04089).

    y = w₁τ₁ − λ Σ wᵢτᵢ over the others: the first is a model in use, the others learned what it shall forget, all from
    one base. Result: shape and dtype of the task vectors.

    Args:
        weight: factor of each task vector; of the first, how much of its own training is kept
        lam: how much of the others is taken away; 0 gives the first model
    """
    first, *rest = each(weight, len(deltas))
    return combined(deltas, [first, *(-lam * factor for factor in rest)])
