"""The value of an expression on a run of elements: the generic path that every method goes through.

Owns evaluation of nodes, summaries and their caches. Knows no files and no threads; `run.py` calls it from several.
Shared nodes are evaluated once for a block (`Frame`); where a tensor fits the budget whole, the frame also serves
the passes of its summaries, so that nothing is read twice. Where a stage needs a larger tensor whole, all that can be
cut is made by runs and put together, so that what lies between takes no memory of its size.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import torch
from cuvee.engine.blocks import access_of, cut, cut_of, is_joint, region
from cuvee.engine.changes import factors_of
from cuvee.engine.gather import Means, gather
from cuvee.engine.guard import Guard
from cuvee.engine.inputs import Inputs
from cuvee.engine.memo import Memo, summary_values
from cuvee.engine.options import RunOptions
from cuvee.engine.spaces import Kept
from cuvee.engine.streams import Frame, LazyInputs, NodeStream, Stopped, uniforms_of
from cuvee.errors import RunError, Where
from cuvee.methods.contract import Block, Coordinates, Decomposer, Stage, Summary, rows_of
from cuvee.methods.decompositions import Plain
from cuvee.methods.registry import stage
from cuvee.plan.changes import changes_of, dtype_of
from cuvee.plan.matrices import is_whole, keeps, outgrows
from cuvee.plan.nodes import (
    Agree,
    Apply,
    Convert,
    Coordinate,
    Difference,
    Enter,
    Gather,
    Leave,
    Node,
    Read,
    Sum,
    space_of,
    walk,
)
from cuvee.plan.stored import stored_below
from cuvee.sources.source import Source

if TYPE_CHECKING:
    from torch import Tensor


class Evaluator:
    """Evaluates nodes of one plan."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        groups: Mapping[str, list[Apply]],
        options: RunOptions,
        guard: Guard,
        stopped: Callable[[], bool] = lambda: False,
        decompose: Decomposer | None = None,
        memo: Memo | None = None,
    ) -> None:
        self.sources = sources
        self.groups = groups
        self.options = options
        self.guard = guard
        self.stopped = stopped
        self.decompose: Decomposer = decompose or Plain()
        self.memo = memo
        self._lock = threading.Lock()
        self._group_locks: dict[str, threading.RLock] = {}
        self._group_summaries: dict[str, Summary] = {}
        self._summaries: dict[int, tuple[Apply, Summary]] = {}
        self._coordinates = Kept(options.memory)
        self.stored = Inputs(sources, guard)
        self._means: Means = {}  # nodes live as long as their plan, so they are not mistaken

    def blocks(
        self, node: Node, first: int = 0, last: int | None = None
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Runs of elements in order with their values (flat); summaries are gathered first where needed.

        Of the elements [first, last), where the node can be cut; `first` is a multiple of its least cut.

        A tensor without elements has no runs. Raises Stopped between two blocks of any pass.
        """
        for part in walk(node):  # figures of other tensors before inputs of this one
            if isinstance(part, Apply) and part.group and _summarised(part):
                self._group_summary(part.group)
        ranges = cut(node, *self.share)
        whole = self.frame(node)
        if whole.lean and not is_joint(node):
            frames = self.runs(node, whole)
        else:
            spans = ranges.between(first, ranges.total if last is None else last)
            frames = (whole if ranges.whole else Frame(start, stop) for start, stop in spans)
        with self.keeping(node) if first == 0 and last is None else nullcontext():
            for frame in frames:
                if self.stopped():
                    raise Stopped
                yield frame.start, frame.stop, self.value(node, frame)
        self.stored.release(node)

    def keeping(self, *nodes: Node) -> AbstractContextManager[None]:
        """Within its block this thread reads each input of some nodes once, where they fit its share of the budget."""
        kept = keeps(nodes, self.share[0], self.sources)
        return self.stored.kept.of(stored_below(nodes, self.sources)) if kept else nullcontext()

    @property
    def share(self) -> tuple[int, int | None]:
        """A worker's bytes of the budget, and the block that is asked for, as `cut` takes them."""
        return self.options.memory // max(1, self.options.threads), self.options.block

    def frame(self, node: Node) -> Frame:
        """A frame for all elements of a node; lean where it must be whole and its expression outgrows the budget."""
        return Frame(0, _elements(node), lean=outgrows(node, self.share[0]))

    def forget(self, node: Apply) -> None:
        """Drop the summary of a node whose tensor is finished."""
        self._summaries.pop(id(node), None)

    def value(self, node: Node, frame: Frame) -> Tensor:
        """The node's elements [frame.start, frame.stop), flat, on the options' device."""
        found = frame.values.get(id(node))
        if found is None:
            joint = is_joint(node) if frame.lean else False
            by_runs = frame.lean and not joint and not isinstance(node, Read)
            found = self._by_runs(node, frame) if by_runs else self._compute(node, frame)
            if joint:
                _drop(node.children, frame)
            frame.values[id(node)] = found
        return found

    def assembled(self, node: Node) -> Tensor:
        """The node's whole value, flat, put together from runs where it can be cut, so that parts never are."""
        return self.value(node, Frame(0, _elements(node), lean=True))

    def _by_runs(self, node: Node, frame: Frame) -> Tensor:
        out: Tensor | None = None
        for part in self.runs(node, frame):
            if part is frame:
                return self._compute(node, frame)
            if self.stopped():
                raise Stopped
            value = self.value(node, part)
            out = value.new_empty(math.prod(self.shape(node, frame))) if out is None else out
            out[part.start : part.stop] = value
        assert out is not None
        return out

    def _make_together(self, nodes: Sequence[Node], frame: Frame) -> None:
        """Put whole values into a lean frame, run by run, so that what several of the nodes read is read once."""
        made = [n for n in nodes if id(n) not in frame.values and not isinstance(n, Read) and not is_joint(n)]
        regions = [region(node) for node in made]
        if not frame.lean or len(made) < 2 or any(joints for _, joints in regions):
            return
        ranges = cut_of([node for inner, _ in regions for node in inner], made[0].shape, *self.share)
        found: dict[int, Tensor] = {}
        for start, stop in () if ranges.whole else ranges:
            if self.stopped():
                raise Stopped
            part = Frame(start, stop)
            for node in made:
                value = self.value(node, part)
                found.setdefault(id(node), value.new_empty(_elements(node)))[start:stop] = value
        frame.values.update(found)

    def runs(self, node: Node, frame: Frame, *, own: bool = True) -> Iterator[Frame]:
        """Frames for the runs of a node, with the joints below it from the frame of the whole; or that frame itself.

        What stages above joints summarise is found first, with the whole; not the node's `own`, if that is the aim.
        """
        inner, joints = region(node)
        held = {id(joint): self.value(joint, frame) for joint in joints}
        if joints:
            for below in inner:
                if isinstance(below, Apply) and _summarised(below) and (own or below is not node):
                    self.summary(below, frame)
        ranges = cut_of(inner, self.shape(node, frame), *self.share)
        if ranges.whole:
            yield frame
            return
        for start, stop in ranges:
            yield Frame(start, stop, {key: value[start:stop] for key, value in held.items()})

    def _compute(self, node: Node, frame: Frame) -> Tensor:
        if isinstance(node, Read):
            return self._read(node, frame)
        if isinstance(node, Convert):
            return self.value(node.child, frame).to(node.dtype.torch)
        if isinstance(node, Difference):
            return self._difference(node, frame)
        if isinstance(node, Sum):
            return self._sum(node, frame)
        if isinstance(node, Apply):
            return self._apply(node, frame)
        if isinstance(node, Gather):
            return gather(node, frame.start, frame.stop, self._part, self._means)
        if isinstance(node, Coordinate):
            return self.entered(node.enter, frame).tensors[node.index].reshape(-1)
        if isinstance(node, Leave):
            return self._leave(node, frame)
        assert isinstance(node, Agree)  # a space has coordinates, no value
        return self._agree(node, frame)

    def _part(self, node: Node, start: int, stop: int) -> Tensor:
        """Any run of a child's elements; a child with a stage that sees whole tensors is evaluated whole."""
        if any(map(is_whole, walk(node))):
            return self.value(node, self.frame(node))[start:stop]
        return self.value(node, Frame(start, stop))

    def _read(self, node: Read, frame: Frame) -> Tensor:
        shared = None if frame.lean else frame.stored
        return self.stored.read(node, frame.start, frame.stop, shared).to(self.options.device)

    def _sum(self, node: Sum, frame: Frame) -> Tensor:
        total: Tensor | None = None
        if frame.stop - frame.start == _elements(node):  # a whole tensor, before the base takes memory
            self.value(node.terms[-1][1], frame)
        for coefficient, child in node.terms:
            term = self.value(child, frame)
            term = term if coefficient == 1 else term * coefficient
            total = term if total is None else total + term
        assert total is not None
        return total

    def _agree(self, node: Agree, frame: Frame) -> Tensor:
        first = self.value(node.inputs[0], frame)
        for label, other in zip(node.labels[1:], node.inputs[1:], strict=True):
            if not torch.equal(first, self.value(other, frame)):
                name = next((n.meta.name for n in (other,) if isinstance(n, Read)), None)
                raise RunError(
                    "CV-E020",
                    f"the integer tensor differs between `{node.labels[0]}` and `{label}`; such tensors are "
                    "copied, not merged, so they must agree",
                    where=Where(tensor=name, source=label),
                )
        return first

    def _apply(self, node: Apply, frame: Frame) -> Tensor:
        step = stage(node.stage)
        inputs = self.inputs(node, frame)
        extra: dict[str, Any] = {}
        wanted = _injected(step.function)
        if "summary" in wanted:
            extra["summary"] = self.summary(node, frame) if _summarised(node) else {}
        if "uniforms" in wanted:
            extra["uniforms"] = uniforms_of(node)
        if "decompose" in wanted:
            extra["decompose"] = self.decompose
        if "factors" in wanted:
            extra["factors"] = [factors_of(child, self.sources, inputs[0]) for child in node.inputs]
        if "block" in wanted:
            shape = self.shape(node, frame)
            extra["block"] = Block(inputs, frame.start, shape, self.number(node), node.place)
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in node.values}
        argument = inputs if step.role == "combine" else inputs[0]
        return step.function(argument, **values, **extra).reshape(-1)

    def inputs(self, node: Apply, frame: Frame) -> Sequence[Tensor]:
        """What the stage is handed there: all inputs, or for a lazy stage a sequence that computes each when asked."""
        if stage(node.stage).lazy:
            return LazyInputs(self, node, frame)
        self._make_together(node.inputs, frame)
        return [self.shaped(node, index, frame) for index in range(len(node.inputs))]

    def shaped(self, node: Apply, index: int, frame: Frame) -> Tensor:
        """One input of a stage application, in the type and the shape that the stage asks for."""
        tensor, access = upcast(self.value(node.inputs[index], frame), stage(node.stage)), access_of(node)
        if access == "element":
            return tensor
        shape = self.shape(node, frame)
        return tensor.reshape(shape) if access == "tensor" else tensor.reshape(-1, max(1, rows_of(shape)[1]))

    def shape(self, node: Node, frame: Frame | None = None) -> tuple[int, ...]:
        """The shape of a node's whole value; that of coordinates comes from the data."""
        space = space_of(node)
        if space is None:
            return node.shape
        frame = frame or self.frame(space)
        return self._coordinates.shape(space, lambda: self.entered(space, frame))

    def entered(self, node: Enter, frame: Frame) -> Coordinates:
        """The inputs of a space in its coordinates; the frame holds the whole tensor."""
        found = frame.entered.get(id(node))
        if found is None:
            found = self._coordinates.get(node, lambda: self._enter(node, frame))
            frame.entered[id(node)] = found
        return found

    def _enter(self, node: Enter, frame: Frame) -> Coordinates:
        space = stage(node.stage)
        self._make_together(node.inputs, frame)
        inputs = [upcast(self.value(child, frame).reshape(node.shape), space) for child in node.inputs]
        extra: dict[str, Any] = {}
        wanted = _injected(space.function)
        if "decompose" in wanted:
            extra["decompose"] = self.decompose
        if "factors" in wanted:
            extra["factors"] = [factors_of(child, self.sources, inputs[0]) for child in node.inputs]
        if "block" in wanted:
            extra["block"] = Block(inputs, 0, node.shape, 0, node.place)
        made: Coordinates = space.function(inputs, **dict(node.values), **extra)  # type: ignore[assignment]
        if frame.lean:
            _drop(node.children, frame)
        return made

    def _leave(self, node: Leave, frame: Frame) -> Tensor:
        space, coordinates = stage(node.enter.stage), self.entered(node.enter, frame)
        assert space.leave is not None
        merged = self.value(node.child, frame).reshape(coordinates.tensors[0].shape)
        return space.leave(merged, coordinates.frame).reshape(-1)

    def _difference(self, node: Difference, frame: Frame) -> Tensor:
        """An adapter's own change where the base is what it lies on: exact, and without reading the base."""
        changes, kind = changes_of(node, self.sources), dtype_of(node.base)
        if changes is None or kind is None:
            return self.value(node.expert, frame) - self.value(node.base, frame)
        total = torch.zeros(frame.stop - frame.start, dtype=kind.torch)
        for change in changes:
            total += change.slice(frame.start, frame.stop, kind.torch)
        return total.to(self.options.device)

    def number(self, node: Apply) -> int:
        """The position of a node's tensor in its group; 0 where it is alone."""
        if node.group is None:
            return 0
        return next(i for i, other in enumerate(self.groups[node.group]) if other is node)

    def summary(self, node: Apply, frame: Frame | None = None) -> Summary:
        """The stage's summary for this application: its own, or the one its group shares."""
        if node.group is not None:
            return self._group_summary(node.group)
        known = self._summaries.get(id(node))
        if known is None:
            known = (node, self._summarise([node], frame))
            self._summaries[id(node)] = known
        return known[1]

    def _group_summary(self, group: str) -> Summary:
        with self._lock:
            lock = self._group_locks.setdefault(group, threading.RLock())
        with lock:
            if group not in self._group_summaries:
                with self.stored.kept.aside():
                    self._group_summaries[group] = self._summarise(self.groups[group], None)
            return self._group_summaries[group]

    def _summarise(self, nodes: list[Apply], frame: Frame | None) -> Summary:
        if self.memo is None:
            return self._summarised(nodes, frame)
        names = summary_values(nodes[0].stage)
        found: Summary | None = self.memo.get("summary", nodes, names)
        if found is None:
            found = self._summarised(nodes, frame)
            self.memo.keep("summary", nodes, names, found)
        return found

    def _summarised(self, nodes: list[Apply], frame: Frame | None) -> Summary:
        step = stage(nodes[0].stage)
        assert step.summarise is not None
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in nodes[0].values}
        extra = {"decompose": self.decompose} if "decompose" in _injected(step.summarise) else {}
        return step.summarise(NodeStream(self, nodes, frame), **values, **extra)


def upcast(tensor: Tensor, step: Stage) -> Tensor:
    """At least float32, where the stage asks for it."""
    narrow = step.upcast and tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.float() if narrow else tensor


def _drop(nodes: Sequence[Node], frame: Frame) -> None:
    """Forget values that can be had again by runs; who needs one once more pays with time, not with memory."""
    for node in nodes:
        if not is_joint(node):
            frame.values.pop(id(node), None)


def _summarised(node: Apply) -> bool:
    return stage(node.stage).scope_for(dict(node.values)) is not None


def _elements(node: Node) -> int:
    """Of the tensor the node stands in, whatever its coordinates."""
    return math.prod(node.shape)


@cache
def _injected(function: Callable[..., Any]) -> frozenset[str]:
    names = inspect.signature(function).parameters
    return frozenset(n for n in ("summary", "uniforms", "decompose", "factors", "block") if n in names)
