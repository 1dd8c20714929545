"""From pictures to tasks: classes, three disjoint parts of fixed sizes, unseen tasks and shifted pictures.

A shifted task has test items only and is answered with the frozen head of the task it shifts.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cuvee.core.lazy import numpy, torch
from cuvee.evaluate.task import ACCURACY, Item, Metric, Provenance, Task
from cuvee.evaluate.tracks import store
from cuvee.evaluate.tracks.packages import package, provenance
from cuvee.evaluate.tracks.parts import kept_back
from cuvee.evaluate.tracks.vision.corruptions import CORRUPTIONS
from cuvee.evaluate.tracks.vision.duplicates import near
from cuvee.evaluate.tracks.vision.lessons import LESSONS
from cuvee.evaluate.tracks.vision.pictures import PICTURES, Picture

if TYPE_CHECKING:
    from torch import Tensor

SEEN = ("mnist", "fashion", "scanned", "letters", "hiragana", "scripts", "radicals", "emoji")
UNSEEN = ("numerals", "katakana")
_VERSION = "2"  # of how pictures are made; part of their address
_TRAIN, _SELECTION, _TEST = 6000, 300, 1500
_SHIFTED = 150  # corrupted pictures of each task
_CUT = "test pictures only"


def make(name: str) -> tuple[Task, list[Item]]:
    """One task with an expert, or an unseen one with its own head, and its test items, to make shifts of."""
    _, packages, split = PICTURES[name]
    stored = rendered(name)
    labels = sorted(set(stored["label"]))
    number = {label: i for i, label in enumerate(labels)}
    test = _items([p for p in pictures_of(stored) if p.test], number)[:_TEST]
    outside = _apart(_items([p for p in pictures_of(stored) if not p.test], number), test)
    outside = outside[: _TRAIN + _SELECTION]
    selection, train = kept_back(outside, min(_SELECTION, len(outside) // 5))
    train = _apart(train, selection)
    task = Task.of(
        name,
        train=train,
        selection=selection,
        test=test,
        metric=Metric(ACCURACY.name, unit=ACCURACY.unit, chance=1 / len(labels)),
        head="frozen",
        provenance=provenance(packages, split),
        unseen=name in UNSEEN,
        classes=labels,
    )
    return task, test


def lessons() -> list[Task]:
    """What the base is schooled on before any task: pictures that no task asks for, training parts only."""
    made = []
    for name, (_, packages, split) in LESSONS.items():
        stored = rendered(name)
        labels = sorted(set(stored["label"]))
        number = {label: i for i, label in enumerate(labels)}
        made.append(
            Task.of(
                name,
                train=_items(pictures_of(stored), number),
                selection=(),
                test=(),
                metric=ACCURACY,
                head="frozen",
                provenance=provenance(packages, split),
                classes=labels,
            )
        )
    return made


def all_tasks() -> dict[str, Task]:
    """Eight tasks with experts, two unseen ones, nine shifts."""
    made = {name: make(name) for name in (*SEEN, *UNSEEN)}
    tasks = {name: task for name, (task, _) in made.items()}
    return {**tasks, **shifted(tasks, {name: made[name][1] for name in SEEN})}


def shifted(tasks: Mapping[str, Task], tests: Mapping[str, Sequence[Item]]) -> dict[str, Task]:
    """Another vendor's emoji, and corrupted test pictures of every task with an expert."""
    number = {label: i for i, label in enumerate(tasks["emoji"].classes)}
    drawn = _items([p for p in pictures_of(rendered("emoji_twitter")) if p.test], number)
    twitter = _shift("emoji_twitter", "emoji", drawn, provenance(["emoji-datasource-twitter"], _CUT))
    origins = {name: tasks[name].provenance for name in tests}
    return {twitter.name: twitter, **corrupted(tests, origins)}


def corrupted(tests: Mapping[str, Sequence[Item]], origins: Mapping[str, Provenance]) -> dict[str, Task]:
    """For each task up to 150 of its test pictures, every third with noise, blurred, or of little contrast."""
    made = {}
    for name, test in tests.items():
        items = []
        for seed, item in enumerate(test[:_SHIFTED]):
            corrupt = CORRUPTIONS[seed % len(CORRUPTIONS)]
            items.append(Item(corrupt(item.input, seed), item.target, item.group))
        shift = _shift(f"{name}_corrupted", name, items, replace(origins[name], split=f"{_CUT}, corrupted"))
        made[shift.name] = shift
    return made


def _shift(name: str, of: str, items: Sequence[Item], origin: Provenance) -> Task:
    unique = list({item.digest: item for item in items}.values())
    return Task.of(
        name,
        train=(),
        selection=(),
        test=unique,
        metric=ACCURACY,
        head="frozen",
        provenance=origin,
        shift_of=of,
    )


def _items(pictures: Sequence[Picture], number: Mapping[str, int]) -> list[Item]:
    """Items in a fixed random order, each picture once."""
    order = list(pictures)
    random.Random(0).shuffle(order)
    items: dict[str, Item] = {}
    for picture in order:
        item = Item(picture.pixels, number[picture.label], picture.group)
        items.setdefault(item.digest, item)
    return list(items.values())


def _apart(items: Sequence[Item], others: Sequence[Item]) -> list[Item]:
    """The items whose picture is not, nor nearly, one of the others'."""
    drop = near([item.input for item in items], [item.input for item in others])
    return [item for item, same in zip(items, drop, strict=True) if not same]


def rendered(name: str) -> dict[str, list[str] | Tensor]:
    """All pictures of a set, drawn once and kept: `pixels`, `test`, and the texts `label` and `group`."""
    make_all, _, _ = {**PICTURES, **LESSONS}[name]

    def draw() -> dict[str, Tensor]:
        pictures = list(make_all())
        return {
            "pixels": torch.from_numpy(numpy.stack([p.pixels for p in pictures])),
            "test": torch.tensor([p.test for p in pictures]),
            "label": _text([p.label for p in pictures]),
            "group": _text([p.group for p in pictures]),
        }

    kept = store.kept(address(name), name, draw, kind="data")
    texts = {key: bytes(kept[key].numpy()).decode().split("\n") for key in ("label", "group")}
    return {"pixels": kept["pixels"], "test": kept["test"], **texts}


def address(name: str) -> str:
    """The content address of a set's pictures: their packages and how they are drawn."""
    _, packages, _ = {**PICTURES, **LESSONS}[name]
    return store.address(_VERSION, name, *(package(p).digest for p in packages))


def _text(lines: Sequence[str]) -> Tensor:
    return torch.frombuffer(bytearray("\n".join(lines).encode()), dtype=torch.uint8)


def pictures_of(stored: Mapping[str, list[str] | Tensor]) -> list[Picture]:
    """The pictures of a set, each with its own pixels: a view leads from a training picture to the test part."""
    pixels, test = stored["pixels"], stored["test"]
    return [
        Picture(p.numpy().copy(), label, group, bool(t))
        for p, label, group, t in zip(pixels, stored["label"], stored["group"], test, strict=True)
    ]
