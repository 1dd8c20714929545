"""How many bytes of files making tensors takes, passes for figures and whole tensors asked for one at a time included.

Owns the count for expressions as `engine.evaluate` goes about them: which inputs are kept, what shares a pass, what is
asked for again. What the data decide is counted twice, at its least and at its most. Must not know an engine's blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from cuvee.methods.contract import Stage
from cuvee.methods.registry import stage
from cuvee.plan.matrices import is_joint, is_whole, keeps, outgrows, region
from cuvee.plan.nodes import Apply, Coordinate, Enter, Gather, Leave, Node, walk
from cuvee.plan.plan import Plan
from cuvee.plan.stored import Sources, laid_below, needed, stored_below


@dataclass(frozen=True, slots=True)
class Reads:
    """Bytes that are read: at least (and normally), and at most. They differ where the data decide."""

    least: int = 0
    most: int = 0

    def __add__(self, other: Reads) -> Reads:
        return Reads(self.least + other.least, self.most + other.most)

    def __mul__(self, times: int) -> Reads:
        return Reads(self.least * times, self.most * times)


def exactly(nbytes: int) -> Reads:
    """As many bytes whatever the data."""
    return Reads(nbytes, nbytes)


def generic_reads(plan: Plan, roots: Iterable[Node], share: int) -> Reads:
    """What evaluating these output tensors reads, by workers with `share` bytes; plan.groups included as they need."""
    sources = {key: opened.source for key, opened in plan.sources.items()}
    roots = list(roots)
    count = Counter(sources, share)
    needed = {n.group for root in roots for n in walk(root) if isinstance(n, Apply) and n.group}
    total = Reads()
    for name, members in plan.groups().items():
        if name in needed:
            total += count.group([node for _, node in members])
    for root in roots:
        total += count.tensor(root)
    return total


@dataclass(slots=True)
class Counter:
    """Counts nodes; what was found for one of them is not found again."""

    sources: Sources
    share: int
    figured: set[int] = field(default_factory=set)  # stages whose figures are known
    entered: set[int] = field(default_factory=set)  # spaces whose coordinates are known

    def tensor(self, root: Node) -> Reads:
        """An output tensor, from its first block to its last."""
        laid = exactly(self._laid([root]))
        kept = keeps([root], self.share, self.sources)
        spaces = {id(node) for node in walk(root) if isinstance(node, Enter)}
        if spaces and spaces <= self.entered:  # coordinates are there, if there was room for them
            known = self._once([root], lambda node: isinstance(node, Coordinate))
            return Reads(known.least, (self._once([root]) + laid).most)
        if not kept and outgrows(root, self.share):
            return laid + self._whole(root, set())
        total = laid + self._once([root])
        return total if kept or any(map(is_whole, walk(root))) else total + self.figures(needed(root))

    def group(self, nodes: Sequence[Apply]) -> Reads:
        """The passes over all tensors of a group, and what stages below it must know."""
        step, values = stage(nodes[0].stage), dict(nodes[0].values)
        least, most = step.passes_for(values), step.passes_at_most(values)
        total = Reads()
        for node in nodes:
            total += self.figures(n for n in needed(node) if n is not node)
            spaces = {id(n) for n in walk(node) if isinstance(n, Enter)}
            once = self._walked(node, step) + exactly(self._laid(node.inputs))
            known = bool(spaces) and spaces <= self.entered
            self.entered |= spaces
            times = 0 if known else 1 if spaces else least
            total += Reads(times * once.least, most * once.most)
        return total

    def _walked(self, node: Apply, step: Stage) -> Reads:
        """A tensor of a group in one walk; where inputs have walks of their own, in one of each."""
        lean = outgrows(node, self.share)
        if not any(map(is_whole, walk(node))):
            return self._once(node.inputs)
        if not (step.lazy and is_whole(node)):
            return self._together(node.inputs, set()) if lean else self._once(node.inputs)
        values, count = dict(node.values), len(node.inputs)
        often = step.asks_before_for(values, node.shape, node.place, count)
        if lean:
            return self._asked(node.inputs, often)
        if step.apart:
            each = (self._once([child]) * min(1, n) for child, n in zip(node.inputs, often, strict=True))
            return sum(each, Reads())
        return self._once([child for child, times in zip(node.inputs, often, strict=True) if times])

    def together(self, nodes: Sequence[Node]) -> Reads:
        """Several nodes made in one pass."""
        return self._once(nodes) + exactly(self._laid(nodes))

    # -- whole tensors that outgrow the budget ---------------------------------------------------------------------

    def _whole(self, node: Node, seen: set[int]) -> Reads:
        """A whole value, put together from runs; `seen`: what the frame of the whole holds."""
        if id(node) in seen:
            return Reads()
        if is_joint(node):
            seen.add(id(node))
            return self._joint(node, seen)
        inner, joints = region(node)
        total = sum((self._whole(joint, seen) for joint in joints), Reads())
        return total + self.figures(inner) + self._once([node], is_joint)

    def _joint(self, node: Node, seen: set[int]) -> Reads:
        if isinstance(node, Coordinate):
            return self._enter(node.enter, seen)
        if isinstance(node, Leave):
            return self._enter(node.enter, seen) + self._whole(node.child, seen)
        if isinstance(node, Gather):
            children = (
                self._whole(child, set()) if any(map(is_whole, walk(child))) else self._once([child])
                for child in node.children
            )
            return sum(children, Reads())
        if isinstance(node, Apply) and stage(node.stage).lazy:
            step, values, count = stage(node.stage), dict(node.values), len(node.inputs)
            total = self._asked(node.inputs, step.asks_for(values, node.shape, node.place, count))
            if node.group is None and step.scope_for(values) is not None:
                once = self._asked(node.inputs, step.asks_before_for(values, node.shape, node.place, count))
                least, most = step.passes_for(values), step.passes_at_most(values)
                total += Reads(least * once.least, most * once.most)
            return total
        return self._together(node.children, seen)

    def _enter(self, enter: Enter, seen: set[int]) -> Reads:
        if id(enter) in seen or id(enter) in self.entered:
            return Reads()
        seen.add(id(enter))
        return self._together(enter.inputs, seen)

    def _asked(self, inputs: Sequence[Node], often: Sequence[int]) -> Reads:
        """Inputs that are evaluated anew each time."""
        each = (self._whole(child, set()) * n for child, n in zip(inputs, often, strict=True) if n)
        return sum(each, Reads())

    def _together(self, nodes: Sequence[Node], seen: set[int]) -> Reads:
        """Values that are held at once: those without joints share a pass."""
        plain = [n for n in nodes if not is_joint(n) and not region(n)[1]]
        others = [n for n in nodes if is_joint(n) or region(n)[1]]
        total = self._once(plain) + self.figures(p for n in plain for p in needed(n))
        return total + sum((self._whole(node, seen) for node in others), Reads())

    # -- passes ----------------------------------------------------------------------------------------------------

    def figures(self, nodes: Iterable[Node]) -> Reads:
        """What stages read for figures of one tensor, each for itself and once."""
        total = Reads()
        for node in nodes:
            if (
                not isinstance(node, Apply)
                or node.group is not None
                or id(node) in self.figured
                or is_whole(node)
            ):
                continue
            self.figured.add(id(node))
            step, values = stage(node.stage), dict(node.values)
            once = self._once(node.inputs, is_joint)
            total += Reads(step.passes_for(values) * once.least, step.passes_at_most(values) * once.most)
        return total

    def _once(self, nodes: Collection[Node], stop: Callable[[Node], bool] | None = None) -> Reads:
        return exactly(sum(stored_below(nodes, self.sources, stop or _nowhere).values()))

    def _laid(self, nodes: Iterable[Node]) -> int:
        return sum(laid_below(nodes, self.sources).values())


def _nowhere(node: Node) -> bool:
    return False
