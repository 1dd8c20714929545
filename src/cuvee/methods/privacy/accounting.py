"""What a release costs in differential privacy: one of several models at random, or a linear combination of them.

Owns the bounds (after arXiv:2604.20985; derived here from joint convexity and from composition) and how probabilities
are chosen under a budget. A Rényi curve is a mapping of orders α > 1 to ε(α). Pure arithmetic on Python floats; must
not see data or models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cuvee.errors import UsageError

Curve = Mapping[float, float]
_SUM = 1e-9  # how far probabilities may be from 1 in sum


@dataclass(frozen=True, slots=True)
class Guarantee:
    """(ε, δ) differential privacy of one release; `order` is the Rényi order it comes from, None where it does not."""

    mechanism: str
    epsilon: float
    delta: float
    order: float | None = None

    def __str__(self) -> str:
        found = "" if self.order is None else f", from the Rényi curve at order {self.order:g}"
        return f"{self.mechanism}: ({self.epsilon:.6g}, {self.delta:.6g})-differentially private{found}"


def selection_delta(probabilities: Sequence[float], deltas: Sequence[float]) -> float:
    """δ(ε) of releasing model i with probability pᵢ: Σ pᵢ δᵢ(ε), all deltas at one ε.

    An upper bound by joint convexity of the hockey-stick divergence; exact where the index is told, too.
    """
    _distribution(probabilities, len(deltas))
    _within("delta", deltas, 0.0, 1.0)
    return math.fsum(p * d for p, d in zip(probabilities, deltas, strict=True))


def selection_rdp(probabilities: Sequence[float], curves: Sequence[Curve]) -> dict[float, float]:
    """Rényi curve of releasing model i with probability pᵢ: log(Σ pᵢ e^((α − 1) εᵢ(α))) / (α − 1).

    At the orders that all curves have; never above the largest εᵢ(α) of a model with pᵢ > 0.
    """
    _distribution(probabilities, len(curves))
    used = [(p, curve) for p, curve in zip(probabilities, curves, strict=True) if p > 0]
    out = {}
    for order in _orders([curve for _, curve in used]):
        powers = [math.log(p) + (order - 1) * curve[order] for p, curve in used]
        largest = max(powers)
        mean = largest + math.log(math.fsum(math.exp(x - largest) for x in powers))
        out[order] = mean / (order - 1)
    return out


def selection_probabilities(
    costs: Sequence[float], budget: float, utilities: Sequence[float]
) -> tuple[float, ...]:
    """Probabilities with the largest Σ pᵢ utilityᵢ among those with Σ pᵢ costᵢ ≤ budget.

    Costs are the models' δᵢ(ε*) and the budget δ*; for a target in Rényi terms e^((α − 1) εᵢ(α)) and e^((α − 1) ε*(α)).
    The best of this linear program always needs at most two models, so every pair is tried and the result is exact.
    Utilities must not come from the private data, or their release must be paid for.

    Raises:
        UsageError: CV-U190 where even the cheapest model costs more than the budget.
    """
    count = len(costs)
    if count == 0 or len(utilities) != count or not all(map(math.isfinite, (*costs, *utilities, budget))):
        raise UsageError(
            "CV-U191", f"{count} finite costs need as many finite utilities, got {list(utilities)}"
        )
    if min(costs) > budget:
        message = (
            f"no model is private enough: the smallest cost is {min(costs):.6g}, the budget {budget:.6g}"
        )
        raise UsageError("CV-U190", message)
    best, found = -math.inf, (0.0,) * count
    for i in range(count):
        for j in range(i, count):
            share = _share(costs[i], costs[j], utilities[i], utilities[j], budget)
            if share is None:
                continue
            value = (1 - share) * utilities[i] + share * utilities[j]
            if value > best:
                best = value
                found = tuple((1 - share) * (k == i) + share * (k == j) for k in range(count))
    return found


def _share(cost: float, other: float, utility: float, rival: float, budget: float) -> float | None:
    """The best share of the second of two models, None where no share keeps to the budget."""
    low, high = 0.0, 1.0
    if cost > budget and other > budget:
        return None
    if other > budget:
        high = (budget - cost) / (other - cost)
    if cost > budget:
        low = (cost - budget) / (cost - other)
    return high if rival > utility else low


def linear_rdp(weights: Sequence[float], curves: Sequence[Curve]) -> dict[float, float]:
    """Rényi curve of releasing Σ wᵢ θᵢ: Σ εᵢ(α) over the models with a weight other than 0, which must be fixed
    in advance (composition of independent runs, then post-processing). It is what releasing all of them costs.
    """
    if len(weights) != len(curves) or not weights or not all(map(math.isfinite, weights)):
        raise UsageError("CV-U191", f"{len(curves)} curves need as many finite weights, got {list(weights)}")
    used = [curve for w, curve in zip(weights, curves, strict=True) if w != 0]
    return {order: math.fsum(curve[order] for curve in used) for order in _orders(used)}


def rdp_guarantee(mechanism: str, curve: Curve, delta: float) -> Guarantee:
    """The smallest ε that a Rényi curve proves for this δ (Canonne, Kamath and Steinke, arXiv:2004.00010).

    ε = ε(α) + log(1 − 1/α) − log(δ α) / (α − 1), at the best of the curve's orders, at least 0.
    """
    _within("delta", [delta], 0.0, 1.0, open_low=True)
    orders = _orders([curve])
    epsilons = {a: curve[a] + math.log1p(-1 / a) - math.log(delta * a) / (a - 1) for a in orders}
    order = min(epsilons, key=epsilons.__getitem__)
    return Guarantee(mechanism, max(0.0, epsilons[order]), delta, order)


def _orders(curves: Sequence[Curve]) -> list[float]:
    if not curves:
        return []
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    if not shared or shared[0] <= 1:
        raise UsageError("CV-U191", f"Rényi curves need common orders above 1, got {shared}")
    for curve in curves:
        _within("epsilon", [curve[order] for order in shared], 0.0, math.inf)
    return shared


def _distribution(probabilities: Sequence[float], count: int) -> None:
    _within("probability", probabilities, 0.0, 1.0)
    if len(probabilities) != count or abs(math.fsum(probabilities) - 1) > _SUM:
        message = f"{count} models need as many probabilities of sum 1, got {list(probabilities)}"
        raise UsageError("CV-U191", message)


def _within(what: str, values: Sequence[float], low: float, high: float, *, open_low: bool = False) -> None:
    for value in values:
        if not (low < value <= high if open_low else low <= value <= high):
            above = "above" if open_low else "at least"
            raise UsageError(
                "CV-U191", f"a {what} must be {above} {low:g} and at most {high:g}, got {value!r}"
            )
