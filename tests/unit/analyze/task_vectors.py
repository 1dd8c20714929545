"""The figures of task vectors in float64 NumPy, position by position, from the guide's definitions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SHARES = (0.01, 0.05, 0.20)


def model(
    seed: int, like: dict[str, np.ndarray] | None = None, unchanged: float = 0.0
) -> dict[str, np.ndarray]:
    """Tensors of a tiny model; with `like` a fine-tune of it, of whose elements this share did not change."""
    rng = np.random.default_rng(seed)
    shapes = {
        "layers.0.q.weight": (12, 10),
        "layers.0.norm.weight": (10,),
        "layers.1.q.weight": (12, 10),
        "layers.1.norm.weight": (10,),
        "head.weight": (30, 10),
    }
    if like is None:
        return {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    return {
        n: (t + 0.05 * rng.normal(size=t.shape) * (rng.random(t.shape) >= unchanged)).astype(np.float32)
        for n, t in like.items()
    }


def deltas(
    base: dict[str, np.ndarray], experts: Sequence[dict[str, np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    """Task vectors as float32 subtraction gives them, then float64."""
    return [{n: (e[n] - base[n]).astype(np.float64).ravel() for n in base} for e in experts]


def flat(tensors: dict[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    return np.concatenate([tensors[n].astype(np.float64).ravel() for n in names])


def largest(values: np.ndarray, share: float) -> set[int]:
    """Positions of the largest magnitudes of one tensor, earlier ones first among equals, zeros never."""
    count = max(1, int(np.ceil(share * len(values) - 1e-9)))
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:count]
    return {i for i in order if values[i] != 0}


def jaccard(a: dict[str, np.ndarray], b: dict[str, np.ndarray], names: Sequence[str], share: float) -> float:
    tops = [(largest(a[n], share), largest(b[n], share)) for n in names]
    return sum(len(x & y) for x, y in tops) / sum(len(x | y) for x, y in tops)


def opposition(a: np.ndarray, b: np.ndarray) -> float:
    opposed = a * b < 0
    return float((abs(a) * abs(b))[opposed].sum() / np.linalg.norm(a) / np.linalg.norm(b))
