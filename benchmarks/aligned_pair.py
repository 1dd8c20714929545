"""A trial on `initialisations-mlp`: does the average of two networks come back once their units are matched?

    cuvee bench run initialisations-mlp -m average --task mnist_a --task mnist_b -o ./pair
    PYTHONPATH=benchmarks cuvee bench add ./pair aligned_pair:matched

Units are matched layer by layer by the correlation of what they say to training pictures, as in Li et al. 2016,
arXiv:1511.07543. It shows that the track can tell alignment from none, and is no method of the product.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cuvee.evaluate.selection import Selection

HIDDEN = ("first", "second", "third")
PICTURES = 2000


def matched(room: Selection) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """The mean of the experts, the units of each put in the order of the first's."""
    pictures = [item.input for task in room.tasks for item in task.train[: PICTURES // len(room.tasks)]]
    seen = torch.from_numpy(numpy.stack(pictures)).float().flatten(1) / 127.5 - 1
    first, *others = room.experts
    turned = [dict(first), *(_turned(dict(other), first, seen) for other in others)]
    return {name: torch.stack([t[name] for t in turned]).mean(0) for name in first}, {}


def _turned(other: dict[str, Tensor], first: Mapping[str, Tensor], seen: Tensor) -> dict[str, Tensor]:
    """The same function as `other`, its hidden units in the order of those of `first` they resemble most."""
    following = (*HIDDEN[1:], "out")
    for layer, after in zip(HIDDEN, following, strict=True):
        theirs, ours = (_standard(_said(network, seen, layer)) for network in (other, first))
        _, order = linear_sum_assignment((ours.T @ theirs).numpy(), maximize=True)
        for name in (f"{layer}.weight", f"{layer}.bias"):
            other[name] = other[name][order]
        other[f"{after}.weight"] = other[f"{after}.weight"][:, order]
    return other


def _said(network: Mapping[str, Tensor], seen: Tensor, last: str) -> Tensor:
    """What the units of a hidden layer say to pictures (n, 256): (n, 128)."""
    for layer in HIDDEN[: HIDDEN.index(last) + 1]:
        seen = (seen @ network[f"{layer}.weight"].T + network[f"{layer}.bias"]).relu()
    return seen


def _standard(said: Tensor) -> Tensor:
    centred = said - said.mean(0)
    return centred / centred.norm(dim=0).clamp_min(1e-6)
