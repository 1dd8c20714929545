"""What a track offers the referee: one base, its experts, tasks, and a live model that answers them.

Protocols only; the tracks that ship are in `tracks/`, others are made by implementing these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cuvee.evaluate.ledger import Ledger
from cuvee.evaluate.task import Item, Task

if TYPE_CHECKING:
    from torch import Tensor

    from cuvee.evaluate.units import Scores

    Weights = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Answers:
    """A number for each item, and the probability (0…1) that the model gave to what it answered."""

    scores: Scores
    confidence: Scores


class Examinee(Protocol):
    """A live model whose weights can be exchanged.

    A classifier may have a method `classify` beside `answer`, of the same arguments, that gives `Answers`: its tasks of
    the metric accuracy are asked by it, and calibration is reported.
    """

    def load(self, weights: Weights) -> None:
        """Take these weights; tensors that `weights` lacks stay as they are. The referee fills in the base's."""
        ...

    def answer(self, task: Task, items: Sequence[Item], ledger: Ledger) -> Scores:
        """One number for each item by the task's metric; examples, forward passes and FLOPs go to the ledger."""
        ...


class Track(Protocol):
    """One base and its experts on several tasks.

    `experts` are keyed by task; `unseen` tasks have none. `digest` identifies data, base and experts together. A track
    may have a method `handed(names)` too, the list of weights that methods get as experts of these tasks where it is
    not `expert(name)` of each, and `extra`, how many more they are than tasks. Where experts are the checkpoints of one
    run, oldest first, it says so by `ordered`, true: of fewer than all the last are taken.
    """

    @property
    def name(self) -> str:
        """The track's name, a word."""
        ...

    @property
    def digest(self) -> str:
        """Content address of everything scores depend on besides the method."""
        ...

    @property
    def tasks(self) -> Mapping[str, Task]:
        """Tasks by name; unseen ones included."""
        ...

    @property
    def base(self) -> Weights:
        """The common ancestor's tensors, heads excluded."""
        ...

    def expert(self, task: str) -> Weights:
        """The tensors of the expert fine-tuned on this task."""
        ...

    def references(self) -> Mapping[str, Weights]:
        """Other models to score beside the merges: `multitask`, the bound of joint training."""
        ...

    def examinee(self) -> Examinee:
        """A live model of the base's architecture."""
        ...


def handed(track: Track, names: Sequence[str]) -> list[Weights]:
    """What methods get as the experts of these tasks, in order."""
    own = getattr(track, "handed", None)
    return list(own(names)) if own is not None else [track.expert(name) for name in names]


def ordered(track: Track) -> bool:
    """Whether the experts are checkpoints of one run, oldest first."""
    return bool(getattr(track, "ordered", False))


def count_handed(track: Track, names: Sequence[str]) -> int:
    """How many experts methods get for these tasks."""
    return len(names) + int(getattr(track, "extra", 0))


def sides(shape: Sequence[int]) -> list[int]:
    """The sides of a shape but those of length 1: a pointwise convolution is a matrix, its transpose is not."""
    return [side for side in shape if side != 1]
