"""The value of an expression on a run of elements: the generic path that every method goes through.

Owns evaluation of nodes, summaries and their caches. Knows no files and no threads; `run.py` calls it from several.
Shared nodes are evaluated once for a block (`Frame`); where a tensor fits the budget whole, the frame also serves
the passes of its summaries, so that nothing is read twice.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, overload

from cuvee.core.lazy import torch
from cuvee.core.random import Stream as RandomStream
from cuvee.core.random import key_of
from cuvee.engine.blocks import access_of, cut
from cuvee.engine.changes import changes_of, dtype_of, factors_of
from cuvee.engine.gather import Means, gather
from cuvee.engine.guard import Guard
from cuvee.engine.memo import Memo, summary_values
from cuvee.engine.options import RunOptions
from cuvee.engine.spaces import Kept
from cuvee.errors import RunError, Where
from cuvee.methods.contract import (
    Access,
    Block,
    Coordinates,
    Decomposer,
    Stage,
    Summary,
    Uniforms,
    rows_of,
)
from cuvee.methods.decompositions import Plain
from cuvee.methods.registry import stage
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
from cuvee.sources.source import Source

if TYPE_CHECKING:
    from torch import Tensor


class Stopped(Exception):
    """Somebody asked for an end; what was begun is dropped."""


@dataclass(slots=True)
class Frame:
    """Values already known for one run of elements of one output tensor."""

    start: int
    stop: int
    values: dict[int, Tensor] = field(default_factory=dict)
    entered: dict[int, Coordinates] = field(default_factory=dict)


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
        self._means: Means = {}  # nodes live as long as their plan, so they are not mistaken

    def blocks(
        self, node: Node, first: int = 0, last: int | None = None
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Runs of elements in order with their values (flat); summaries are gathered first where needed.

        Of the elements [first, last), where the node can be cut; `first` is a multiple of its least cut.

        A tensor without elements has no runs. Raises Stopped between two blocks of any pass.
        """
        ranges = cut(node, self.options.memory // max(1, self.options.threads), self.options.block)
        frame = Frame(0, ranges.total)
        for start, stop in ranges.between(first, ranges.total if last is None else last):
            if self.stopped():
                raise Stopped
            if not ranges.whole:
                frame = Frame(start, stop)
            yield start, stop, self.value(node, frame)

    def forget(self, node: Apply) -> None:
        """Drop the summary of a node whose tensor is finished."""
        self._summaries.pop(id(node), None)

    def value(self, node: Node, frame: Frame) -> Tensor:
        """The node's elements [frame.start, frame.stop), flat, on the options' device."""
        found = frame.values.get(id(node))
        if found is None:
            found = self._compute(node, frame)
            frame.values[id(node)] = found
        return found

    def assembled(self, node: Node) -> Tensor:
        """The node's whole value, flat, put together from runs where it can be cut, so that parts never are."""
        ranges = cut(node, self.options.memory // max(1, self.options.threads), self.options.block)
        if ranges.whole:
            return self.value(node, Frame(0, ranges.total))
        out: Tensor | None = None
        for start, stop in ranges:
            if self.stopped():
                raise Stopped
            part = self.value(node, Frame(start, stop))
            out = part.new_empty(ranges.total) if out is None else out
            out[start:stop] = part
        assert out is not None
        return out

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
        if any(
            isinstance(n, Enter) or (isinstance(n, Apply) and access_of(n) == "tensor") for n in walk(node)
        ):
            return self.value(node, Frame(0, _elements(node)))[start:stop]
        return self.value(node, Frame(start, stop))

    def _read(self, node: Read, frame: Frame) -> Tensor:
        tensor = self.sources[node.source].read(node.meta.name, frame.start, frame.stop)
        self.guard.check_input(tensor, node, frame.start)
        return tensor.to(self.options.device)

    def _sum(self, node: Sum, frame: Frame) -> Tensor:
        total: Tensor | None = None
        if frame.stop - frame.start == _elements(node):
            self.value(
                node.terms[-1][1], frame
            )  # a stage that sees the whole tensor, before the base takes memory
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
            needed = step.scope_for(dict(node.values)) is not None
            extra["summary"] = self.summary(node, frame) if needed else {}
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
        step, access = stage(node.stage), access_of(node)
        if step.lazy and access == "tensor":
            return LazyInputs(self, node, frame)
        return [self._shaped(node, child, access, step, frame) for child in node.inputs]

    def _shaped(self, node: Apply, child: Node, access: Access, step: Stage, frame: Frame) -> Tensor:
        tensor = upcast(self.value(child, frame), step)
        if access == "element":
            return tensor
        shape = self.shape(node, frame)
        return tensor.reshape(shape) if access == "tensor" else tensor.reshape(-1, max(1, rows_of(shape)[1]))

    def shape(self, node: Node, frame: Frame | None = None) -> tuple[int, ...]:
        """The shape of a node's whole value; that of coordinates comes from the data."""
        space = space_of(node)
        if space is None:
            return node.shape
        frame = frame or Frame(0, _elements(space))
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


class LazyInputs(Sequence["Tensor"]):
    """The inputs of a stage application, each evaluated anew when it is asked for and kept by nobody."""

    def __init__(self, evaluator: Evaluator, node: Apply, frame: Frame) -> None:
        self.evaluator, self.node, self.frame = evaluator, node, frame

    def __len__(self) -> int:
        return len(self.node.inputs)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        step, access = stage(self.node.stage), access_of(self.node)
        child = self.node.inputs[index]
        fresh = Frame(self.frame.start, self.frame.stop, {id(child): self.evaluator.assembled(child)})
        return self.evaluator._shaped(self.node, child, access, step, fresh)


class NodeStream:
    """The inputs of a stage (of one tensor, or of all in its group) as a `methods.contract.Stream`."""

    def __init__(self, evaluator: Evaluator, nodes: list[Apply], frame: Frame | None) -> None:
        self.evaluator = evaluator
        self.nodes = nodes
        # A frame helps only where it holds the whole tensor; parts of one are of no use to a pass over all.
        size = _elements(nodes[0])
        self.frame = frame if frame is not None and (frame.start, frame.stop) == (0, size) else None

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(self.evaluator.shape(node)) for node in self.nodes)

    @property
    def inputs(self) -> int:
        return len(self.nodes[0].inputs)

    def blocks(self) -> Iterator[Block]:
        for number, node in enumerate(self.nodes):
            for frame in self._frames(node):
                if self.evaluator.stopped():  # a pass may cover the whole model
                    raise Stopped
                shape = self.evaluator.shape(node, frame)
                yield Block(self.evaluator.inputs(node, frame), frame.start, shape, number, node.place)

    def _frames(self, node: Apply) -> Iterator[Frame]:
        if self.frame is not None:
            yield self.frame
            return
        options = self.evaluator.options
        for start, stop in cut(node, options.memory // max(1, options.threads), options.block):
            if stop > start:
                yield Frame(start, stop)

    def uniforms(self, number: int) -> Uniforms:
        return uniforms_of(self.nodes[number])


def uniforms_of(node: Apply) -> Uniforms:
    """The random stream of a stage application: it depends on seed, stage, expert and output tensor alone."""
    return RandomStream(key_of(node.seed, node.stage, node.label, node.tensor))


def upcast(tensor: Tensor, step: Stage) -> Tensor:
    """At least float32, where the stage asks for it."""
    narrow = step.upcast and tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.float() if narrow else tensor


def _elements(node: Node) -> int:
    """Of the tensor the node stands in, whatever its coordinates."""
    return math.prod(node.shape)


@cache
def _injected(function: Callable[..., Any]) -> frozenset[str]:
    names = inspect.signature(function).parameters
    return frozenset(n for n in ("summary", "uniforms", "decompose", "factors", "block") if n in names)
