"""How a budget is spent: chains of steps, each gaining less for its cost than the one before, best first.

What does not fit is passed over; at the end steps are exchanged where few are at hand, since a step that is a bit too
large would leave its place empty. Knows gains and costs alone; must not know methods or catalogues.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from cuvee.plan.pages import Ledger, Stretch

_FEW = 4096  # steps: with more, one that is left over weighs nothing
_WINDOW = 24  # steps on each side that are exchanged
_ROUNDS = 64


@dataclass(frozen=True, slots=True)
class Step:
    """Members of a block that are read together once those of earlier steps are, and the block's error from then on.

    `gain`: by how much that lessens the error.
    """

    members: tuple[int, ...]
    gain: float
    after: float
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """The steps of one block, in their order; `before`: its error while none is taken."""

    before: float
    steps: tuple[Step, ...]


class Spending:
    """How many steps of each chain are taken, and what has been paid for."""

    def __init__(self, chains: Sequence[Chain], ledger: Ledger) -> None:
        self._chains = chains
        self._ledger = ledger
        self.taken = [0] * len(chains)
        self._beside: dict[tuple[str, int], list[int]] = {}
        for number, chain in enumerate(chains):
            for end in {end for step in chain.steps for s in step.stretches for end in s.ends}:
                self._beside.setdefault(end, []).append(number)

    @property
    def errors(self) -> list[float]:
        """What is left of the error of each chain."""
        return [
            c.steps[n - 1].after if n else c.before for c, n in zip(self._chains, self.taken, strict=True)
        ]

    @property
    def everything(self) -> int:
        """What reading all there is takes."""
        ledger = self._ledger.copy()
        for chain, taken in zip(self._chains, self.taken, strict=True):
            for step in chain.steps[taken:]:
                ledger.take(step.stretches)
        return ledger.nbytes

    def within(self, limit: float) -> None:
        """Spend as much as the limit allows."""
        self._spend(limit, lambda error: False)
        if sum(len(chain.steps) for chain in self._chains) <= _FEW:
            for _ in range(_ROUNDS):
                if not self._exchanged(limit):
                    break
                self._spend(limit, lambda error: False)

    def until(self, enough: Callable[[float], bool], limit: float) -> None:
        """Spend until the error is small enough, then take back what that does not need."""
        self._spend(limit, enough)
        if not enough(math.fsum(self.errors)):
            return
        for number, step in sorted(self._last(), key=lambda row: (self._worth(row[1]), row[0])):
            self.taken[number] -= 1
            if not enough(math.fsum(self.errors)):
                self.taken[number] += 1
                break
            self._ledger.give(step.stretches)

    def _spend(self, limit: float, enough: Callable[[float], bool]) -> None:
        heap = [row for number in range(len(self._chains)) for row in self._next(number)]
        heapq.heapify(heap)
        error = math.fsum(self.errors)
        while heap:
            _, number, at, told = heapq.heappop(heap)
            if at != self.taken[number]:
                continue
            step = self._chains[number].steps[at]
            cost = self._ledger.cost(step.stretches)
            if cost != told:  # a page that it needs has been paid for since: its new row is there, too
                continue
            if self._ledger.nbytes + cost > limit:
                continue
            if enough(error):
                error = math.fsum(self.errors)  # small beside what was taken from it, so not exact until now
                if enough(error):
                    break
            self._ledger.take(step.stretches)
            self.taken[number] += 1
            error -= step.gain
            beside = {n for s in step.stretches for end in s.ends for n in self._beside[end]} | {number}
            for other in beside:
                for row in self._next(other):
                    heapq.heappush(heap, row)

    def _next(self, number: int) -> Iterator[tuple[float, int, int, int]]:
        """The step of a chain that is to be taken next, before others that gain less for their cost."""
        steps, at = self._chains[number].steps, self.taken[number]
        if at < len(steps):
            cost = self._ledger.cost(steps[at].stretches)
            yield -steps[at].gain / cost if cost else -math.inf, number, at, cost

    def _last(self) -> list[tuple[int, Step]]:
        return [(n, self._chains[n].steps[at - 1]) for n, at in enumerate(self.taken) if at]

    def _worth(self, step: Step) -> float:
        """The gain of a taken step for what giving it back would spare."""
        spared = self._ledger.freed(step.stretches)
        return step.gain / spared if spared > 0 else math.inf

    def _exchanged(self, limit: float) -> bool:
        """Whether a step was taken for one or two others that gain less together."""
        rows = sorted(row for number in range(len(self._chains)) for row in self._next(number))[:_WINDOW]
        ours = sorted(self._last(), key=lambda row: (self._worth(row[1]), row[0]))[:_WINDOW]
        freed = {number: self._ledger.freed(step.stretches) for number, step in ours}
        left = limit - self._ledger.nbytes
        best: tuple[float, int, tuple[tuple[int, Step], ...]] | None = None
        sets = [*combinations(ours, 1), *combinations(ours, 2)]
        for _, number, at, _ in rows:
            step = self._chains[number].steps[at]
            # as if what is given back were all it shares a page with
            cost = sum(s.size for s in step.stretches)
            for gone in sets:
                gain = step.gain - math.fsum(other.gain for _, other in gone)
                fits = cost - sum(freed[n] for n, _ in gone) <= left and all(n != number for n, _ in gone)
                if fits and gain > (best[0] if best else 1e-12 * step.gain):
                    best = gain, number, gone
        if best is None:
            return False
        for number, step in best[2]:
            self._ledger.give(step.stretches)
            self.taken[number] -= 1
        number = best[1]
        self._ledger.take(self._chains[number].steps[self.taken[number]].stretches)
        self.taken[number] += 1
        return True
