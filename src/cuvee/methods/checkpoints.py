"""Weights of the checkpoints of one run, oldest first: every rule gives one number for each, summing to 1.

Owns the rules as plain arithmetic on numbers; `combine/trajectory.py` makes stages of them. Must not know torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from cuvee.methods.formula import BadFormula, values


def window(count: int, *, start: int = 0, every: int = 1, last: int | None = None) -> list[float]:
    """Equal weights of every `every`-th checkpoint from number `start` on, of these the `last` newest; others 0.

    Where `start` leaves none, the newest checkpoint stands alone.
    """
    chosen = range(count)[start::every] or range(count)[-1:]
    taken = set(chosen[-last:] if last else chosen)
    return [1 / len(taken) if number in taken else 0.0 for number in range(count)]


def exponential(count: int, decay: float, *, debiased: bool = False) -> list[float]:
    """Of ē ← decay · ē + (1 − decay) · θ started at the first: decay^(N−1), then (1 − decay) · decay^(N−j).

    `debiased` starts at 0 and divides by 1 − decay^N instead.
    """
    weights = [(1 - decay) * decay ** (count - j) for j in range(1, count + 1)]
    if debiased and decay < 1:
        return [weight / (1 - decay**count) for weight in weights]
    if debiased:  # the limit of decay → 1
        return [1 / count] * count
    return [decay ** (count - 1), *weights[1:]]


def recency(count: int) -> list[float]:
    """j / Σ j: linear in the order."""
    return [2 * j / (count * (count + 1)) for j in range(1, count + 1)]


def emulated(count: int, decay: str) -> list[float]:
    """Weights under which averaging replays a decay of the learning rate: c₀ = 1 − w₁, cⱼ = wⱼ − wⱼ₊₁, c_k = w_k.

    `decay` is a formula of x = i/(k+1) or a list w₁ … w_k for the k updates between N = k + 1 checkpoints; values are
    clipped to 0 … 1. BadFormula where it rises (it would need negative weights) or has no values.
    """
    kept = [1.0, *(min(max(w, 0.0), 1.0) for w in values(decay, decay_points(count))), 0.0]
    weights = [before - after for before, after in pairwise(kept)]
    worst = min(weights)
    if worst < -1e-12:
        raise BadFormula("rises with x; a decay must not, since its weights would be negative")
    return [max(weight, 0.0) for weight in weights]


def decay_points(count: int) -> list[float]:
    """Where a decay is asked for, x = i / N of the update before the i-th of N checkpoints (the first has none)."""
    return [i / count for i in range(1, count)]


def by_metric(metrics: Sequence[float], *, metric: str, penalty: float, form: str) -> list[float]:
    """Weights from one logged figure for each checkpoint, smaller `loss` or larger `step` (or `score`) weighing more.

    `power`: sᵖ / Σ sᵖ with s = 1 / loss or the step; `softmax`: softmax of p · z with z the standardised −loss or step
    (population deviation; all equal where it is 0).
    """
    if form == "power":
        # In logarithms, so that no power over- or underflows on the way.
        logs = [(-math.log(m) if metric == "loss" else math.log(m)) * penalty for m in metrics]
    else:
        mean = math.fsum(metrics) / len(metrics)
        spread = math.sqrt(math.fsum((m - mean) ** 2 for m in metrics) / len(metrics))
        sign = -1 if metric == "loss" else 1
        logs = [sign * penalty * (m - mean) / spread if spread else 0.0 for m in metrics]
    parts = [math.exp(value - max(logs)) for value in logs]
    return [part / math.fsum(parts) for part in parts]
