"""Cutting data into train, selection and test: by digest of a group, whole groups, alike in classes and group sizes.

Owns how parts are drawn, the same for every seed of training. Knows no formats and no models.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeVar

from blake3 import blake3

from cuvee.evaluate.task import Item

Row = TypeVar("Row")


def in_test(group: str, share: float = 0.25) -> bool:
    """Whether a group belongs to the test part: decided by its digest alone, so that order and size do not matter."""
    return blake3(group.encode()).digest()[0] < 256 * share


def kept_back(items: Sequence[Item], count: int) -> tuple[list[Item], list[Item]]:
    """About `count` items for the selection part, and the rest, of items in a random order.

    Items that all stand by themselves are a fair draw as they come (`leading`); groups are drawn by `held_out`.
    """
    single = len({_group(item) for item in items}) == len(items)
    return leading(items, count) if single else held_out(items, count)


def leading(items: Sequence[Item], count: int) -> tuple[list[Item], list[Item]]:
    """Whole groups of about `count` items, taken in order, and the rest; an item without group is its own.

    For groups that stand one after the other in a random order: where items are mixed, the larger a group the sooner
    one of its items comes.
    """
    sizes = Counter(_group(item) for item in items)
    chosen: set[Hashable] = set()
    taken = 0
    for item in items:
        if _group(item) not in chosen and taken < count:
            chosen.add(_group(item))
            taken += sizes[_group(item)]
    return _cut(items, chosen)


def held_out(items: Sequence[Item], count: int, *, seed: int = 0) -> tuple[list[Item], list[Item]]:
    """Whole groups of about `count` items that resemble the whole in classes and sizes of groups, and the rest.

    Groups of one class and of like size (up to a power of two) are a stratum, those of which no class has more than
    half the items another. Every stratum gives the same share of its items, to the nearest group, its groups in an
    order that `seed` and their names decide, not the order of items. A group that would lead further beyond `count`
    than is lacking is passed over; where every group would, the smallest is taken. An item without group is its own.
    """
    members: dict[Hashable, list[Item]] = defaultdict(list)
    for item in items:
        members[_group(item)].append(item)
    strata: dict[tuple[str, int], list[Hashable]] = defaultdict(list)
    for group in sorted(members, key=lambda group: blake3(f"{seed}\0{group}".encode()).digest()):
        strata[_stratum(members[group])].append(group)
    sizes = {group: len(found) for group, found in members.items()}
    chosen: set[Hashable] = set()
    taken = 0
    turns = list(_in_turn(strata, sizes))
    for group in turns:
        if sizes[group] <= 2 * (count - taken):
            chosen.add(group)
            taken += sizes[group]
    if turns and count > 0 and not chosen:
        chosen.add(min(turns, key=sizes.__getitem__))
    return _cut(items, chosen)


def _stratum(members: Sequence[Item]) -> tuple[str, int]:
    """The class that most items of a group are of (none: mixed), and the size of the group in powers of two."""
    name, most = Counter(repr(item.target) for item in members).most_common(1)[0]
    return (name if 2 * most > len(members) else "mixed"), len(members).bit_length()


def _in_turn(strata: dict[tuple[str, int], list[Hashable]], sizes: dict[Hashable, int]) -> Iterator[Hashable]:
    """Groups in the order in which growing shares of every stratum reach the middle of them."""
    places = []
    for name, groups in sorted(strata.items()):
        whole, before = sum(sizes[group] for group in groups), 0
        for group in groups:
            places.append(((before + sizes[group] / 2) / whole, name, group))
            before += sizes[group]
    yield from (group for _, _, group in sorted(places, key=lambda place: place[:2]))


def _cut(items: Sequence[Item], chosen: set[Hashable]) -> tuple[list[Item], list[Item]]:
    return [i for i in items if _group(i) in chosen], [i for i in items if _group(i) not in chosen]


def unique(rows: Sequence[Row], key: Callable[[Row], Hashable]) -> list[Row]:
    """The first row of each key, in order."""
    first: dict[Hashable, Row] = {}
    for row in rows:
        first.setdefault(key(row), row)
    return list(first.values())


def _group(item: Item) -> Hashable:
    return item.group or item.digest
