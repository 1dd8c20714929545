"""Findings that one cause makes for many tensors, told as one: the first in full, the others by count and name.

Pure. What is data (`--json`) keeps every finding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cuvee.core.names import printable
from cuvee.errors import Diagnostic

_SHOWN = 3  # names of tensors
_SHAPE = re.compile(r"\[[\d, ]*\]")


@dataclass(frozen=True, slots=True)
class Group:
    """A finding, and the tensors it was made for (none when it stands alone)."""

    first: Diagnostic
    tensors: tuple[str, ...] = ()

    @property
    def others(self) -> str | None:
        """`21 tensors: a, b, c and 18 more`, or None for a single finding."""
        if len(self.tensors) < 2:
            return None
        shown = ", ".join(f"`{printable(name)}`" for name in self.tensors[:_SHOWN])
        rest = len(self.tensors) - _SHOWN
        return f"{len(self.tensors)} tensors: {shown}" + (f" and {rest} more" if rest > 0 else "")


def grouped(found: Iterable[Diagnostic]) -> list[Group]:
    """The findings in their order; those that differ in nothing but a tensor and its shapes are one group."""
    groups: dict[tuple[object, ...], list[Diagnostic]] = {}
    for number, one in enumerate(found):
        groups.setdefault(_cause(one) or (number,), []).append(one)
    return [Group(each[0], tuple(_tensor(d) for d in each)) for each in groups.values()]


def _tensor(found: Diagnostic) -> str:
    return (found.where.tensor if found.where else None) or ""


def _cause(found: Diagnostic) -> tuple[object, ...] | None:
    """What findings of one group share; None for a finding that is not about a tensor."""
    where = found.where
    if where is None or where.tensor is None:
        return None
    message = _SHAPE.sub("[]", found.message.replace(f"`{printable(where.tensor)}`", "`…`"))
    place = (where.file, where.line, where.column, where.path, where.source)
    return (found.code, found.severity, found.hint, message, place)
