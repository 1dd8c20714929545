"""Fine-tuning for track T: one expert, or the multi-task bound, from the base with its frozen heads.

AdamW 5e-5, weight decay 0.01, ten per cent warm-up and linear decay, batches of 32 of near-equal length, clip 1.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from cuvee.core.lazy import torch
from cuvee.evaluate.task import Item, Task
from cuvee.evaluate.tracks.heads import Head
from cuvee.evaluate.tracks.learning import learn
from cuvee.evaluate.tracks.text.model import build, embed

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 32


@dataclass(frozen=True, slots=True)
class Training:
    """How long and how fast: samples seen for each task, learning rate."""

    samples: int = 4800
    rate: float = 5e-5
    decay: float = 0.01


class Schedule(Protocol):
    """What a training loop must know: samples seen for each task, learning rate, weight decay."""

    @property
    def samples(self) -> int: ...

    @property
    def rate(self) -> float: ...

    @property
    def decay(self) -> float: ...


def fine_tune(
    tasks: Sequence[Task],
    heads: Mapping[str, Head],
    seed: int,
    training: Training = Training(),
) -> dict[str, Tensor]:
    """Train one model on one task or several at once; its float32 tensors."""
    torch.manual_seed(seed)
    model = build().train()
    train(model, tasks, heads, seed, training)
    return {
        name: tensor.detach().clone()
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }


def train(
    model: Any, tasks: Sequence[Task], heads: Mapping[str, Head], seed: int, training: Schedule
) -> None:
    """Train what the model lets be trained, in place."""
    chance = random.Random(seed)
    batches = [(t, b) for t in tasks for b in _batches(t, training.samples, chance)]
    chance.shuffle(batches)
    losses = [partial(_loss, model, heads[task.name], batch) for task, batch in batches]
    learn(model.parameters(), losses, rate=training.rate, decay=training.decay, schedule=_factor)


def _factor(step: int, steps: int) -> float:
    """Warm-up over a tenth of the steps, linear decay that ends after the last."""
    return min(1.0, (step + 1) / (0.1 * steps)) * (1 - step / steps)


def _loss(model: Any, head: Head, batch: Sequence[Item]) -> Tensor:
    logits = head.logits(embed(model, [item.input for item in batch]))
    return torch.nn.functional.cross_entropy(logits, torch.tensor([item.target for item in batch]))


def _batches(task: Task, samples: int, chance: random.Random) -> Iterator[list[Item]]:
    """Batches until `samples` items were seen, items of near-equal length together to pad less."""
    left = samples // _BATCH
    while left > 0:
        items = list(task.train)
        chance.shuffle(items)
        for first in range(0, len(items) - _BATCH + 1, _BATCH * 8):
            chunk = sorted(items[first : first + _BATCH * 8], key=lambda item: len(item.input))
            parts = [chunk[i : i + _BATCH] for i in range(0, len(chunk) - _BATCH + 1, _BATCH)]
            chance.shuffle(parts)
            yield from parts[:left]
            left -= len(parts[:left])
            if left <= 0:
                return
