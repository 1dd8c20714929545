"""Cuvée's own cache folder: what is in it, and how to empty it. Downloads are not here but in the hub's cache."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from cuvee.core import settings
from cuvee.core.disk import remove_tree

DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One cached thing: a file or folder directly in the cache."""

    name: str
    bytes: int
    age_days: float


def folder() -> Path:
    """CUVEE_CACHE, else `cuvee` in the XDG cache home."""
    own = settings.get("CUVEE_CACHE")
    if own:
        return Path(own)
    home = settings.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "cuvee"


def entries() -> list[Entry]:
    """What the cache holds, largest first."""
    if not folder().is_dir():
        return []
    found = [_entry(path) for path in folder().iterdir()]
    return sorted(found, key=lambda e: (-e.bytes, e.name))


def prune(days: float = 0.0) -> list[Entry]:
    """Remove entries not touched for `days` days; what was removed."""
    gone = [e for e in entries() if e.age_days >= days]
    for entry in gone:
        remove_tree(folder() / entry.name)
    return gone


def _entry(path: Path) -> Entry:
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    stats = [f.stat() for f in files]
    newest = max((s.st_mtime for s in stats), default=path.stat().st_mtime)
    return Entry(path.name, sum(s.st_size for s in stats), max(0.0, (time.time() - newest) / DAY))
