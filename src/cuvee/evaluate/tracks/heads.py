"""Frozen classifiers on features: made once from the base's class means, never changed, never merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuvee.core.lazy import torch
from cuvee.evaluate.track import Answers
from cuvee.evaluate.tracks import store

if TYPE_CHECKING:
    from torch import Tensor

SHARPNESS = 12.0


@dataclass(frozen=True, slots=True)
class Head:
    """The features' centre (d) and one unit direction for each class (c, d)."""

    centre: Tensor
    directions: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """(n, c) from (n, d): 12 · cos(features − centre, direction)."""
        turned = torch.nn.functional.normalize(features - self.centre, dim=1)
        return SHARPNESS * turned @ self.directions.T


def prototypes(features: Tensor, labels: Tensor, classes: int) -> Head:
    """The head whose directions are the classes' centred means of `features` (n, d) under `labels` (n)."""
    centre = features.mean(0)
    sums = torch.stack([(features[labels == c] - centre).sum(0) for c in range(classes)])
    return Head(centre, torch.nn.functional.normalize(sums + 1e-9, dim=1))


def codes(classes: int, width: int, seed: int = 0) -> Head:
    """A head that depends on no base: orthonormal random directions (at most `width` classes), centre zero.

    Networks of any initialisation are trained towards the same directions, so that their features can be compared.
    """
    generator = torch.Generator().manual_seed(seed)
    square = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    return Head(torch.zeros(width), square[:classes].contiguous())


def stored_head(address: str, name: str, make: Callable[[], Head]) -> Head:
    """A head kept in the cache by its address, made first where it is not there."""

    def tensors() -> dict[str, Tensor]:
        head = make()
        return {"centre": head.centre, "directions": head.directions}

    return Head(**store.kept(address, name, tensors, kind="heads"))


def classified(logits: Tensor, targets: Tensor) -> Answers:
    """1 where the largest of an item's logits (n, c) is that of its target (n), else 0; and its softmax."""
    confidence, said = logits.double().softmax(1).max(1)
    right = (said == targets).double()
    return Answers(right.numpy(), confidence.numpy())
