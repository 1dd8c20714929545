"""Linear combinations of the inputs: coefficients from weights or from a Gram matrix, and the sum itself.

Owns what the averaging and geometric stages share. Coefficients are float64, sums are taken in the compute
dtype, multiply then add, inputs in order. Every coefficient may be a number or a 0-d tensor, so that a
merge can be differentiated with respect to its parameters. A formula of coefficients is written once, in functions
that numpy and torch have under one name, and `floats` for single numbers. Must not know any method.
"""

from __future__ import annotations

import functools
import math
import operator
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from cuvee.core.lazy import numpy, torch
from cuvee.errors import RunError
from cuvee.methods import floats
from cuvee.methods.contract import Stream, Summary
from cuvee.methods.summaries import gram

if TYPE_CHECKING:
    from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
_CANCELLED = 1e-12  # a sum of weights this small beside the weights themselves is rounding error


def products(stream: Stream, **_: Any) -> Summary:
    """A stage's `summarise`: the Gram matrix of the inputs, whatever the parameters.

    It depends on the data alone, so that a search over parameters gathers it once.
    """
    return {"gram": gram(stream)}


def numbers(*values: Any) -> Any:
    """What computes with a few numbers: torch where one of these is a tensor, else numpy, which is there sooner."""
    return torch if _tensors(values) else numpy


def single(*values: Any) -> Any:
    """As `numbers`, where each is one number: torch where one of these is a tensor, else `floats`, there at once."""
    return torch if _tensors(values) else floats


def _tensors(values: Iterable[Any]) -> bool:
    """Whether one of the values is a tensor."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)  # another thread may be importing it
    return tensor is not None and any(isinstance(value, tensor) for value in values)


def silent(formula: Callable[P, R]) -> Callable[P, R]:
    """A formula whose invalid or overflowing numbers become NaN and infinity without a word, as torch has it."""

    @functools.wraps(formula)
    def quietly(*given: P.args, **named: P.kwargs) -> R:
        with numpy.errstate(all="ignore"):
            return formula(*given, **named)

    return quietly


def wide(xp: Any, value: Any) -> Any:
    """A number, list or tensor as a float64 array of what `numbers` or `single` gave; gradients pass."""
    if xp is floats:
        return float(value)
    return torch.as_tensor(value, dtype=torch.float64) if xp is torch else numpy.asarray(value, numpy.float64)


def plain(value: Any) -> float:
    """A number without its gradient."""
    return float(value.detach() if hasattr(value, "detach") else value)


def factor(value: Any) -> Any:
    """What a tensor can be multiplied by: a tensor as it is, another number as a float."""
    return value if numbers(value) is torch else float(value)


def matrix_of(summary: Summary, xp: Any = torch) -> Any:
    """The Gram matrix of a summary made by `products`, float64 (K, K), as an array of what `numbers` gave; rows of
    floats for `single`.
    """
    return summary["gram"] if xp is floats else wide(xp, summary["gram"])


def combined(tensors: Sequence[Tensor], coefficients: Iterable[Any]) -> Tensor:
    """Σ cᵢ·xᵢ in the tensors' dtype; coefficients are numbers or 0-d tensors, one for each tensor."""
    pairs = zip(tensors, map(factor, coefficients), strict=True)
    first, coefficient = next(pairs)
    total: Tensor = first * coefficient
    for tensor, coefficient in pairs:
        total = total + tensor * coefficient
    return total


def vector(values: Any) -> Any:
    """Numbers or 0-d tensors as one float64 vector of numpy, or of torch, where gradients pass."""
    xp = numbers(*values)
    return xp.stack([wide(xp, value) for value in values])


def normalized(weights: Any) -> Any:
    """The weights divided by their sum, in float64; RunError where they cancel (see `cancelling`).

    They are added in order, which a library's sum does not promise, so that the shares are the same everywhere.
    """
    column = vector(weights)
    if cancels([plain(weight) for weight in column]):
        raise RunError("CV-E070", "the weights sum to 0, so they cannot be normalized", hint=_HINT)
    return column / functools.reduce(operator.add, list(column))


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
    if not cancels([float(weight) for weight in weights]):
        return None
    return "the values of `weight` sum to 0, so they cannot be normalized"


_HINT = "give weights with another sum, or `normalize: false` where the method has it"


def cancels(weights: Sequence[float]) -> bool:
    """Whether the sum of weights is rounding error."""
    return abs(sum(weights)) <= _CANCELLED * sum(map(abs, weights))


def arc(cosine: Any, t: Any, straight: Any) -> tuple[Any, Any]:
    """The coefficients of spherical interpolation, (sin (1−t)θ, sin tθ) / sin θ with θ = arccos cosine.

    Where `straight` they are (1 − t, t). All float64, broadcast together. The angle is kept away from 0 on
    the branch that is not taken, so that gradients stay finite there too.
    """
    xp = single(cosine, t)
    t = wide(xp, t)
    angle = xp.arccos(xp.where(straight, 0.0, cosine))
    sine = xp.sin(angle)
    first = xp.where(straight, 1 - t, xp.divide(xp.sin((1 - t) * angle), sine))
    second = xp.where(straight, t, xp.divide(xp.sin(t * angle), sine))
    return first, second
