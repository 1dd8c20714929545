"""A track of linear models: the smallest thing a referee can judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cuvee.evaluate.ledger import Ledger
from cuvee.evaluate.task import ACCURACY, Item, Metric, Provenance, Task

HERE = Provenance("made here")
WEIGHT = "weight"


def items(weight: torch.Tensor, count: int, seed: int, groups: str = "") -> list[Item]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, len(weight), generator=generator)
    return [Item(x.numpy(), int(x @ weight > 0), groups or None) for x in inputs]


class Linear:
    """Answers sign(w·x); counts what it did."""

    def __init__(self) -> None:
        self.weight = torch.zeros(8)
        self.loaded = 0

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.weight = weights[WEIGHT]
        self.loaded += 1

    def answer(self, task: Task, asked: Sequence[Item], ledger: Ledger) -> Any:
        ledger.add(examples=len(asked), forward=1)
        found = [float(int(torch.from_numpy(i.input) @ self.weight > 0) == i.target) for i in asked]
        return np.array(found)


class Track:
    """Two tasks with experts and one unseen."""

    name, digest = "linear", "0"

    def __init__(self, metric: Metric = ACCURACY) -> None:
        self.truth = {
            n: torch.randn(8, generator=torch.Generator().manual_seed(i)) for i, n in enumerate("abc")
        }
        self.tasks = {
            name: Task.of(
                name,
                train=items(weight, 20, 10),
                selection=items(weight, 40, 11),
                test=items(weight, 200, 12),
                metric=metric,
                head="none",
                provenance=HERE,
                unseen=name == "c",
            )
            for name, weight in self.truth.items()
        }
        self.base = {WEIGHT: torch.zeros(8)}

    def expert(self, task: str) -> Mapping[str, torch.Tensor]:
        return {WEIGHT: self.truth[task]}

    def references(self) -> Mapping[str, Mapping[str, torch.Tensor]]:
        return {}

    def examinee(self) -> Linear:
        return Linear()
