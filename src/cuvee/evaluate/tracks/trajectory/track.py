"""Track C as the referee sees it: a small language model of bytes is pretrained; its checkpoints are the experts.

Each checkpoint has one share of the held-out documents as its task, so that the mean over tasks is the score on all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import torch
from cuvee.evaluate.task import Item, Task
from cuvee.evaluate.tracks import learning, store
from cuvee.evaluate.tracks.deferred import Deferred
from cuvee.evaluate.tracks.language.model import Base, LanguageExaminee, loss_of
from cuvee.evaluate.tracks.language.tasks import COMPRESSION, Tokens, windows
from cuvee.evaluate.tracks.language.texts import DOCUMENTS, Document
from cuvee.evaluate.tracks.packages import provenance
from cuvee.evaluate.tracks.parts import in_test, leading

if TYPE_CHECKING:
    from torch import Tensor

_VERSION = "1"
SHAPES: dict[str, learning.Shape] = {
    "constant": learning.constant,
    "cosine": learning.cosine,
    "decayed": learning.decayed,
}
_SEPARATOR = "/"
_SELECTION, _TEST = 16, 100  # windows of each share


@dataclass(frozen=True, slots=True)
class Run:
    """A pretraining run: steps, how many checkpoints its second half keeps, batch, window in bytes, learning rate."""

    steps: int = 600
    checkpoints: int = 12
    batch: int = 16
    window: int = 128
    rate: float = 2e-3
    width: int = 128
    layers: int = 4

    def kept(self) -> list[int]:
        """Steps after which a checkpoint is kept: evenly over the second half, the last one included."""
        half = self.steps - self.steps // 2
        return [self.steps // 2 + half * (i + 1) // self.checkpoints for i in range(self.checkpoints)]


class TrajectoryTrack:
    """Checkpoints of one pretraining run on Python code. `shape` is that of the learning rate; `seed` that of the run.

    `base` is the model half-way, before the first checkpoint; the reference `last` is the end of the run.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        shape: str = "cosine",
        run: Run | None = None,
        documents: Callable[[], Iterator[Document]] = DOCUMENTS["python"][0],
    ) -> None:
        self.name = f"trajectory-{shape}"
        self.ordered = True  # the experts are those of one run
        self.seed, self.shape, self.run = seed, shape, run or Run()
        self._documents = documents

    @cached_property
    def _made(self) -> tuple[Sequence[Item], Mapping[str, Task]]:
        """Windows to train on, and the tasks, which alone hold the held-out windows: all split by document."""
        found = list(self._documents())
        random.Random(0).shuffle(found)
        tokens, size = _bytes(), self.run.window
        test = windows([d for d in found if in_test(d.group)], tokens, size)
        taken = {item.digest for item in test}
        rest = windows([d for d in found if not in_test(d.group)], tokens, size)
        rest = [item for item in rest if item.digest not in taken]
        selection, trained = leading(rest, _SELECTION * self.run.checkpoints)
        return trained, _tasks(selection, test, self.run)

    @property
    def tasks(self) -> Mapping[str, Task]:
        """One task for each checkpoint: a share of the held-out text, the same text for every shape and seed."""
        return self._made[1]

    @cached_property
    def _checkpoints(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Tensors by name of the checkpoint; trained now if they are not in the cache."""
        found: dict[str, dict[str, Tensor]] = {}
        for key, tensor in store.kept(self.digest, self.name, self._train).items():
            name, _, parameter = key.partition(_SEPARATOR)
            found.setdefault(name, {})[parameter] = tensor
        return found

    @property
    def base(self) -> Mapping[str, Tensor]:
        """The model half-way through the run."""
        return self._checkpoints["half"]

    @property
    def digest(self) -> str:
        """Data, run and seed."""
        trained, _ = self._made
        data = store.address(*(item.digest for item in trained))
        parts = (self.name, _VERSION, data, *(t.digest for t in self.tasks.values()))
        return store.address(*parts, repr(self.run), str(self.seed))

    def expert(self, task: str) -> Mapping[str, Tensor]:
        """The checkpoint of this name."""
        return self._checkpoints[task]

    def references(self) -> Mapping[str, Mapping[str, Tensor]]:
        """`last`: the end of the run, on all shares."""
        return Deferred({"last": lambda: self._checkpoints[f"step_{self.run.steps}"]})

    def examinee(self) -> LanguageExaminee:
        """A live model."""
        network = partial(_network, self.run, self.seed)
        return LanguageExaminee(Base("bytes", network, _bytes(), end=0))

    def _train(self) -> dict[str, Tensor]:
        network = _network(self.run, self.seed)
        kept: dict[str, Tensor] = {}
        wanted = {self.run.steps // 2: "half", **{step: f"step_{step}" for step in self.run.kept()}}

        def after(step: int) -> None:
            if step in wanted:
                for name, tensor in network.named_parameters():
                    kept[f"{wanted[step]}{_SEPARATOR}{name}"] = tensor.detach().clone()

        trained, _ = self._made
        losses = [partial(loss_of, network, batch) for batch in _batches(trained, self.run, self.seed)]
        schedule = learning.along(SHAPES[self.shape])
        rate = self.run.rate
        learning.learn(network.parameters(), losses, rate=rate, schedule=schedule, after=after, gathered=kept)
        return kept


def _tasks(selection: Sequence[Item], test: Sequence[Item], run: Run) -> dict[str, Task]:
    """A task for each checkpoint of a run, with documents of its own."""
    chosen, asked = (_dealt(items, run.checkpoints) for items in (selection, test))
    return {
        f"step_{step}": Task.of(
            f"step_{step}",
            train=(),
            selection=chosen[number],
            test=asked[number][:_TEST],
            metric=COMPRESSION,
            head="none",
            provenance=provenance(DOCUMENTS["python"][1], "by document"),
        )
        for number, step in enumerate(run.kept())
    }


def _dealt(items: Sequence[Item], shares: int) -> list[list[Item]]:
    """Documents dealt out in turn: windows of one are not independent, so that no two shares have the same."""
    documents = dict.fromkeys(item.group for item in items)
    turn = {document: number % shares for number, document in enumerate(documents)}
    return [[item for item in items if turn[item.group] == share] for share in range(shares)]


def _bytes() -> Tokens:
    """A text's bytes as its tokens; 0 begins a text."""
    return Tokens(lambda words: words.encode(), lambda ids: bytes(ids).decode("utf-8", "replace"), begin=0)


def _network(run: Run, seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=run.width,
        intermediate_size=3 * run.width,
        num_hidden_layers=run.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def _batches(items: Sequence[Item], run: Run, seed: int) -> Iterator[list[list[int]]]:
    chance = random.Random(seed)
    for _ in range(run.steps):
        picked = (chance.choice(items).input for _ in range(run.batch))
        yield [[*before, *after] for before, after in picked]
