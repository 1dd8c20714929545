"""Records do what the standard library's dataclasses do; the oracle is its decorator on the same class."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, field
from functools import partial
from typing import Any

import pytest

from cuvee.core.records import dataclass

KINDS = [
    {"frozen": frozen, "slots": slots, "eq": eq}
    for frozen in (True, False)
    for slots in (True, False)
    for eq in (True, False)
]


def point(decorate: Callable[[type[Any]], type[Any]]) -> type[Any]:
    @decorate
    class Point:
        """With every sort of field."""

        x: float
        tags: list[str] = field(default_factory=list)
        hidden: int = field(default=3, repr=False, compare=False)
        y: float = 0.0
        marked: str = field(default="m", hash=False)
        depth: int = field(kw_only=True)
        total: float = field(init=False)
        fixed: int = field(init=False, default=7)

        def __post_init__(self) -> None:
            object.__setattr__(self, "total", self.x + self.y)

    return Point


def own_methods(decorate: Callable[[type[Any]], type[Any]]) -> type[Any]:
    @decorate
    class Own:
        a: int
        b: int = 0

        def __eq__(self, other: object) -> bool:
            return True

        def __repr__(self) -> str:
            return "own"

    return Own


def single(decorate: Callable[[type[Any]], type[Any]]) -> type[Any]:
    @decorate
    class Single:
        a: object

    return Single


def empty(decorate: Callable[[type[Any]], type[Any]]) -> type[Any]:
    @decorate
    class Empty:
        pass

    return Empty


def told(action: Callable[[], Any]) -> Any:
    """What an action gives, or the kind of its failure."""
    try:
        return action()
    except (TypeError, AttributeError) as error:
        return type(error)


SHAPES: list[tuple[Any, list[tuple[tuple[Any, ...], dict[str, Any]]]]] = [
    (
        point,
        [
            ((1.0,), {"depth": 2}),
            ((1.0,), {"depth": 2, "hidden": 9}),
            ((1.0, ["a"]), {"y": 2.0, "depth": 2, "marked": "n"}),
            ((1.0,), {}),
            ((), {"depth": 1}),
            ((1, [], 3, 4, "m", 6), {}),
            ((1.0,), {"depth": 2, "fixed": 1}),
            ((1.0,), {"depth": 2, "unknown": 1}),
        ],
    ),
    (own_methods, [((1,), {}), ((2, 3), {}), ((), {})]),
    (single, [((1,), {}), (((1,),), {}), ((float("nan"),), {}), ((1, 2), {})]),
    (empty, [((), {}), ((1,), {})]),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(k for k, v in kind.items() if v) or "plain")
@pytest.mark.parametrize(("shape", "calls"), SHAPES, ids=[shape.__name__ for shape, _ in SHAPES])
def test_as_the_standard_library(shape: Any, calls: Any, kind: dict[str, bool]) -> None:
    ours, theirs = shape(dataclass(**kind)), shape(dataclasses.dataclass(**kind))
    assert [f.name for f in dataclasses.fields(ours)] == [f.name for f in dataclasses.fields(theirs)]
    assert ours.__match_args__ == theirs.__match_args__
    assert hasattr(ours, "__slots__") == hasattr(theirs, "__slots__") == kind["slots"]
    made: list[tuple[Any, Any]] = []
    for arguments, named in calls:
        ours_made, theirs_made = (told(partial(cls, *arguments, **named)) for cls in (ours, theirs))
        if isinstance(theirs_made, type):
            assert ours_made is theirs_made  # both refuse
            continue
        made.append((ours_made, theirs_made))
        assert isinstance(ours_made, ours)
    assert made
    for one, other in made:
        described = (
            [repr(r).partition(" at 0x")[0] for r in (one, other)],
            [dataclasses.asdict(r) for r in (one, other)],
        )
        assert described[0][0] == described[0][1]
        assert repr(described[1][0]) == repr(described[1][1])
        for action in (setattr, lambda r, name, _: delattr(r, name)):
            outcomes = [
                told(lambda r=r, a=action: a(r, next(iter(dataclasses.fields(r))).name, 5))
                for r in (copy.copy(one), copy.copy(other))
                if dataclasses.fields(r)
            ]
            assert not outcomes or outcomes[0] == outcomes[1]
        if kind["eq"] or shape is own_methods:
            assert copy.copy(one) == one
            assert told(lambda one=one: hash(one)) == told(lambda other=other: hash(other))
        assert [one == b for b, _ in made] == [other == b for _, b in made]
        assert one != other or shape is own_methods


@dataclass(frozen=True, slots=True)
class Kept:
    name: str
    parts: tuple[int, ...] = ()


@dataclass(slots=True)
class Loose:
    inner: Kept | None = None
    own: Any = None


def test_frozen_records_refuse_changes_and_may_be_copied_pickled_replaced_and_hashed() -> None:
    kept = Kept("a", (1, 2))
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'name'"):
        kept.name = "b"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'name'"):
        del kept.name
    again = pickle.loads(pickle.dumps(Loose(kept)))
    assert again == Loose(kept) == copy.deepcopy(Loose(kept)) and again.inner is not kept
    assert dataclasses.replace(kept, name="b") == Kept("b", (1, 2)) != kept
    assert len({kept, Kept("a", (1, 2)), Kept("b")}) == 2
    assert repr(Loose(kept)) == "Loose(inner=Kept(name='a', parts=(1, 2)), own=None)"
    with pytest.raises(TypeError, match=r"Kept.__init__\(\) missing 1 required positional argument: 'name'"):
        Kept()  # type: ignore[call-arg]
    loose = Loose()
    loose.own = loose
    assert repr(loose) == "Loose(inner=None, own=...)"


def test_nothing_is_compiled_before_the_first_instance() -> None:
    @dataclass(frozen=True, slots=True)
    class Late:
        a: int

    before = Late.__init__
    Late(1)
    assert Late.__init__ is not before
    assert Late.__init__.__qualname__.endswith("Late.__init__")
