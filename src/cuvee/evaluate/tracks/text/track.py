"""Track T as the referee sees it: base, experts trained when first asked for and kept by content, tasks, heads."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from blake3 import blake3

from cuvee.evaluate.task import Task
from cuvee.evaluate.tracks import store
from cuvee.evaluate.tracks.text import tasks as making
from cuvee.evaluate.tracks.text.model import Head, TextExaminee, base_weights, build, head_of
from cuvee.evaluate.tracks.text.train import Training, fine_tune

if TYPE_CHECKING:
    from torch import Tensor

_VERSION = "1"  # of the training procedure; part of every expert's address


class TextTrack:
    """all-MiniLM-L6-v2 and full fine-tunes on up to eight tasks. `seed` orders the training data."""

    name = "text"

    def __init__(self, seed: int = 0, training: Training | None = None) -> None:
        self.seed = seed
        self.training = training or Training()
        self._experts: dict[str, Mapping[str, Tensor]] = {}

    @cached_property
    def tasks(self) -> Mapping[str, Task]:
        """Eight tasks with experts and two unseen ones."""
        tokens = making.tokenizer()
        return {name: making.make(name, tokens) for name in (*making.SEEN, *making.UNSEEN)}

    @cached_property
    def base(self) -> Mapping[str, Tensor]:
        """The pretrained encoder."""
        return base_weights()

    @cached_property
    def heads(self) -> Mapping[str, Head]:
        """The frozen head of each task."""
        model = build()
        return {name: head_of(model, task) for name, task in self.tasks.items()}

    @property
    def digest(self) -> str:
        """Data, training and seed."""
        return blake3("/".join(self._address(name) for name in making.SEEN).encode()).hexdigest(length=16)

    def expert(self, task: str) -> Mapping[str, Tensor]:
        """The fine-tuned tensors; trained now if they are not in the cache."""
        if task not in self._experts:
            found = self.tasks[task]
            make = lambda: fine_tune([found], self.heads, self.seed, self.training)  # noqa: E731 (read once)
            self._experts[task] = store.kept(self._address(task), task, make)
        return self._experts[task]

    def references(self) -> Mapping[str, Mapping[str, Tensor]]:
        """`multitask`: one model trained on all tasks, on as many samples as the experts together."""
        if "multitask" not in self._experts:
            seen = [self.tasks[name] for name in making.SEEN]
            make = lambda: fine_tune(seen, self.heads, self.seed, self.training)  # noqa: E731
            self._experts["multitask"] = store.kept(self._address("multitask"), "multitask", make)
        return {"multitask": self._experts["multitask"]}

    def examinee(self) -> TextExaminee:
        """A live encoder with all heads."""
        return TextExaminee(self.heads)

    def _address(self, name: str) -> str:
        data = (
            [self.tasks[name].digest] if name in self.tasks else [self.tasks[n].digest for n in making.SEEN]
        )
        parts = (self.name, _VERSION, name, *data, repr(self.training), str(self.seed))
        return blake3("/".join(parts).encode()).hexdigest(length=16)
