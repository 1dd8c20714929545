"""What stages found out about their inputs, kept from one run to the next over the same inputs.

A search over parameters runs many plans that differ in a few values. Whatever a figure or summary depends on (the
stage's inputs as nodes, and those of its values that it is made from) is its key, so that a change of anything else
finds it again. Nodes are told apart by identity: plans that share nothing find nothing. Entries that two runs in a row
did not ask for are dropped. Must not know what is kept.

`known` may have figures without any run, as a catalogue has; with `keeps` off nothing else is held.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from cuvee.methods.registry import stage
from cuvee.plan.nodes import Apply, Node

_UNUSED = 2  # runs

Key = tuple[Any, ...]


@dataclass(slots=True)
class _Entry:
    """A value, the nodes whose identity is part of its key (they must live as long), and the last run that asked."""

    value: Any
    nodes: tuple[Node, ...]
    run: int


@dataclass(slots=True)
class Memo:
    """Figures and summaries by what they depend on; may be used from several threads."""

    known: Callable[[str, Sequence[Apply]], Any] | None = None
    keeps: bool = True
    _entries: dict[Key, _Entry] = field(default_factory=dict)
    _run: int = 0
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> None:
        """A run begins: forget what the last ones had no use for."""
        with self._guard:
            self._run += 1
            old = [key for key, entry in self._entries.items() if entry.run < self._run - _UNUSED]
            for key in old:
                del self._entries[key]

    def get(self, what: str, nodes: Sequence[Apply], names: Collection[str] | None) -> Any:
        """What was kept of these applications under a name and the values called `names` (None: all), or None."""
        entry = self._entries.get(_key(what, nodes, names))
        if entry is None:
            return None if self.known is None else self.known(what, nodes)
        entry.run = self._run
        return entry.value

    def keep(self, what: str, nodes: Sequence[Apply], names: Collection[str] | None, value: Any) -> None:
        """Keep a value (not None) for later runs."""
        if not self.keeps:
            return
        inputs = tuple(child for node in nodes for child in node.inputs)
        with self._guard:
            self._entries[_key(what, nodes, names)] = _Entry(value, inputs, self._run)


def _key(what: str, nodes: Sequence[Apply], names: Collection[str] | None) -> Key:
    return (what, *(_part(node, names) for node in nodes))


def _part(node: Apply, names: Collection[str] | None) -> Key:
    values = [(k, v) for k, v in node.values if names is None or k in names]
    # `repr` tells apart what compares equal: 0.0 and -0.0, 1 and True
    return (node.stage, node.label, node.tensor, node.seed, repr(values), tuple(map(id, node.inputs)))


def summary_values(name: str) -> Collection[str] | None:
    """The values of a stage that its summary depends on; None for all of them."""
    summarise = stage(name).summarise
    return None if summarise is None else _named(summarise)


@cache
def _named(summarise: Callable[..., Any]) -> Collection[str] | None:
    """The keyword arguments that a function names; None where it takes others and may look at them.

    By convention a summary that takes `**_` looks at none of those.
    """
    parameters = inspect.signature(summarise).parameters.values()
    if any(p.kind is p.VAR_KEYWORD and p.name != "_" for p in parameters):
        return None
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
