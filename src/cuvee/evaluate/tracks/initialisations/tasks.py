"""Tasks of track I: the same classes learned twice from disjoint pictures, and disjoint halves of the classes.

Data are sets of labelled pictures; each class of each set has its own place in one fixed code book.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuvee.core.lazy import numpy
from cuvee.evaluate.task import ACCURACY, Item, Metric, Provenance, Task
from cuvee.evaluate.tracks.packages import provenance
from cuvee.evaluate.tracks.vision.pictures import PICTURES
from cuvee.evaluate.tracks.vision.tasks import pictures_of, rendered

if TYPE_CHECKING:
    from cuvee.evaluate.tracks.vision.glyphs import Pixels

_BLOCK = 4  # pictures of 64 pixels are averaged down to 16
_TRAIN, _SELECTION, _TEST = 4000, 200, 1000
_HALF = 5


@dataclass(frozen=True, slots=True)
class Labelled:
    """Pictures (16, 16) uint8 with labels 0 to 9, for training and for the test."""

    outside: Sequence[tuple[Pixels, int]]
    test: Sequence[tuple[Pixels, int]]
    origin: Provenance


def packaged(name: str) -> Labelled:
    """MNIST or Fashion-MNIST from the packages of track V."""
    parts: dict[bool, dict[bytes, tuple[Pixels, int]]] = {False: {}, True: {}}
    for picture in pictures_of(rendered(name)):
        side = picture.pixels.shape[0] // _BLOCK
        blocks = picture.pixels.reshape(side, _BLOCK, side, _BLOCK)
        small = numpy.asarray(blocks.mean((1, 3)), dtype=numpy.uint8)
        parts[picture.test].setdefault(small.tobytes(), (small, int(picture.label)))
    outside = [pair for key, pair in parts[False].items() if key not in parts[True]]
    return Labelled(outside, list(parts[True].values()), provenance(PICTURES[name][1], "as in track V"))


def all_tasks(sets: Mapping[str, Callable[[], Labelled]]) -> dict[str, Task]:
    """For each set: `_a` and `_b` (all classes, disjoint training pictures), `_low` and `_high` (half the classes).

    The set itself, all classes at once, is an unseen task: what networks of two halves know together. Pictures of the
    selection parts are kept back for all of a set's tasks: an expert on one must not have seen another's.
    """
    made = {}
    for number, (name, load) in enumerate(sets.items()):
        data = _mixed(load())
        classes = range(10 * number, 10 * number + 10)
        low, high = classes[:_HALF], classes[_HALF:]
        size = min(2 * _SELECTION, len(data.outside) // 5)
        back, rest = data.outside[:size], data.outside[size:]
        for suffix, trained, kept in (
            ("_a", rest[::2], classes),
            ("_b", rest[1::2], classes),
            ("_low", rest, low),
            ("_high", rest, high),
            ("", (), classes),
        ):
            parts = (trained, back if suffix else (), data.test)
            made[name + suffix] = _task(name + suffix, parts, kept, classes.start, data.origin)
    return made


def _mixed(data: Labelled) -> Labelled:
    """The pictures in a fixed random order: packages sort them by label."""
    outside, test = list(data.outside), list(data.test)
    random.Random(0).shuffle(outside)
    random.Random(0).shuffle(test)
    return Labelled(outside, test, data.origin)


Pairs = Sequence[tuple["Pixels", int]]


def _task(name: str, parts: tuple[Pairs, Pairs, Pairs], kept: range, first: int, origin: Provenance) -> Task:
    """One task, unseen where nothing is trained on; targets are places in the code book.

    `parts`: train, selection, test; `kept`: the places this task chooses from.
    """

    def items(pairs: Pairs, most: int) -> list[Item]:
        return [Item(pixels, first + label) for pixels, label in pairs if first + label in kept][:most]

    trained, selection, test = parts
    return Task.of(
        name,
        train=items(trained, _TRAIN),
        selection=items(selection, _SELECTION),
        test=items(test, _TEST),
        metric=Metric(ACCURACY.name, unit=ACCURACY.unit, chance=1 / len(kept)),
        head="frozen",
        provenance=origin,
        unseen=not trained,
        classes=[str(place) for place in kept],
    )
