"""Track L as the referee sees it: base, experts trained when first asked for and kept by content, tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from cuvee.evaluate.task import Task, digest_of
from cuvee.evaluate.tracks import store
from cuvee.evaluate.tracks.deferred import Deferred
from cuvee.evaluate.tracks.language import tasks as making
from cuvee.evaluate.tracks.language.model import (
    Base,
    LanguageExaminee,
    Training,
    fine_tune,
    smollm,
    trained_tensors,
)

if TYPE_CHECKING:
    from torch import Tensor

_VERSION = "2"  # of the training procedure; part of every expert's address
SHORT = Training(steps=60)


class LanguageTrack:
    """SmolLM2-135M-Instruct and full fine-tunes of its layers on six tasks. `seed` orders the training data.

    `short`: 60 steps an expert instead of 260. `base`, `sizes` and `names` make smaller tracks of the same kind.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        short: bool = False,
        training: Training | None = None,
        base: Base | None = None,
        sizes: making.Sizes | None = None,
        names: Sequence[str] = (*making.SEEN, *making.UNSEEN, *making.SHIFTS),
    ) -> None:
        self.name = "language-short" if short else "language"
        self.seed = seed
        self.training = training or (SHORT if short else Training())
        self._given, self._names, self._sizes = base, tuple(names), sizes or making.Sizes()
        self._models: dict[str, Mapping[str, Tensor]] = {}

    @cached_property
    def model(self) -> Base:
        """The pretrained model and its tokenizer."""
        return self._given or smollm()

    @cached_property
    def tasks(self) -> Mapping[str, Task]:
        """Six tasks with experts, two unseen ones, a shift of each task."""
        tokens, ground = self.model.tokens, self.model.ground
        return {name: making.make(name, tokens, self._sizes, ground) for name in self._names}

    @cached_property
    def base(self) -> Mapping[str, Tensor]:
        """The pretrained model's tensors, embeddings left out."""
        return trained_tensors(self.model.network())

    @property
    def seen(self) -> list[str]:
        """Names of the tasks with an expert."""
        return [name for name, task in self.tasks.items() if not task.unseen]

    @property
    def digest(self) -> str:
        """Data, training and seed."""
        parts = [*(self._address(name) for name in self.seen), *(t.digest for t in self.tasks.values())]
        return store.address(*parts)

    def expert(self, task: str) -> Mapping[str, Tensor]:
        """The fine-tuned tensors; trained now if they are not in the cache."""
        return self._trained(task, [self.tasks[task]])

    def references(self) -> Mapping[str, Mapping[str, Tensor]]:
        """`multitask`: one model trained on all tasks, on as many batches as the experts together."""
        tasks = [self.tasks[name] for name in self.seen]
        return Deferred({"multitask": lambda: self._trained("multitask", tasks)})

    def examinee(self) -> LanguageExaminee:
        """A live model."""
        return LanguageExaminee(self.model)

    def _trained(self, name: str, tasks: Sequence[Task]) -> Mapping[str, Tensor]:
        if name not in self._models:
            self._models[name] = store.kept(
                self._address(name),
                f"language-{name}",
                lambda: fine_tune(self.model.network(), tasks, self.model, self.seed, self.training),
            )
        return self._models[name]

    def _address(self, name: str) -> str:
        """What training sees decides, not what is asked afterwards: other test items need no other experts."""
        lessons = [digest_of(self.tasks[t].train) for t in ([name] if name in self.tasks else self.seen)]
        parts = ("language", _VERSION, self.model.name, name, *lessons, repr(self.training), str(self.seed))
        return store.address(*parts)
