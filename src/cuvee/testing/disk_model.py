"""What `FaultyDisk` keeps of files and folders: what is certain, what is only seen, and what lies between.

Owns the chances of a power cut. Must not know of paths, errors or operations.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

Names = Literal["ordered", "subset"]


@dataclass(slots=True)
class File:
    """Bytes that are certain, bytes that a program reads, and the writes in between."""

    durable: bytearray = field(default_factory=bytearray)
    current: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # (offset, bytes) or (size, None)


@dataclass(slots=True)
class Folder:
    """Names and the numbers of their nodes: when the disk was made, and as a program sees them now."""

    durable: dict[str, int] = field(default_factory=dict)
    current: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Change:
    """One change of names: (folder, name, node or None to remove); certain once `folder` is synced."""

    edits: tuple[tuple[int, str, int | None], ...]
    folder: int
    certain: bool = False


@dataclass(frozen=True, slots=True)
class PartialWrite:
    """What a failing write does all the same: it writes a part."""

    chance: random.Random
    file: File
    offset: int
    data: bytes

    def happen(self) -> None:
        part = self.data[: self.chance.randint(0, len(self.data))]
        apply_write(self.file.current, self.offset, part)
        self.file.pending.append((self.offset, part))


@dataclass(frozen=True, slots=True)
class LostSync:
    """What a failing sync does: the bytes are marked as written, and are not."""

    file: File

    def happen(self) -> None:
        self.file.pending.clear()


def apply_write(content: bytearray, offset: int, data: bytes | None) -> None:
    """Write at an offset; without data, cut or extend to that size."""
    if data is None:
        size = offset
        del content[size:]
        content.extend(bytes(size - len(content)))
        return
    if data and offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def survivor(node: File | Folder, chance: random.Random) -> File | Folder:
    """What a power cut leaves of a node."""
    if isinstance(node, Folder):
        return Folder(dict(node.durable))
    content = bytearray(node.durable)
    for offset, data in node.pending:
        fate = chance.choice(("lands", "vanishes", "tears"))
        if fate == "lands" or (fate == "tears" and data is None):
            apply_write(content, offset, data)
        elif fate == "tears" and data:
            start, stop = sorted((chance.randint(0, len(data)), chance.randint(0, len(data))))
            apply_write(content, offset + start, data[start:stop])
    return File(content, bytearray(content))


def surviving(changes: list[Change], barrier: int, names: Names, chance: random.Random) -> list[Change]:
    """The changes of names that a power cut leaves; the first `barrier` are certain where order is kept."""
    if names == "subset":
        return [change for change in changes if change.certain or chance.random() < 0.5]
    return changes[: chance.randint(barrier, len(changes))]
