"""Linear combinations of the inputs: coefficients from weights or from a Gram matrix, and the sum itself.

Owns what the averaging and geometric stages share. Coefficients are float64, sums are taken in the compute
dtype, multiply then add, inputs in order. Every coefficient may be a number or a 0-d tensor, so that a
merge can be differentiated with respect to its parameters. Must not know any method.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import torch
from cuvee.errors import RunError
from cuvee.methods.contract import Stream, Summary
from cuvee.methods.summaries import gram

if TYPE_CHECKING:
    from torch import Tensor

_CANCELLED = 1e-12  # a sum of weights this small beside the weights themselves is rounding error


def products(stream: Stream, **_: Any) -> Summary:
    """A stage's `summarise`: the Gram matrix of the inputs, whatever the parameters.

    It depends on the data alone, so that a search over parameters gathers it once.
    """
    return {"gram": gram(stream)}


def matrix_of(summary: Summary) -> Tensor:
    """The Gram matrix of a summary made by `products`, float64 (K, K)."""
    return torch.tensor(summary["gram"], dtype=torch.float64)


def combined(tensors: Sequence[Tensor], coefficients: Iterable[Any]) -> Tensor:
    """Σ cᵢ·xᵢ in the tensors' dtype; coefficients are numbers or 0-d tensors, one for each tensor."""
    pairs = zip(tensors, coefficients, strict=True)
    first, coefficient = next(pairs)
    total: Tensor = first * coefficient
    for tensor, coefficient in pairs:
        total = total + tensor * coefficient
    return total


def vector(values: Any) -> Tensor:
    """Numbers or 0-d tensors as one float64 vector; gradients pass."""
    return torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in values])


def normalized(weights: Any) -> Tensor:
    """The weights divided by their sum, in float64; RunError where they cancel (see `cancelling`).

    They are added in order, which a library's sum does not promise, so that the shares are the same everywhere.
    """
    column = vector(weights)
    if _cancels(column.detach().tolist()):
        raise RunError("CV-E070", "the weights sum to 0, so they cannot be normalized", hint=_HINT)
    return column / functools.reduce(operator.add, column.unbind())


def in_proportion(amounts: Sequence[float]) -> list[float]:
    """Non-negative amounts divided by their sum; equal shares where all are 0 or there is no finite sum.

    They are divided by the largest first, so that the sum cannot overflow.
    """
    largest = max(amounts)
    if not 0 < largest < math.inf:
        return [1 / len(amounts)] * len(amounts)
    parts = [amount / largest for amount in amounts]
    return [part / math.fsum(parts) for part in parts]


def cancelling(values: Mapping[str, Any]) -> str | None:
    """A stage's `check`: what is wrong where `normalize` is on and the weights of all experts sum to 0.

    Looks only at a list of weights; one expert's weight alone says nothing about the sum.
    """
    weights = values.get("weight")
    if not values.get("normalize", True) or not isinstance(weights, (list, tuple)):
        return None
    if not _cancels([float(weight) for weight in weights]):
        return None
    return "the values of `weight` sum to 0, so they cannot be normalized"


_HINT = "give weights with another sum, or `normalize: false` where the method has it"


def _cancels(weights: list[float]) -> bool:
    return abs(sum(weights)) <= _CANCELLED * sum(map(abs, weights))


def arc(cosine: Tensor, t: Any, straight: Tensor) -> tuple[Tensor, Tensor]:
    """The coefficients of spherical interpolation, (sin (1−t)θ, sin tθ) / sin θ with θ = arccos cosine.

    Where `straight` they are (1 − t, t). All float64, broadcast together. The angle is kept away from 0 on
    the branch that is not taken, so that gradients stay finite there too.
    """
    t = torch.as_tensor(t, dtype=torch.float64)
    angle = torch.acos(torch.where(straight, 0.0, cosine))
    sine = torch.sin(angle)
    first = torch.where(straight, 1 - t, torch.sin((1 - t) * angle) / sine)
    second = torch.where(straight, t, torch.sin(t * angle) / sine)
    return first, second
