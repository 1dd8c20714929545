"""Name patterns of the family files: exact names, or globs whose only special character is `*` (any run,
dots too).

Plain string operations, because compiling a hundred regular expressions would take longer than the rest of
a command.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Glob:
    """A pattern, split at its stars, and what a match means."""

    parts: tuple[str, ...]
    value: str

    def matches(self, name: str) -> bool:
        """Whether the whole name fits."""
        first, *middle = self.parts
        if not middle:
            return name == first
        last = middle.pop()
        at, end = len(first), len(name) - len(last)
        if end < at or not name.startswith(first) or not name.endswith(last):
            return False
        for part in middle:
            found = name.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True


def glob(pattern: str, value: str = "") -> Glob:
    """The pattern made ready."""
    return Glob(tuple(pattern.split("*")), value)


def table(roles: Mapping[str, Iterable[str]]) -> tuple[Glob, ...]:
    """Globs of a `role = [patterns]` table, in the order of the file."""
    return tuple(glob(p, role) for role, patterns in roles.items() for p in patterns)


def find(globs: Iterable[Glob], name: str) -> str | None:
    """The value of the first glob that fits, or None."""
    for g in globs:
        if g.matches(name):
            return g.value
    return None
