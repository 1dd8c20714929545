"""Track V as the referee sees it: base, experts trained when first asked for and kept by content, tasks, heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from cuvee.evaluate.task import Task
from cuvee.evaluate.tracks import store
from cuvee.evaluate.tracks.deferred import Deferred
from cuvee.evaluate.tracks.heads import Head, stored_head
from cuvee.evaluate.tracks.vision.foundation import schooled
from cuvee.evaluate.tracks.vision.model import Training, VisionExaminee, fine_tune, head_of
from cuvee.evaluate.tracks.vision.tasks import all_tasks

if TYPE_CHECKING:
    from torch import Tensor

_VERSION = "2"  # of the training procedure; part of every expert's address
_FORM = "matrices"  # how weights are given to methods; part of the track's digest


class VisionTrack:
    """A schooled EfficientNet-Lite0 and full fine-tunes on eight picture tasks. `seed` orders the training data.

    `name`, `network` (builds the base, frozen BatchNorm) and `make_tasks` make other tracks of the same kind.
    """

    def __init__(
        self,
        seed: int = 0,
        training: Training | None = None,
        *,
        name: str = "vision",
        network: Callable[[], Any] = schooled,
        make_tasks: Callable[[], Mapping[str, Task]] = all_tasks,
    ) -> None:
        self.name, self.seed = name, seed
        self.training = training or Training()
        self._network, self._make_tasks = network, make_tasks
        self._models: dict[str, Mapping[str, Tensor]] = {}

    @cached_property
    def tasks(self) -> Mapping[str, Task]:
        """Tasks with experts, unseen ones, shifts."""
        return self._make_tasks()

    @cached_property
    def base(self) -> Mapping[str, Tensor]:
        """The base network's trained tensors."""
        from cuvee.evaluate.tracks.vision.network import parameters

        return parameters(self._network())

    @cached_property
    def heads(self) -> Mapping[str, Head]:
        """The frozen head of each task that has training pictures."""
        network = self._network()
        return {
            name: stored_head(
                store.address(self.name, self._ground, task.digest), name, partial(head_of, network, task)
            )
            for name, task in self.tasks.items()
            if task.train
        }

    @property
    def seen(self) -> list[str]:
        """Names of the tasks with an expert."""
        return [name for name, task in self.tasks.items() if not task.unseen]

    @property
    def digest(self) -> str:
        """Data, training and seed."""
        parts = [*(self._address(name) for name in self.seen), *(t.digest for t in self.tasks.values())]
        return store.address(_FORM, *parts)

    def expert(self, task: str) -> Mapping[str, Tensor]:
        """The fine-tuned tensors; trained now if they are not in the cache."""
        return self._trained(task, [self.tasks[task]])

    def references(self) -> Mapping[str, Mapping[str, Tensor]]:
        """`multitask`: one network trained on all tasks, on as many pictures as the experts together."""
        tasks = [self.tasks[name] for name in self.seen]
        return Deferred({"multitask": lambda: self._trained("multitask", tasks)})

    def examinee(self) -> VisionExaminee:
        """A live network with all heads."""
        return VisionExaminee(self._network(), self.heads)

    def _trained(self, name: str, tasks: Sequence[Task]) -> Mapping[str, Tensor]:
        from cuvee.evaluate.tracks.vision.network import matrices

        if name not in self._models:
            kept = store.kept(
                self._address(name),
                f"{self.name}-{name}",
                lambda: fine_tune(self._network(), tasks, self.heads, self.seed, self.training),
            )
            self._models[name] = matrices(kept)
        return self._models[name]

    def _address(self, name: str) -> str:
        data = [self.tasks[task].digest for task in ([name] if name in self.tasks else self.seen)]
        parts = (self.name, _VERSION, self._ground, name, *data, repr(self.training), str(self.seed))
        return store.address(*parts)

    @cached_property
    def _ground(self) -> str:
        """The content of the base, which heads and experts depend on."""
        hasher = blake3()
        for name, tensor in sorted(self.base.items()):
            hasher.update(name.encode())
            hasher.update(tensor.contiguous().numpy().tobytes())
        return hasher.hexdigest(length=16)
