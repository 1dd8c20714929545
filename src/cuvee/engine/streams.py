"""What stages are handed of their inputs: a frame of known values, inputs one at a time, and streams for summaries.

Owns when a value is kept and when it is computed anew. Asks an evaluator for values, and knows no files and no threads.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

from cuvee.core.random import Stream as RandomStream
from cuvee.core.random import key_of
from cuvee.engine.blocks import access_of, cut
from cuvee.methods.contract import Block, Coordinates, Uniforms
from cuvee.plan.nodes import Apply

if TYPE_CHECKING:
    from torch import Tensor

    from cuvee.engine.evaluate import Evaluator


class Stopped(Exception):
    """Somebody asked for an end; what was begun is dropped."""


@dataclass(slots=True)
class Frame:
    """Values already known for one run of elements of one output tensor.

    `lean`: it holds a whole tensor too large to keep what lies between, so that what can be had by runs is.
    """

    start: int
    stop: int
    values: dict[int, Tensor] = field(default_factory=dict)
    entered: dict[int, Coordinates] = field(default_factory=dict)
    lean: bool = False
    stored: dict[Hashable, Tensor] = field(
        default_factory=dict
    )  # by `Leaf.key`; of a run, for all who read it


class LazyInputs(Sequence["Tensor"]):
    """The inputs of a stage application, each evaluated when it is asked for.

    Nobody keeps them, so that it is anew each time, unless the frame holds all of a small tensor.
    """

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
        lean = Frame(self.frame.start, self.frame.stop, lean=True)
        return self.evaluator.shaped(self.node, index, lean if self.frame.lean else self.frame)


class NodeStream:
    """The inputs of a stage (of one tensor, or of all in its group) as a `methods.contract.Stream`."""

    def __init__(self, evaluator: Evaluator, nodes: list[Apply], frame: Frame | None) -> None:
        self.evaluator = evaluator
        self.nodes = nodes
        # A frame helps only where it holds the whole tensor; parts of one are of no use to a pass over all.
        size = math.prod(nodes[0].shape)
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
            if node.group is not None:
                self.evaluator.stored.release(node)

    def _frames(self, node: Apply) -> Iterator[Frame]:
        whole = self.frame
        if whole is None:
            ranges = cut(node, *self.evaluator.share)
            if not ranges.whole or not ranges.total:
                yield from (Frame(start, stop) for start, stop in ranges)
                return
            whole = self.evaluator.frame(node)
        if whole.lean and access_of(node) != "tensor":
            yield from self.evaluator.runs(node, whole, own=False)
        else:
            yield whole

    def uniforms(self, number: int) -> Uniforms:
        return uniforms_of(self.nodes[number])


def uniforms_of(node: Apply) -> Uniforms:
    """The random stream of a stage application: it depends on seed, stage, expert and output tensor alone."""
    return RandomStream(key_of(node.seed, node.stage, node.label, node.tensor))
