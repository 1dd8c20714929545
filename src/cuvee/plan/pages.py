"""Which pages of files blocks of tensors lie in, and what reading them takes that nothing else has taken already.

A device gives whole pages, so blocks beside each other share the page between them. Pages are counted at 4 KiB on every
machine, so that plans are the same. What lies plainly in no file of this machine counts by its bytes. Must not read
weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from cuvee.plan.plan import Plan
from cuvee.sources.catalogue import span_of
from cuvee.sources.source import unfetched

PAGE = 4096
_Lies = tuple[str, int] | None  # file, offset


@dataclass(frozen=True, slots=True)
class Stretch:
    """Pages [first, stop) of a file; where there is no such file (`path` is empty), `nbytes` alone count."""

    path: str
    first: int
    stop: int
    nbytes: int

    @property
    def ends(self) -> tuple[tuple[str, int], ...]:
        """The pages that others may share."""
        if not self.path:
            return ()
        last = self.stop - 1
        return (
            ((self.path, self.first),) if last == self.first else ((self.path, self.first), (self.path, last))
        )

    @property
    def size(self) -> int:
        """Bytes, where nothing is shared."""
        return (self.stop - self.first) * PAGE if self.path else self.nbytes


@dataclass(slots=True)
class Ledger:
    """What is read: bytes in whole pages, and by how many stretches each page at an end of one is asked for."""

    nbytes: int = 0
    _ends: Counter[tuple[str, int]] = field(default_factory=Counter)

    def copy(self) -> Ledger:
        """Another with the same in it."""
        return Ledger(self.nbytes, self._ends.copy())

    def cost(self, stretches: Iterable[Stretch]) -> int:
        """What reading more takes (at most: among themselves nothing is taken to be shared)."""
        return sum(s.size - PAGE * sum(self._ends[end] > 0 for end in s.ends) for s in stretches)

    def take(self, stretches: Iterable[Stretch]) -> None:
        """Read these, too."""
        for stretch in stretches:
            self.nbytes += self.cost([stretch])
            self._ends.update(stretch.ends)

    def give(self, stretches: Iterable[Stretch]) -> None:
        """Read these no more."""
        for stretch in stretches:
            self._ends.subtract(stretch.ends)
            self.nbytes -= self.cost([stretch])

    def freed(self, stretches: Iterable[Stretch]) -> int:
        """What giving these back would spare (at least)."""
        return sum(s.size - PAGE * sum(self._ends[end] > 1 for end in s.ends) for s in stretches)


@dataclass(slots=True)
class Places:
    """Where the tensors of a plan's sources lie; asked once for each."""

    plan: Plan
    _lies: dict[tuple[str, str], _Lies] = field(default_factory=dict)

    def tensor(self, key: str, name: str) -> Stretch:
        """All of a tensor."""
        return self.elements(key, name, 0, self.plan.sources[key].source.tensors[name].numel)

    def block(self, key: str, name: str, number: int) -> Stretch:
        """One block."""
        return self.elements(key, name, *span_of(self.plan.sources[key].source.tensors[name], number))

    def elements(self, key: str, name: str, start: int, stop: int) -> Stretch:
        """Elements [start, stop) of a tensor."""
        size = self.plan.sources[key].source.tensors[name].dtype.size
        nbytes, lies = (stop - start) * size, self.offset(key, name)
        if lies is None or not nbytes:
            return Stretch("", 0, 0, nbytes)
        at = lies[1] + start * size
        return Stretch(lies[0], at // PAGE, -(-(at + nbytes) // PAGE), nbytes)

    def offset(self, key: str, name: str) -> _Lies:
        """The file that a tensor lies in, and where; None where it lies plainly in none."""
        if (key, name) not in self._lies:
            source = self.plan.sources[key].source
            # asking where a tensor lies would fetch it
            extent = None if unfetched(source) else source.extent(name)
            plain = extent is not None and extent.nbytes == source.tensors[name].nbytes
            self._lies[key, name] = (str(extent.path), extent.offset) if extent and plain else None
        return self._lies[key, name]
