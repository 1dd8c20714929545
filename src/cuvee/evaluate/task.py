"""A task as data: three disjoint parts, how answers are marked, what becomes of its head, where it comes from.

Owns the checks that no item, and no group of items, stands on both sides. Must not know models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from blake3 import blake3

from cuvee.core.names import printable
from cuvee.errors import EvaluationError, LeakError
from cuvee.evaluate import phases

Head = Literal["frozen", "own", "none"]
Direction = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Item:
    """One example: what is asked, what is right, and the group (document, author, page) it must not be split from.

    Items of one group are one piece of evidence: intervals and tests draw and flip whole groups. Without a group (None
    or empty) an item is its own.

    `input` is a text, bytes, a tuple of integers, or an array with `tobytes`; `weight` counts it in the mean (bytes of
    a text for bits per byte, else 1).
    """

    input: Any
    target: Any
    group: str | None = None
    weight: float = 1.0

    @property
    def digest(self) -> str:
        """BLAKE3 of the input: two items are the same if they ask the same, whatever their answer."""
        return blake3(_bytes_of(self.input)).hexdigest(length=16)


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, bytes):
        return b"b" + value
    if isinstance(value, str):
        return b"s" + " ".join(value.split()).encode()
    if hasattr(value, "tobytes"):
        shape = ",".join(str(n) for n in value.shape)
        return f"a{value.dtype}({shape})".encode() + bytes(value.tobytes())
    if hasattr(value, "numpy"):
        return _bytes_of(value.detach().cpu().numpy())
    if isinstance(value, (tuple, list)):
        return b"t" + b"".join([_whole(p) if type(p) is int else _framed(_bytes_of(p)) for p in value])
    return b"r" + repr(value).encode()


def _framed(part: bytes) -> bytes:
    return len(part).to_bytes(8, "little") + part


@lru_cache(maxsize=1 << 18)
def _whole(number: int) -> bytes:
    """A number as a part of a tuple: millions of token ids are asked for at each start, and few are different."""
    return _framed(_bytes_of(number))


class _Removed:
    """Stands where test items were; LeakError for whoever looks."""

    __slots__ = ("_task",)

    def __init__(self, task: str) -> None:
        self._task = task

    def __iter__(self) -> Iterator[Item]:
        raise phases.refused(
            LeakError(
                "CV-B001", f"test items of the task `{self._task}` were looked for in the process of a method"
            )
        )

    def __len__(self) -> int:
        return len(tuple(self))

    def __getitem__(self, index: Any) -> Any:
        return tuple(self)[index]


class Sealed(Sequence[Item]):
    """Test items that only a scoring referee can read; their number, that of their groups and digest are public.

    The items are no attribute: whatever is called or looked up, public or not, asks for the phase first.
    """

    __slots__ = ("_count", "_opened", "_task", "digest", "groups", "remove")

    def __init__(self, task: str, items: Sequence[Item]) -> None:
        held: list[Any] = [tuple(items)]

        def opened() -> tuple[Item, ...]:
            phases.demand_scoring(task)
            return tuple(held[0])

        def remove(spared: AbstractSet[int] = frozenset()) -> None:
            """Forget the items in this process for good, wherever else they are referred to.

            `spared`: the `id` of items that other tasks choose on, and of their inputs.
            """
            for item in held[0]:
                if id(item) not in spared:
                    if id(item.input) not in spared:
                        _wiped(item.input)
                    object.__setattr__(item, "input", None)
                    object.__setattr__(item, "target", None)
            held[0] = _Removed(task)

        self._task, self._count, self._opened, self.remove = task, len(held[0]), opened, remove
        self.digest, self.groups = digest_of(held[0]), groups_of(held[0])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return self._opened()[index]

    def __iter__(self) -> Iterator[Item]:
        return iter(self._opened())

    def __reduce__(self) -> Any:
        raise phases.refused(
            LeakError(
                "CV-B001",
                f"test items of the task `{self._task}` cannot be copied or pickled",
                hint="make the task anew where it is needed; `digest` says whether it is the same",
            )
        )

    def __repr__(self) -> str:
        return f"Sealed({self._task!r}, {len(self)} items)"


def _wiped(value: Any) -> None:
    """Overwrite an array with zeros, so that memory that is searched holds nothing of it.

    Only one that owns its memory: that of a view is somebody else's.
    """
    flags = getattr(value, "flags", None)
    if flags is not None and getattr(flags, "owndata", False):
        value.setflags(write=True)
        value.fill(0)


@dataclass(frozen=True, slots=True)
class Metric:
    """How an item's answer becomes a number, and which way is better.

    `accuracy` and `exact_match` give 0 or 1 for each item; `bits_per_byte` gives bits for each item, weighted by its
    bytes. `chance` is what guessing scores.
    """

    name: str
    better: Direction = "higher"
    unit: str = ""
    chance: float = 0.0

    @property
    def scale(self) -> tuple[str, Direction, str]:
        """What scores must share to be averaged over tasks, whatever guessing gives on each."""
        return self.name, self.better, self.unit

    def share(self, own: float, best: float) -> float:
        """own ÷ best, or its inverse where lower is better; NaN where the divisor is not above zero."""
        over, under = (own, best) if self.better == "higher" else (best, own)
        return over / under if under > 0 else math.nan


ACCURACY = Metric("accuracy", unit="%")
EXACT_MATCH = Metric("exact_match", unit="%")
BITS_PER_BYTE = Metric("bits_per_byte", "lower", "bits/byte")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a task's items come from: package and version, licence, and how the parts were cut."""

    source: str
    version: str = ""
    licence: str = ""
    split: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """One task. Parts share no input; where items have groups, no group is both in the test part and outside it.

    `head`: `frozen` (a fixed head outside the merged weights), `own` (each task keeps its trained head), or `none`.
    `unseen` tasks have no expert: they measure generalisation. `shift_of` names the task that this one asks under other
    conditions (noise, another vendor's pictures): it has no expert and is scored wherever that task is. Raises
    EvaluationError where parts overlap.
    """

    name: str
    train: tuple[Item, ...]
    selection: tuple[Item, ...]
    test: Sealed
    metric: Metric
    head: Head
    provenance: Provenance
    unseen: bool = False
    classes: tuple[str, ...] = ()
    shift_of: str = ""
    digest: str = field(default="", compare=False)

    @classmethod
    def of(
        cls,
        name: str,
        *,
        train: Sequence[Item],
        selection: Sequence[Item],
        test: Sequence[Item],
        metric: Metric,
        head: Head,
        provenance: Provenance,
        unseen: bool = False,
        classes: Sequence[str] = (),
        shift_of: str = "",
    ) -> Task:
        """A checked task; its test part is sealed."""
        _disjoint(name, {"train": train, "selection": selection, "test": test})
        _groups_apart(name, [*train, *selection], test)
        parts = (digest_of(train), digest_of(selection), digest_of(test))
        return cls(
            name=name,
            train=tuple(train),
            selection=tuple(selection),
            test=Sealed(name, test),
            metric=metric,
            head=head,
            provenance=provenance,
            unseen=unseen or bool(shift_of),
            classes=tuple(classes),
            shift_of=shift_of,
            digest=blake3("/".join((name, metric.name, *parts)).encode()).hexdigest(length=16),
        )

    def units(self, items: Sequence[Item]) -> list[int]:
        """A number for each item's group, below 2⁴⁸; an item without one is a group of its own.

        The same number in every task: groups of one name are one group where tasks are of one source, and an input is
        the same wherever it is asked.
        """
        source = self.provenance.source
        names = [f"g{source}\0{item.group}" if item.group else f"i{item.digest}" for item in items]
        return [int.from_bytes(blake3(name.encode()).digest(length=6), "little") for name in names]


def digest_of(items: Sequence[Item]) -> str:
    """BLAKE3 of items in order: inputs, targets and weights."""
    hasher = blake3()
    for item in items:
        hasher.update(f"{item.digest}\0{item.target!r}\0{item.weight!r}\n".encode())
    return hasher.hexdigest(length=16)


def groups_of(items: Sequence[Item]) -> int:
    """How many groups the items are of; one without a group is its own."""
    named = [item.group for item in items if item.group]
    return len(set(named)) + len(items) - len(named)


def _disjoint(name: str, parts: dict[str, Sequence[Item]]) -> None:
    seen: dict[str, str] = {}
    for part, items in parts.items():
        for number, item in enumerate(items):
            owner = seen.setdefault(item.digest, part)
            if owner != part:
                raise EvaluationError(
                    "CV-B003",
                    f"the task `{printable(name)}` has the same input in `{owner}` and `{part}` (item {number})",
                    hint="drop duplicates of test inputs from the other parts before making the task",
                )


def _groups_apart(name: str, outside: Sequence[Item], test: Sequence[Item]) -> None:
    shared = {i.group for i in outside if i.group} & {i.group for i in test if i.group}
    if shared:
        first = printable(sorted(shared)[0])
        raise EvaluationError(
            "CV-B004",
            f"the task `{printable(name)}` has {len(shared)} groups both in the test part and outside it, "
            f"the first is `{first}`",
            hint="split by group, so that parts of one document are never on both sides",
        )
