"""Registered methods as contenders: candidates merged in memory, tuned under the referee's budget, no file written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cuvee.api.candidates import Candidates, hold
from cuvee.errors import NonFinite
from cuvee.evaluate.search import Kind, searcher
from cuvee.evaluate.selection import BudgetSpent, Selection
from cuvee.evaluate.space import Dimension, dimensions
from cuvee.evaluate.track import count_handed
from cuvee.methods import registry

if TYPE_CHECKING:
    from cuvee.evaluate.track import Weights


@dataclass(frozen=True, slots=True)
class Contender:
    """One method of the registry in the ring, or a chain of stages under a name of its own.

    `settings` are fixed parameter values; `space` the ranges to tune (None: from the signature, empty: none).
    `search` says how. Called with a `Selection` it spends at most its budget; the method's defaults are always the
    first candidate, so tuning never ends below them on the selection part.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, Any] | None = None
    search: Kind = "sobol"
    seed: int = 0

    def __call__(self, room: Selection) -> tuple[Weights, Mapping[str, Any]]:
        tuned = self.tuned(count_handed(room.track, room.names))
        chosen: Mapping[str, Any] = self._needed(tuned)
        with self.held(room, chosen) as held:
            return self._best(room, held, tuned, chosen)

    def tuned(self, experts: int = 1) -> list[Dimension]:
        """What is searched for so many experts: the ranges without those of fixed parameters."""
        found = dimensions(self.method, self.space, experts=experts, settings=self.settings)
        return [d for d in found if d.name not in self.settings]

    def _best(
        self, room: Selection, held: Candidates, tuned: Sequence[Dimension], chosen: Mapping[str, Any]
    ) -> tuple[Weights, Mapping[str, Any]]:
        best = _merged(room, held, chosen)
        if room.budget == 0 or not tuned:
            return best, {**self.settings, **chosen}
        highest = room.evaluate(best, {**self.settings, **chosen})
        asking = searcher(self.search, tuned, room.budget - 1, self.seed)
        try:
            while (point := asking.ask()) is not None:
                try:
                    candidate = _merged(room, held, point)
                except NonFinite:  # values that overflow lose; the best so far stands
                    asking.tell(point, -math.inf)
                    continue
                value = room.evaluate(candidate, {**self.settings, **point})
                asking.tell(point, value)
                if value > highest:
                    best, highest, chosen = candidate, value, point
        except BudgetSpent:
            pass
        return best, {**self.settings, **chosen}

    def _needed(self, tuned: Sequence[Dimension]) -> dict[str, Any]:
        """The middle of the range for tuned parameters that have no default."""
        known = registry.parameters_for(registry.get(self.method))
        return {d.name: d.at(0.5) for d in tuned if known[d.name].required}

    def held(self, room: Selection, point: Mapping[str, Any]) -> Candidates:
        """The experts of the room, held for merging them with this method at one point after the other."""
        ordinary = registry.get(self.method).base == "ordinary"
        experts: Any = [dict(weights) for weights in room.experts]
        base = None if ordinary else dict(room.base)
        return hold(experts, base=base, method=self.method, seed=self.seed, **{**self.settings, **point})


def _merged(room: Selection, held: Candidates, point: Mapping[str, Any]) -> Weights:
    """The merge for one point, in memory."""
    room.ledger.add(merges=1)
    return held.merge(**point)
