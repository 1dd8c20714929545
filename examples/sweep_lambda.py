"""Tune lambda: merge in memory for each value, score, and save the best. Nothing but the winner is written.

    python examples/sweep_lambda.py

The model is a linear map from 20 numbers to 5. Each expert was trained on half of its outputs; the score is the error
over all of them. Put your own model and validation data in place of `error`.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

import cuvee

TRUTH = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
INPUTS = torch.randn(200, 20, generator=torch.Generator().manual_seed(1))


def expert(base: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    """The base fine-tuned by 200 steps of gradient descent on some outputs."""
    weight = base["weight"].clone().requires_grad_()
    optimiser = torch.optim.SGD([weight], lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        ((INPUTS @ (weight - TRUTH).T)[:, rows] ** 2).mean().backward()
        optimiser.step()
    return {"weight": weight.detach()}


def error(tensors: dict[str, Tensor]) -> float:
    return float(((INPUTS @ (tensors["weight"] - TRUTH).T) ** 2).mean())


def main(folder: Path) -> None:
    base = {"weight": torch.zeros(5, 20)}
    experts = {"first": expert(base, slice(0, 3)), "second": expert(base, slice(3, 5))}
    for name, tensors in {"base": base, **experts}.items():
        print(f"{name:<12} error {error(tensors):.4f}")
    scores = {}
    for lam in (0.25, 0.5, 0.75, 1.0, 1.25):
        blend = cuvee.merge(experts, base=base, method="task_arithmetic", lam=lam)
        scores[lam] = error(blend.load())
        print(f"lambda {lam:<5} error {scores[lam]:.4f}")
    best = min(scores, key=scores.__getitem__)
    saved = cuvee.merge(experts, base=base, method="task_arithmetic", lam=best).save(
        folder / "best.safetensors"
    )
    print(f"saved lambda {best} as {saved.path.name}")


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        main(Path(temporary))
