"""The names of diffusion models in their original checkpoints and in diffusers, as tables; both directions.

Owns the reading of `key_maps/*.toml` and what a table does to the names and shapes of one component: renaming,
splitting and joining of fused matrices, halves in another order, transposition, 1×1 kernels. Reads no weight; what
comes out says which elements of which tensors make each tensor (`Part`). Must not know folders or files.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from cuvee.core.tensors import TensorMeta

DATA = Path(__file__).with_name("key_maps")
Kind = Literal["same", "swapped", "transposed", "flat", "fused"]
_KINDS = ("same", "swapped", "transposed", "flat")


@dataclass(frozen=True, slots=True)
class Part:
    """`count` elements of the tensor `name` from `start` on, row-major; turned: of its transpose (whole only)."""

    name: str
    start: int
    count: int
    turned: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor put together from parts of others, one behind the other."""

    meta: TensorMeta
    parts: tuple[Part, ...]


@dataclass(slots=True)
class Names:
    """What a table made of a component's tensors, and the names it has no place for."""

    made: dict[str, Made] = field(default_factory=dict)
    strange: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)  # parts of fused tensors


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a table: the original module, the modules in diffusers, and how the tensors differ."""

    original: str
    diffusers: tuple[str, ...]
    kind: Kind = "same"
    inside: tuple[tuple[str, str], ...] = ()  # names within the module, diffusers and original
    shares: tuple[int, ...] = ()  # rows of each part of a fused tensor


@dataclass(frozen=True, slots=True)
class KeyMap:
    """A table with both its look-ups; names may hold `{n}`, a block's number, and `{last}`, that of the last block."""

    by_original: Mapping[str, Entry]
    by_diffusers: Mapping[str, Entry]

    def to_diffusers(self, tensors: Mapping[str, TensorMeta]) -> Names:
        """The tensors of a component under their names in diffusers."""
        out, last = Names(), _last(tensors)
        for name, meta in tensors.items():
            found = _find(self.by_original, name, last)
            if found is None or not _divides(found.entry, meta):
                out.strange.append(name)
                continue
            entry, number, rest = found.entry, found.number, found.rest
            inner = _inside(entry, rest, to_diffusers=True)
            if inner is None:
                out.strange.append(name)
            elif entry.kind == "fused":
                _split(entry, [_named(d, number, inner) for d in entry.diffusers], meta, out.made)
            else:
                target = _named(entry.diffusers[0], number, inner)
                out.made[target] = _one(target, meta, entry.kind, to_diffusers=True)
        return out

    def to_original(self, tensors: Mapping[str, TensorMeta]) -> Names:
        """The tensors of a component under their original names; `lacking` are parts that a fused one needs."""
        out, last = Names(), _last(tensors)
        groups: dict[str, tuple[Entry, dict[str, TensorMeta]]] = {}
        for name, meta in tensors.items():
            found = _find(self.by_diffusers, name, last)
            inner = None if found is None else _inside(found.entry, found.rest, to_diffusers=False)
            if found is None or inner is None:
                out.strange.append(name)
                continue
            target = _named(found.entry.original, found.number, inner)
            if found.entry.kind != "fused":
                out.made[target] = _one(target, meta, found.entry.kind, to_diffusers=False)
                continue
            needed = [_named(d, found.number, inner) for d in found.entry.diffusers]
            groups.setdefault(target, (found.entry, dict.fromkeys(needed)))[1][name] = meta  # type: ignore[arg-type]
        for target, (_, parts) in groups.items():
            absent = [name for name, meta in parts.items() if meta is None]
            out.lacking += absent
            if not absent:
                out.made[target] = _joined(target, list(parts.values()))
        return out


@lru_cache(maxsize=16)
def key_map(name: str | None) -> KeyMap:
    """The table of this name; None for one that changes no name."""
    if name is None:
        return _indexed([Entry("", ("",))])
    data = tomllib.loads((DATA / f"{name}.toml").read_text(encoding="utf-8"))
    inside = data.pop("inside", {})
    entries = [
        Entry(fused["original"], tuple(fused["parts"]), "fused", shares=tuple(fused.get("shares", ())))
        for fused in data.pop("fused", ())
    ]
    for section, rows in data.items():
        kind: Any = section if section in _KINDS else "same"
        within = tuple(inside[section].items()) if section in inside else ()
        entries += [Entry(original, (name,), kind, within) for name, original in rows.items()]
    return _indexed(entries)


def _indexed(entries: Iterable[Entry]) -> KeyMap:
    listed = list(entries)
    by_diffusers = {name: entry for entry in listed for name in entry.diffusers}
    return KeyMap({entry.original: entry for entry in listed}, by_diffusers)


@dataclass(frozen=True, slots=True)
class _Found:
    entry: Entry
    number: str
    rest: str


def _find(table: Mapping[str, Entry], name: str, last: str | None) -> _Found | None:
    """The entry of the longest part of a name, its block number, and the rest of the name."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isascii() and part.isdigit()), None)
    number = "" if at is None else parts[at]
    for length in range(len(parts), -1, -1):
        rest = ".".join(parts[length:])
        for stands in (None, "{last}" if number == last else None, "{n}"):
            tried = list(parts[:length])
            if stands is not None:
                if at is None or at >= length:
                    continue
                tried[at] = stands
            entry = table.get(".".join(tried))
            if entry is not None:
                return _Found(entry, number, rest)
    return None


def _last(names: Iterable[str]) -> str | None:
    """The highest number of a stack of blocks that starts a name."""
    found = {parts[1] for n in names if len(parts := n.split(".", 2)) == 3 and parts[1].isdigit()}
    return max(found, key=int) if found else None


def _named(pattern: str, number: str, rest: str) -> str:
    name = pattern.replace("{n}", number).replace("{last}", number)
    return f"{name}.{rest}" if name and rest else name or rest


def _inside(entry: Entry, rest: str, *, to_diffusers: bool) -> str | None:
    """The rest of a name in the other form; None for a name that modules of this kind do not have."""
    if not entry.inside:
        return rest
    for theirs, original in entry.inside:
        own, other = (original, theirs) if to_diffusers else (theirs, original)
        if rest == own or rest.startswith(f"{own}."):
            return other + rest[len(own) :]
    return None


def _divides(entry: Entry, meta: TensorMeta) -> bool:
    """Whether a tensor can be cut as its entry says."""
    parts = sum(_shares(entry)) if entry.kind == "fused" else 2 if entry.kind == "swapped" else 1
    return parts == 1 or (bool(meta.shape) and meta.shape[0] % parts == 0)


def _shares(entry: Entry) -> tuple[int, ...]:
    return entry.shares or (1,) * len(entry.diffusers)


def _split(entry: Entry, targets: list[str], meta: TensorMeta, into: dict[str, Made]) -> None:
    """The parts of a fused tensor, each as many rows as its share."""
    shares = _shares(entry)
    unit, row = meta.shape[0] // sum(shares), meta.numel // max(1, meta.shape[0])
    start = 0
    for target, share in zip(targets, shares, strict=True):
        rows = unit * share
        shape = (rows, *meta.shape[1:])
        into[target] = Made(TensorMeta(target, meta.dtype, shape), (Part(meta.name, start, rows * row),))
        start += rows * row


def _joined(target: str, parts: list[TensorMeta]) -> Made:
    first = parts[0]
    shape = (sum(m.shape[0] for m in parts), *first.shape[1:])
    return Made(TensorMeta(target, first.dtype, shape), tuple(Part(m.name, 0, m.numel) for m in parts))


def _one(target: str, meta: TensorMeta, kind: Kind, *, to_diffusers: bool) -> Made:
    shape, whole = meta.shape, Part(meta.name, 0, meta.numel)
    parts: tuple[Part, ...] = (whole,)
    if kind == "transposed":
        shape, parts = shape[::-1], (Part(meta.name, 0, meta.numel, turned=True),)
    elif kind == "swapped" and meta.shape:
        half = meta.numel // 2
        parts = (Part(meta.name, half, meta.numel - half), Part(meta.name, 0, half))
    elif kind == "flat" and to_diffusers and len(shape) > 2 and set(shape[2:]) == {1}:
        shape = shape[:2]
    elif kind == "flat" and not to_diffusers and len(shape) == 2:
        shape = (*shape, 1, 1)
    return Made(TensorMeta(target, meta.dtype, shape), parts)
