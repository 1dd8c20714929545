"""Track I as the referee sees it: each expert starts from weights of its own, all aim at one fixed code book."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import numpy, torch
from cuvee.evaluate.ledger import Ledger
from cuvee.evaluate.task import Item, Task
from cuvee.evaluate.track import Answers
from cuvee.evaluate.tracks import store
from cuvee.evaluate.tracks.arithmetic import flops
from cuvee.evaluate.tracks.deferred import Deferred
from cuvee.evaluate.tracks.exchange import exchange
from cuvee.evaluate.tracks.heads import Head, classified, codes
from cuvee.evaluate.tracks.initialisations.tasks import Labelled, all_tasks, packaged
from cuvee.evaluate.tracks.learning import learn

if TYPE_CHECKING:
    from torch import Tensor

    from cuvee.evaluate.units import Scores

_VERSION = "1"
_SETS: dict[str, Callable[[], Labelled]] = {n: partial(packaged, n) for n in ("mnist", "fashion")}
_BATCH = 500


@dataclass(frozen=True, slots=True)
class Training:
    """How long and how fast: pictures seen, batch, learning rate."""

    samples: int = 24_000
    batch: int = 64
    rate: float = 1e-3


class InitialisationsTrack:
    """Small networks of one kind, trained from different random weights. `seed` chooses all of them.

    There is no common ancestor: `base` is one more network at its random start, which knows nothing.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        kind: str = "mlp",
        training: Training | None = None,
        sets: Mapping[str, Callable[[], Labelled]] = _SETS,
    ) -> None:
        self.name = f"initialisations-{kind}"
        self.seed, self.kind, self._sets = seed, kind, sets
        self.training = training or Training()
        self._models: dict[str, Mapping[str, Tensor]] = {}

    @cached_property
    def tasks(self) -> Mapping[str, Task]:
        """Four tasks with experts for each set of pictures, and the set itself, unseen."""
        return all_tasks(self._sets)

    @property
    def head(self) -> Head:
        """The fixed code book: one direction for each class of each set."""
        from cuvee.evaluate.tracks.initialisations.networks import WIDTH

        return codes(10 * len(self._sets), WIDTH)

    @property
    def seen(self) -> list[str]:
        """Names of the tasks with an expert."""
        return [name for name, task in self.tasks.items() if not task.unseen]

    @property
    def base(self) -> Mapping[str, Tensor]:
        """An untrained network with random weights of its own."""
        return _tensors(self._start(len(self.seen)))

    @property
    def digest(self) -> str:
        """Data, training and seed."""
        return store.address(
            *(self._address(name) for name in self.seen), *(t.digest for t in self.tasks.values())
        )

    def expert(self, task: str) -> Mapping[str, Tensor]:
        """A network trained from its own start."""
        return self._trained(task, self.seen.index(task), [self.tasks[task]])

    def references(self) -> Mapping[str, Mapping[str, Tensor]]:
        """`multitask`: one network trained on all tasks, on as many pictures as the experts together."""
        tasks = [self.tasks[name] for name in self.seen]
        return Deferred({"multitask": lambda: self._trained("multitask", len(tasks), tasks)})

    def examinee(self) -> SmallExaminee:
        """A live network."""
        return SmallExaminee(self._start(0), self.head)

    def _start(self, number: int) -> Any:
        from cuvee.evaluate.tracks.initialisations.networks import new

        return new(self.kind, 1000 * self.seed + number)

    def _trained(self, name: str, number: int, tasks: Sequence[Task]) -> Mapping[str, Tensor]:
        if name not in self._models:
            self._models[name] = store.kept(
                self._address(name),
                f"{self.name}-{name}",
                lambda: _train(self._start(number), tasks, self.head, self.seed, self.training),
            )
        return self._models[name]

    def _address(self, name: str) -> str:
        data = [self.tasks[task].digest for task in ([name] if name in self.tasks else self.seen)]
        return store.address(self.name, _VERSION, name, *data, repr(self.training), str(self.seed))


class SmallExaminee:
    """A small network whose weights can be exchanged, with the code book."""

    def __init__(self, network: Any, head: Head) -> None:
        self.network, self.head = network, head
        self._flops = 0.0  # of one picture, counted with the first

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take these weights; EvaluationError for a tensor the network does not have."""
        exchange(self.network, weights)

    def answer(self, task: Task, items: Sequence[Item], ledger: Ledger) -> Scores:
        """1 where the nearest code among the task's own classes is the right one, else 0."""
        return self.classify(task, items, ledger).scores

    def classify(self, task: Task, items: Sequence[Item], ledger: Ledger) -> Answers:
        """As `answer`, with the probability of what was answered."""
        with torch.no_grad():
            logits = torch.cat(
                [
                    _logits(self.network, self.head, task, items[i : i + _BATCH])
                    for i in range(0, len(items), _BATCH)
                ]
            )
        self._flops = self._flops or flops(self.network, _pictures(items[:1]))
        ledger.add(examples=len(items), forward=-(-len(items) // _BATCH), flops=len(items) * self._flops)
        return classified(logits, torch.tensor([_place(task, item) for item in items]))


def _train(
    network: Any, tasks: Sequence[Task], head: Head, seed: int, training: Training
) -> dict[str, Tensor]:
    chance = random.Random(seed)
    batches = [(task, batch) for task in tasks for batch in _batches(task, training, chance)]
    chance.shuffle(batches)
    learn(network.parameters(), [partial(_loss, network, head, *b) for b in batches], rate=training.rate)
    return _tensors(network)


def _tensors(network: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _loss(network: Any, head: Head, task: Task, batch: Sequence[Item]) -> Tensor:
    wanted = torch.tensor([_place(task, item) for item in batch])
    return torch.nn.functional.cross_entropy(_logits(network, head, task, batch), wanted)


def _logits(network: Any, head: Head, task: Task, items: Sequence[Item]) -> Tensor:
    own = torch.tensor([int(place) for place in task.classes])
    return head.logits(network(_pictures(items)))[:, own]


def _pictures(items: Sequence[Item]) -> Tensor:
    """(n, 1, h, w) from −1 to 1."""
    pixels = torch.from_numpy(numpy.stack([item.input for item in items])).float()
    return (pixels / 127.5 - 1).unsqueeze(1)


def _place(task: Task, item: Item) -> int:
    """The number of an item's class among the task's own, which follow one another in the code book."""
    return int(item.target) - int(task.classes[0])


def _batches(task: Task, training: Training, chance: random.Random) -> Iterator[list[Item]]:
    for _ in range(training.samples // training.batch):
        yield chance.sample(task.train, min(training.batch, len(task.train)))
