"""A track under stress: the same tasks, but what methods are handed as experts holds one that it should not.

Owns the ways of spoiling. Scores stay those of the track's own tasks, beside its own clean experts, so that a method's
loss under stress is a paired difference on the same items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from cuvee.core.lazy import torch
from cuvee.core.names import did_you_mean, printable
from cuvee.errors import UsageError
from cuvee.evaluate.task import Task
from cuvee.evaluate.track import Examinee, Track, ordered
from cuvee.evaluate.tracks import store

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from cuvee.evaluate.track import Weights

SHARE, LARGE, TRIPLED = 0.001, 10.0, 3.0  # of weights that are damaged, by standard deviations; unequal norms


class Stressed:
    """A track whose methods are handed one expert too many, or one that is out of proportion (see `KINDS`)."""

    def __init__(self, track: Track, kind: str, seed: int = 0) -> None:
        if kind not in KINDS:
            hint = did_you_mean(kind, KINDS) or f"there are {', '.join(KINDS)}"
            raise UsageError("CV-U370", f"there is no stress `{printable(kind)}`", hint=hint)
        self.name = f"{track.name}+{kind}"
        self.digest = store.address(track.digest, "stress 1", kind, str(seed))
        self.kind, self.seed = kind, seed
        self.extra = 0 if kind == "unequal" else 1  # how many experts more than tasks are handed out
        self.ordered = ordered(track)
        self._track = track

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The track's tasks."""
        return self._track.tasks

    @property
    def base(self) -> Weights:
        """The track's base."""
        return self._track.base

    def expert(self, task: str) -> Weights:
        """The track's own expert: what scores are normalised by."""
        return self._track.expert(task)

    def references(self) -> Mapping[str, Weights]:
        """None: they are those of the track without stress."""
        return {}

    def examinee(self) -> Examinee:
        """The track's live model."""
        return self._track.examinee()

    def handed(self, names: Sequence[str]) -> list[Weights]:
        """The experts of these tasks as methods get them under stress."""
        drawn = torch.Generator().manual_seed(self.seed)
        return KINDS[self.kind](self.base, [self.expert(name) for name in names], drawn)


def _junk(base: Weights, experts: list[Weights], drawn: Generator) -> list[Weights]:
    """One more expert that is the base plus noise, as large in every tensor as the others' changes on average."""
    noisy: dict[str, Tensor] = {}
    for name, start in base.items():
        norm = sum(float((e[name].float() - start.float()).norm()) for e in experts) / len(experts)
        noise = torch.randn(start.shape, generator=drawn)
        noisy[name] = (start.float() + noise * (norm / max(float(noise.norm()), 1e-30))).to(start.dtype)
    return [*experts, noisy]


def _duplicate(base: Weights, experts: list[Weights], drawn: Generator) -> list[Weights]:
    """The first expert once more."""
    return [*experts, experts[0]]


def _stranger(base: Weights, experts: list[Weights], drawn: Generator) -> list[Weights]:
    """One more expert from another base: the first expert's change on the base's weights in another order."""
    other: dict[str, Tensor] = {}
    for name, start in base.items():
        order = torch.randperm(start.numel(), generator=drawn)
        shuffled = start.flatten()[order].reshape(start.shape)
        other[name] = shuffled + (experts[0][name] - start)
    return [*experts, other]


def _damaged(base: Weights, experts: list[Weights], drawn: Generator) -> list[Weights]:
    """The first expert once more with one weight in a thousand set to ten standard deviations of its tensor."""
    broken: dict[str, Tensor] = {}
    for name, tensor in experts[0].items():
        hit = torch.rand(tensor.shape, generator=drawn) < SHARE
        spread = tensor.float().std() if tensor.numel() > 1 else tensor.float().abs().sum()
        broken[name] = torch.where(hit, (LARGE * spread).to(tensor.dtype), tensor)
    return [*experts, broken]


def _unequal(base: Weights, experts: list[Weights], drawn: Generator) -> list[Weights]:
    """The first expert's change three times as large."""
    far = {
        n: (s.float() + TRIPLED * (experts[0][n].float() - s.float())).to(s.dtype) for n, s in base.items()
    }
    return [far, *experts[1:]]


KINDS: Mapping[str, Callable[..., list[Weights]]] = {
    "junk": _junk,
    "duplicate": _duplicate,
    "stranger": _stranger,
    "damaged": _damaged,
    "unequal": _unequal,
}
