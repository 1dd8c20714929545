"""Selection parts resemble the whole in classes and in sizes of groups, whatever the order of the items."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from cuvee.evaluate.task import Item
from cuvee.evaluate.tracks.parts import held_out, kept_back, leading


def people_and_things(seed: int = 0) -> list[Item]:
    """As emoji are: a few large groups of one class, many single items of others, all mixed."""
    found = [Item(f"p{g}/{n}", "people", f"p{g}") for g in range(40) for n in range(18)]
    found += [
        Item(f"{kind}{n}", kind, f"{kind}{n}") for kind in ("food", "flags", "signs") for n in range(300)
    ]
    found += [Item(f"a{g}/{n}", "animals", f"a{g}") for g in range(100) for n in range(2)]
    random.Random(seed).shuffle(found)
    return found


def families(seed: int = 0) -> list[Item]:
    """As typefaces are: every family has every letter, some have many styles."""
    styles = [1] * 120 + [2] * 40 + [4] * 20 + [16] * 6
    found = [
        Item(f"{f}/{s}/{letter}", letter, f"family {f}")
        for f, count in enumerate(styles)
        for s in range(count)
        for letter in "ABCDEFGH"
    ]
    random.Random(seed).shuffle(found)
    return found


def shares(items: list[Item], of: str) -> dict[object, float]:
    """The share of items by class, or by the size of their group."""
    sizes = Counter(item.group for item in items)
    found = Counter(item.target if of == "class" else sizes[item.group] for item in items)
    return {key: number / len(items) for key, number in found.items()}


def distance(one: dict[object, float], other: dict[object, float]) -> float:
    """Total variation."""
    return sum(abs(one.get(key, 0) - other.get(key, 0)) for key in {*one, *other}) / 2


@pytest.mark.parametrize("of", ["class", "size"])
def test_a_part_resembles_the_whole(of: str) -> None:
    whole = people_and_things()
    part, rest = held_out(whole, 200)
    assert 180 <= len(part) <= 220 and len(part) + len(rest) == len(whole)
    assert distance(shares(part, of), shares(whole, of)) < 0.05
    old, _ = leading(whole, 200)
    assert distance(shares(old, of), shares(whole, of)) > 0.25, "the case has nothing to mend"


def test_of_families_with_every_class_many_are_drawn_and_not_the_largest() -> None:
    whole = families()
    part, _ = held_out(whole, 150)
    assert len({item.group for item in part}) >= 6
    assert distance(shares(part, "class"), shares(whole, "class")) < 1e-9
    assert 120 <= len(part) <= 180
    assert max(Counter(item.group for item in part).values()) <= 32
    assert max(Counter(item.group for item in leading(whole, 150)[0]).values()) == 128, "nothing to mend"


@pytest.mark.parametrize("make", [people_and_things, families])
@pytest.mark.parametrize("count", [1, 50, 300])
def test_groups_stay_whole_and_the_order_of_items_does_not_matter(make, count: int) -> None:  # type: ignore[no-untyped-def]
    part, rest = held_out(make(), count)
    assert not {i.group for i in part} & {i.group for i in rest}
    other, _ = held_out(make(1), count)
    assert {i.input for i in part} == {i.input for i in other} and part
    assert [i for i in make() if i in part] == part, "items keep their order"


def test_the_seed_draws_other_groups() -> None:
    parts = [frozenset(i.group for i in held_out(families(), 150, seed=seed)[0]) for seed in (0, 0, 1, 2)]
    assert parts[0] == parts[1] and len(set(parts)) == 3


def test_over_seeds_every_group_of_a_size_is_drawn_alike() -> None:
    drawn = Counter(i.group for seed in range(60) for i in held_out(people_and_things(), 200, seed=seed)[0])
    people = [drawn[f"p{g}"] for g in range(40)]
    assert sum(people) / sum(drawn.values()) == pytest.approx(720 / 1820, abs=0.06)
    assert max(people) / 18 < 22 and people.count(0) <= 2  # of 60 draws about 7 each


def test_groups_larger_than_the_part_are_passed_over_unless_there_are_no_others() -> None:
    huge = [Item(f"h{n}", "x", "huge") for n in range(500)]
    small = [Item(f"s{n}", "x", f"s{n // 5}") for n in range(100)]
    part, _ = held_out([*huge, *small], 40)
    assert {i.group for i in part} <= {f"s{g}" for g in range(20)} and len(part) == 40
    assert len(held_out(huge, 40)[0]) == 500
    hundred = [Item(f"m{n}", "y", "hundred") for n in range(100)]  # of a class that comes after the other
    for seed in range(8):
        assert {i.group for i in held_out([*huge, *hundred], 40, seed=seed)[0]} == {"hundred"}
        assert not {i.group for i in held_out([*huge, *hundred, *small], 40, seed=seed)[0]} & {
            "huge",
            "hundred",
        }
    tens = [Item(f"{g}/{n}", "x", f"g{g}") for g in range(9) for n in range(10)]
    assert len(held_out(tens, 14)[0]) == 10, "a second group would lead further beyond than is lacking"
    assert len(held_out(tens, 15)[0]) == 20


def test_items_that_stand_by_themselves_are_taken_as_they_come() -> None:
    items = [Item(str(n), n % 3, ("", None, str(n))[n % 3]) for n in range(100)]
    assert kept_back(items, 30) == (items[:30], items[30:]) == leading(items, 30)
    grouped = people_and_things()
    assert kept_back(grouped, 200) == held_out(grouped, 200)
