"""Blocks of networks that are no single stack of layers: those of a U-Net, or of a transformer with several stacks.

Owns labels (`IN00` … `M00` … `OUT11`, `D00`, `S00`), the names that belong to each, and a block's place in the row.
Every name of a module is in one block or in none. Must not know any single family: tables are in `data/*.toml`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Rows = tuple[tuple[str, tuple[str, ...]], ...]  # label and patterns, as the file has them


@dataclass(frozen=True, slots=True)
class Block:
    """One block: its label, its position in the row (0-based), and the length of the row."""

    label: str
    number: int
    count: int

    @property
    def depth(self) -> float:
        """0 for the first block, 1 for the last."""
        return self.number / (self.count - 1) if self.count > 1 else 1.0


@dataclass(frozen=True, slots=True)
class Blocks:
    """The row of blocks of one module, ready for look-ups by names without the module's prefix."""

    labels: tuple[str, ...]
    heads: Mapping[str, int]  # what names of a block start with, up to a dot, and its position

    def of(self, name: str) -> Block | None:
        """The block of a name, None outside the blocks."""
        end = name.find(".")
        while end >= 0:
            number = self.heads.get(name[:end])
            if number is not None:
                return Block(self.labels[number], number, len(self.labels))
            end = name.find(".", end + 1)
        return None


NO_BLOCKS = Blocks((), {})


def rows_of(table: Mapping[str, Iterable[str]]) -> Rows:
    """A `label = [patterns]` table as the file has it, patterns of the form `head.*`.

    `#` in both stands for every number there is.
    """
    return tuple((label, tuple(patterns)) for label, patterns in table.items())


def fitted(rows: Rows, names: Iterable[str]) -> Blocks:
    """The blocks that a checkpoint has; `names` are those of the module, without its prefix."""
    listed = list(names)
    labels: list[str] = []
    heads: dict[str, int] = {}
    for label, patterns in rows:
        numbers = range(_count(patterns, listed)) if "#" in label else (None,)
        for number in numbers:
            written = "" if number is None else str(number)
            heads |= {p.removesuffix(".*").replace("#", written): len(labels) for p in patterns}
            labels.append(label.replace("#", f"{int(written or 0):02}"))
    return Blocks(tuple(labels), heads)


def _count(patterns: Iterable[str], names: Iterable[str]) -> int:
    """One more than the highest number that stands at the `#` of a pattern."""
    heads = tuple(pattern.partition("#")[0] for pattern in patterns)
    found = [
        int(digits)
        for name in names
        for head in heads
        if name.startswith(head)
        and (digits := name[len(head) :].partition(".")[0]).isdigit()
        and len(digits) < 5
    ]
    return max(found, default=-1) + 1
