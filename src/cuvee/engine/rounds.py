"""How many bytes the compiled kernels will read for a plan: the passes in which figures are found, and the last one.

Owns the order of those passes, as `engine.fused` has them, without running any. Thresholds are searched in a sample and
then in windows; where the data mislead a sample, magnitudes are counted instead, which is the most that is read.
Reads no weight, imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cuvee.engine.fused.figures import kept_counts, wanted
from cuvee.engine.fused.passes import lacking
from cuvee.engine.fused.recognise import copied
from cuvee.engine.fused.rows import passes_of, pruned
from cuvee.engine.fused.selection import gatherable, spacing
from cuvee.engine.kernels.operations import TILE
from cuvee.errors import SourceError
from cuvee.methods.combine.pcb import ranks
from cuvee.plan.nodes import Apply, Node, Read, walk
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.plan.reads import Reads
from cuvee.plan.stored import Bytes, Leaf, Sources, leaf_of
from cuvee.sources.source import unfetched

Known = dict[int, dict[str, None]]
Told = Callable[
    [str, Sequence[Apply]], Any
]  # a figure of an application, or those of a group; None: not known
Looked = dict[int, list[Node]]  # for each spacing of tiles, what is looked at below these nodes
Members = Sequence[tuple[OutputTensor, Apply]]


@dataclass(frozen=True, slots=True)
class Rounds:
    """The reads of one worker's share of memory; `most`: as the data may have it at worst."""

    sources: Sources
    share: int
    most: bool
    lain: dict[
        tuple[str, str], tuple[Hashable, int]
    ]  # what was found of inputs, which is asked again and again
    told: Told | None = None  # figures that are known without a pass

    def tensor(self, tensor: OutputTensor, known: Known) -> int:
        """Bytes that making a tensor reads, the figures of its groups known."""
        root = tensor.node
        inputs = self.below([root])
        once = sum(inputs.values())
        if copied(tensor):
            return once
        if pruned(root):
            return sum(sum(self.below(nodes).values()) for nodes in passes_of(root, self.share))
        return self.roots([root], known)

    def roots(self, roots: Sequence[Node], known: Known) -> int:
        """Bytes of the figures below some nodes of a tensor, and of the pass after them over all that they read."""
        once = sum(self.below(roots).values())
        own = {id(node): dict(known.get(id(node), {})) for root in roots for node in walk(root)}
        for node in (n for root in roots for n in walk(root) if isinstance(n, Apply) and n.group is None):
            self._tell([node], own)
        found = lacking(roots, own)
        if found and once <= self.share:
            return once
        total = once
        while found:
            total += self.searched([([node], figure) for node, figure in found])
            for node, figure in found:
                own[id(node)][figure] = None
            found = lacking(roots, own)
        return total

    def groups(self, groups: Mapping[str, Members]) -> tuple[int, Known]:
        """Bytes that the figures of several tensors take, and what is known then."""
        known: Known = {}
        for members in groups.values():
            self._tell([node for _, node in members], known)
        total, left = 0, {name: m for name, m in groups.items() if not _is_known(m[0][1], known)}
        while left:
            ready = []
            for members in left.values():
                nodes = [node for _, node in members]
                figure = next(f for f in wanted(nodes[0]) if f not in known.get(id(nodes[0]), {}))
                ready.append((nodes, figure))
            total += self.searched(ready)
            for nodes, figure in ready:
                for node in nodes:
                    known.setdefault(id(node), {})[figure] = None
            left = {name: m for name, m in left.items() if not _is_known(m[0][1], known)}
        return total, known

    def _tell(self, nodes: Sequence[Apply], known: Known) -> None:
        """Note the figures of an application, or of a group, that are known without a pass."""
        if self.told is None:
            return
        for figure in wanted(nodes[0]):
            if self.told(figure, nodes) is not None:
                for node in nodes:
                    known.setdefault(id(node), {})[figure] = None

    def searched(self, figures: Sequence[tuple[Sequence[Apply], str]]) -> int:
        """Bytes of the passes of several figures, which they make together."""
        steps = [self.steps(figure, nodes) for nodes, figure in figures]
        total = 0
        for turn in range(max(map(len, steps), default=0)):
            looked: dict[str, Looked] = {}
            for (nodes, _), own in zip(figures, steps, strict=True):
                for node in nodes if turn < len(own) else ():
                    looked.setdefault(node.tensor, {}).setdefault(own[turn], []).extend(node.inputs)
            for by_spacing in looked.values():
                for every, inputs in by_spacing.items():
                    share = sampled(math.prod(inputs[0].shape), every)
                    total += sum(round(nbytes * share) for nbytes in self.below(inputs).values())
        return total

    def steps(self, figure: str, nodes: Sequence[Apply]) -> list[int]:
        """The spacing of tiles in each pass of a figure."""
        total = sum(math.prod(node.shape) for node in nodes)
        values = dict(nodes[0].values)
        if figure in ("sizes", "scores"):
            clamp = values["clamp"]
            goals = (
                ranks(total, clamp, clamp) if figure == "sizes" else ranks(total, 1 - values["ratio"], 0.0)
            )
            return self.selection([goal / total for goal in goals], total, several=False)
        if figure != "cuts":
            return [1]
        if nodes[0].stage == "sce":
            return self.selection([1 - values["select_topk"]], total, several=False, zeros=True)
        strict = values.get("count") == "strict"  # which asks for the least of all, too
        inner = {count for count in kept_counts(nodes[0], total) if 0 < count < total + strict}
        several = len(nodes) > 1 and values.get("count") not in ("official", "strict")
        return self.selection([1 - count / total for count in inner], total, several=several)

    def selection(
        self, shares: Collection[float], total: int, *, several: bool, zeros: bool = False
    ) -> list[int]:
        """The passes for some thresholds; `several`: ties are shared by several tensors, and may have to be counted."""
        every = spacing(total)
        if not shares or every == 1:
            return [1] * bool(shares)
        fits = gatherable(shares, total)
        if fits and not self.most:
            return [every, 1]
        return [every, *[1] * (fits + (zeros and not fits) + 2 + (several and self.most))]

    def below(self, nodes: Iterable[Node]) -> Bytes:
        """What lies in files below some nodes; kernels know no changes of adapters, and files by their paths."""
        reads = (n for node in nodes for n in walk(node) if isinstance(n, Read))
        return dict(map(self._lies, reads))

    def _lies(self, read: Read) -> tuple[Hashable, int]:
        place = read.source, read.meta.name
        if place not in self.lain:
            leaf = leaf_of(read, self.sources)
            self.lain[place] = _fed(leaf), leaf.nbytes
        return self.lain[place]


def _is_known(node: Apply, known: Known) -> bool:
    return set(wanted(node)) <= known.get(id(node), {}).keys()


def _fed(leaf: Leaf) -> Hashable:
    """What tells a tensor apart when kernels are fed: a file that two links lead to is read for each of them."""
    if unfetched(leaf.source):  # asking would fetch the weights
        return leaf.key
    try:
        extent = leaf.source.extent(leaf.name)
    except SourceError:  # it was closed
        return leaf.key
    return leaf.key if extent is None else (extent.path, extent.offset, extent.nbytes)


def sampled(total: int, every: int) -> float:
    """The share of a tensor's elements that lie in one tile of `every`, from the first on."""
    starts = range(0, max(total, 1), TILE * every)
    full, last = len(starts) - 1, starts[-1]
    return (full * TILE + min(TILE, total - last)) / max(total, 1)


def compiled_reads(
    plan: Plan, tensors: Sequence[OutputTensor], share: int, told: Told | None = None
) -> tuple[Mapping[str, Reads], Reads]:
    """What each of the tensors reads that kernels make, and what the figures of their groups read before, by workers
    with `share` bytes."""
    sources = {key: opened.source for key, opened in plan.sources.items()}
    needed = {n.group for t in tensors for n in walk(t.node) if isinstance(n, Apply) and n.group}
    groups = {name: m for name, m in plan.groups().items() if name in needed and wanted(m[0][1])}
    least, most, known, before = figures_before(sources, groups, share, told)
    return {t.meta.name: Reads(least.tensor(t, known), most.tensor(t, known)) for t in tensors}, before


def figures_before(
    sources: Sources, groups: Mapping[str, Members], share: int, told: Told | None = None
) -> tuple[Rounds, Rounds, Known, Reads]:
    """The rounds as they normally are and at worst; what is known after those of the groups, and what these read."""
    lain: dict[tuple[str, str], tuple[Hashable, int]] = {}
    least, most = (Rounds(sources, share, worst, lain, told) for worst in (False, True))
    (before, known), (at_most, _) = least.groups(groups), most.groups(groups)
    return least, most, known, Reads(before, at_most)
