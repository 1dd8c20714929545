"""Thresholds found in a catalogue instead of in a pass over the weights: exactly those that the pass would find.

A figure asks its questions as always (`engine.fused.figures`); here they are answered from counts of magnitudes. Owns
when the counts are of the values that a stage is handed. Must not read weights.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cuvee.core.dtypes import BFLOAT16, BY_NAME, FLOAT32, DType
from cuvee.core.lazy import numpy
from cuvee.engine.fused.chosen import ALL, Chosen
from cuvee.engine.fused.figures import gathering, wanted
from cuvee.engine.fused.selection import Probe, Window
from cuvee.engine.kernels import Kernels
from cuvee.engine.ranked import chosen_by, ranks_for
from cuvee.errors import RunError
from cuvee.plan.nodes import Apply, Convert, Difference, Node, Read
from cuvee.sources.catalogue import Change

if TYPE_CHECKING:
    import numpy.typing as npt

    from cuvee.plan.budget import Thinned
    from cuvee.sources.catalogue_ranks import Ranks

    Array = npt.NDArray[Any]

FLOAT16 = BY_NAME["float16"]
THINNING = ("trim", "band")  # stages whose thresholds are known from magnitudes
_INFINITE = 0x7F800000
_HIGH, _LOW = 1 << 15, 1 << 16

EPSILON = {FLOAT32: 2.0**-24, FLOAT16: 2.0**-11, BFLOAT16: 2.0**-8}
Changes = Mapping[tuple[str, str], Mapping[str, Change]]  # by expert and base


def refuse_summary(what: str, nodes: Sequence[Apply], needed: Collection[int]) -> None:
    """RunError where the generic path asks what it must not look for: thresholds of stages that are `needed`."""
    if what == "summary" and any(id(node) in needed for node in nodes):
        raise RunError(
            "CV-E280",
            f"`{nodes[0].tensor}` cannot be made by the compiled kernels, and thresholds of what a budget leaves "
            "out are known to them alone",
            hint="merge without a budget; a NaN or infinity among the inputs, or why there are no kernels, is told "
            "then",
        )


@dataclass(slots=True)
class Tables:
    """The changes that are catalogued, and the thresholds that follow from them."""

    changes: Changes
    kernels: Kernels
    groups: Mapping[str, Sequence[Apply]] = field(default_factory=dict)  # stages that share a threshold
    wholes: Mapping[tuple[str, str], Ranks] = field(
        default_factory=dict
    )  # by expert and base, of all tensors
    needed: frozenset[int] = (
        frozenset()
    )  # stages whose threshold must not be looked for in what is left of a plan
    asked: set[int] = field(default_factory=set)  # stages whose thresholds were given out
    _known: dict[tuple[int, ...], list[list[Chosen]] | None] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """The memory of what is catalogued."""
        changes = [change for by_name in self.changes.values() for change in by_name.values()]
        arrays = (array for c in changes for array in (c.energy, c.largest, c.moved, c.keys, c.counts))
        ranks = [*self.wholes.values(), *(change.ranks for change in changes if change.ranks is not None)]
        return sum(part.nbytes for part in (*arrays, *ranks) if part is not None)

    def figure(self, what: str, nodes: Sequence[Apply]) -> Any:
        """As `Memo.get` has it: the figure of one application, or those of a group; None where it does not follow."""
        refuse_summary(what, nodes, self.needed)
        found = self.cuts(nodes) if what == "cuts" else None
        return found[0] if found is not None and nodes[0].group is None else found

    def cuts(self, nodes: Sequence[Apply]) -> list[list[Chosen]] | None:
        """What each application keeps, as a pass finds it; None where that does not follow."""
        if nodes[0].stage not in THINNING or "cuts" not in wanted(nodes[0]):
            return None
        every = self.groups.get(nodes[0].group, nodes) if nodes[0].group is not None else nodes
        key = tuple(map(id, every))
        if key not in self._known:
            self._known[key] = self._found(every)
        found = self._known[key]
        if found is None:
            return None
        self.asked.update(map(id, nodes))
        by = dict(zip(key, found, strict=True))
        return [by[id(node)] for node in nodes]

    def _found(self, nodes: Sequence[Apply]) -> list[list[Chosen]] | None:
        tables = [self._table(node) for node in nodes]
        if any(table is None for table in tables):
            return self._ranked(nodes)
        held = [table for table in tables if table is not None]
        figure: Any = gathering("cuts", nodes, self.kernels)
        try:
            asked = next(figure)
            while True:
                several = isinstance(asked, tuple)
                found = [_answer(probe, held) for probe in (asked if several else (asked,))]
                asked = figure.send(found if several else found[0])
        except StopIteration as end:
            chosen: list[list[Chosen]] = end.value
            return chosen

    def _ranked(self, nodes: Sequence[Apply]) -> list[list[Chosen]] | None:
        found = self._ranks(nodes)
        return None if found is None else chosen_by(nodes, *found)

    def _ranks(self, nodes: Sequence[Apply]) -> tuple[Ranks, list[str]] | None:
        """The ranks that answer for all of these stages, and the names of tensors where these are several."""
        taken = [task_vector(node.inputs[0]) for node in nodes]
        if nodes[0].group is not None:
            return ranks_for(taken, self.wholes)
        change = self.change(nodes[0].inputs[0])
        if change is None or change.ranks is None or taken[0] is None or taken[0][2] != FLOAT32:
            return None
        return change.ranks, []

    def _equal(self, node: Apply, bits: int) -> int | None:
        """How many magnitudes of a stage's tensor have these bits, which are those of a threshold; None: not known."""
        table = self._table(node)
        if table is not None:
            return int(table[1][table[0] == bits].sum())
        found = self._ranks(self.groups.get(node.group, [node]) if node.group is not None else [node])
        taken = task_vector(node.inputs[0])
        return None if found is None or taken is None else found[0].equal_to(bits, taken[0].meta.name)

    def left(self, node: Apply) -> Thinned | None:
        """What the thresholds of a stage leave of its own tensor; None where they do not follow."""
        cuts, table, taken = self.cuts([node]), self._table(node), task_vector(node.inputs[0])
        if cuts is None or table is None or taken is None:
            return None
        kept = numpy.zeros(len(table[0]), numpy.int64)
        for sign, chosen in zip((1,) if len(cuts[0]) == 1 else (-1, 1), cuts[0], strict=True):
            kept += sign * _kept(chosen, *table)
        sizes = table[0].view(numpy.float32).astype(numpy.float64)
        gone = math.sqrt(float((sizes**2 * (table[1] - kept)).sum()))
        gone += EPSILON[taken[2]] * math.sqrt(float((sizes**2 * table[1]).sum()))  # of rounding differences
        inside = table[0][kept > 0]
        change = self.change(node.inputs[0])
        bits = 0xFFFFFFFF
        if len(inside) and change is not None and change.keys is not None:
            bits = int(change.keys[table[0] >= inside.min()].min())  # of differences before they are rounded
        least = float(sizes[kept > 0].min()) if len(inside) else 0.0
        from cuvee.plan.budget import Thinned  # only budgets ask for it

        return Thinned(gone * (1 + 1e-9), least, int(kept.sum()), bits)

    def idle(self, node: Apply) -> frozenset[int]:
        """Blocks of a stage's tensor in which nothing reaches its threshold; none where that does not follow."""
        cuts, change, taken = self.cuts([node]), self.change(node.inputs[0]), task_vector(node.inputs[0])
        if cuts is None or change is None or taken is None:
            return frozenset()
        least = cuts[0][-1]
        if not 0 < least.kept < least.total:
            return frozenset()
        below = rounded(change.largest, taken[2]) < least.bits
        return frozenset(numpy.flatnonzero(below).tolist())

    def settled(self, node: Apply) -> list[list[int]] | None:
        """What a stage keeps, as data, where it is told by magnitudes alone; None where that does not follow, or some
        of several equal ones are kept for where they stand.
        """
        cuts = self.cuts([node])
        if cuts is None:
            return None
        for one in cuts[0]:
            partly = 0 < one.kept < one.total and 0 < one.ties < ALL
            equal = self._equal(node, one.bits) if partly else None
            if partly and (equal is None or one.ties < equal):
                return None
        return [
            [0 if one.kept <= 0 else 2 if one.kept >= one.total else 1, one.bits, int(one.ties > 0)]
            for one in cuts[0]
        ]

    def change(self, node: Node) -> Change | None:
        """What the task vector is, where it is of two tensors as they are stored."""
        taken = task_vector(node)
        if taken is None:
            return None
        expert, base, _ = taken
        return self.changes.get((expert.source, base.source), {}).get(expert.meta.name)

    def _table(self, node: Apply) -> tuple[Array, Array] | None:
        """Magnitudes (bits of float32, some of them perhaps twice) and counts of what the stage is handed."""
        taken, change = task_vector(node.inputs[0]), self.change(node.inputs[0])
        if taken is None or change is None or change.keys is None or change.counts is None:
            return None
        keys = rounded(change.keys, taken[2])
        return None if keys.max(initial=0) >= _INFINITE else (keys, change.counts)


def task_vector(node: Node) -> tuple[Read, Read, DType] | None:
    """Expert, base and the type of their difference, which is that of two tensors of one name and type, subtracted in
    that type or in float32; else None.
    """
    if not isinstance(node, Difference):
        return None
    reads = [side.child if isinstance(side, Convert) else side for side in (node.expert, node.base)]
    kinds = [side.dtype if isinstance(side, Convert) else None for side in (node.expert, node.base)]
    expert, base = reads
    if not isinstance(expert, Read) or not isinstance(base, Read) or kinds[0] != kinds[1]:
        return None
    stored = base.meta.dtype
    kind = kinds[0] or stored
    if expert.meta != base.meta or kind not in (stored, FLOAT32):
        return None
    return (expert, base, kind) if kind in (BFLOAT16, FLOAT16, FLOAT32) else None


def rounded(keys: Array, kind: DType) -> Array:
    """Magnitudes of float32 as those of a narrower type, again in bits of float32."""
    if kind == BFLOAT16:
        wide = keys.astype(numpy.uint64)
        return ((wide + 0x7FFF + (wide >> 16 & 1)) & 0xFFFF0000).astype(numpy.uint32)
    if kind == FLOAT16:
        with numpy.errstate(over="ignore"):
            narrow = keys.view(numpy.float32).astype(numpy.float16)
        found: Array = narrow.astype(numpy.float32).view(numpy.uint32)
        return found
    return keys


def _kept(chosen: Chosen, keys: Array, counts: Array) -> Array:
    """How many of each magnitude are among the chosen."""
    if chosen.kept <= 0 or chosen.kept >= chosen.total:
        return counts if chosen.kept > 0 else numpy.zeros_like(counts)
    found: Array = numpy.where(keys > chosen.bits, counts, 0)
    left = chosen.ties
    for place in numpy.flatnonzero(keys == chosen.bits):  # twice where magnitudes were rounded
        found[place] = min(left, int(counts[place]))
        left -= int(found[place])
    return found


def _answer(probe: Probe, tables: Sequence[tuple[Array, Array]]) -> list[Any]:
    """What a pass would have found; samples are refused, so that magnitudes are counted by their digits."""
    if probe.kind == "pick":
        return [[Window(bounds, 0, 0, 0, None) for bounds in probe.windows] for _ in tables]
    if probe.kind == "tied":
        return [[int(counts[keys == bits].sum()) for bits in probe.bits] for keys, counts in tables]
    keys, counts = (numpy.concatenate(parts) for parts in zip(*tables, strict=True))
    if probe.kind == "high":
        return [_tallied(keys >> 16, counts, _HIGH)]
    return [
        _tallied(keys[inside] & 0xFFFF, counts[inside], _LOW)
        for inside in (keys >> 16 == digit for digit in probe.bits)
    ]


def _tallied(digits: Array, counts: Array, bins: int) -> Any:
    found = numpy.zeros(bins, numpy.uint64)
    numpy.add.at(found, digits, counts.astype(numpy.uint64))
    return (ctypes.c_uint64 * bins).from_buffer_copy(found.data)
