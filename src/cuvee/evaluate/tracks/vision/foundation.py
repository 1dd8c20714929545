"""The base of track V: EfficientNet-Lite0 of ImageNet, schooled once on characters that no task asks for.

The ImageNet network alone has seen no writing: its experts moved far from it and apart, and merges kept little of what
they had learned. One base for every seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cuvee.evaluate.tracks import store
from cuvee.evaluate.tracks.exchange import exchange
from cuvee.evaluate.tracks.vision.lessons import LESSONS
from cuvee.evaluate.tracks.vision.model import Training, fine_tune, head_of, pretrained
from cuvee.evaluate.tracks.vision.tasks import address, lessons

if TYPE_CHECKING:
    from torch import Tensor

_VERSION = "1"  # of the schooling; part of the base's address
SCHOOLING = Training(samples=5000, rate=5e-4)  # pictures of each lesson


def schooled() -> Any:
    """The base in evaluation mode, statistics of BatchNorm as on ImageNet; schooled first if it is not cached."""
    network = pretrained()
    place = store.address(_VERSION, *map(address, LESSONS), repr(SCHOOLING))
    exchange(network, store.kept(place, "vision-base", _school))
    return network


def _school() -> dict[str, Tensor]:
    network, tasks = pretrained(), lessons()
    heads = {task.name: head_of(network, task) for task in tasks}
    return fine_tune(network, tasks, heads, 0, SCHOOLING)
