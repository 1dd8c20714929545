"""The expression of one output tensor: a small tree of frozen nodes over tensors of sources.

    Read        a tensor of a source
    Convert     the same values in another float type (rounded once)
    Difference  expert − base: a task vector
    Sum         Σ cᵢ·xᵢ: base + task vector, arithmetic of checkpoints
    Apply       one stage of a method on its inputs
    Gather      rows chosen along the vocabulary axis
    Agree       inputs that must be identical (integer buffers); gives the first
    Enter       all inputs of a tensor, taken into a space; has no value of its own
    Coordinate  one input in the coordinates of a space
    Leave       what was made of coordinates, back in the tensor's own

Every node knows its shape; within a space that is the tensor's, since the data decide how many coordinates there are.
Trees share sub-trees; an engine evaluates each shared node once for a block. This module knows no engine and no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from cuvee.bundle.vocabulary.rows import RowTable
from cuvee.core.dtypes import DType
from cuvee.core.tensors import TensorMeta
from cuvee.methods.contract import NOWHERE, Place
from cuvee.methods.registry import stage

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Read:
    """A tensor of an opened source; `source` is its key in the plan."""

    source: str
    meta: TensorMeta

    @property
    def shape(self) -> Shape:
        return self.meta.shape

    @property
    def children(self) -> tuple[Node, ...]:
        return ()


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Convert:
    """The child's values as `dtype`."""

    child: Node
    dtype: DType

    @property
    def shape(self) -> Shape:
        return self.child.shape

    @property
    def children(self) -> tuple[Node, ...]:
        return (self.child,)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Difference:
    """`expert − base` in the compute dtype of both."""

    expert: Node
    base: Node

    @property
    def shape(self) -> Shape:
        return self.base.shape

    @property
    def children(self) -> tuple[Node, ...]:
        return (self.expert, self.base)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Sum:
    """Σ coefficient × child, in the given order; a coefficient of 1 multiplies nothing."""

    terms: tuple[tuple[float, Node], ...]

    @property
    def shape(self) -> Shape:
        return self.terms[0][1].shape

    @property
    def children(self) -> tuple[Node, ...]:
        return tuple(node for _, node in self.terms)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Apply:
    """A stage on its inputs. `values` are its keyword arguments (a tuple for one value per input).

    `label` tells random streams apart: the expert's name for condition stages, else empty. `group` names the set of
    applications whose summary spans several output tensors (a model-wide threshold); None for the tensor alone.
    `place` says what `tensor` is.
    """

    stage: str
    inputs: tuple[Node, ...]
    values: tuple[tuple[str, Any], ...]
    tensor: str
    label: str = ""
    group: str | None = None
    seed: int = 0
    place: Place = NOWHERE

    @property
    def shape(self) -> Shape:
        return self.inputs[0].shape

    @property
    def children(self) -> tuple[Node, ...]:
        return self.inputs


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Gather:
    """Rows along `axis` by a table: most are rows of `own`, the rest come from `others` or are filled."""

    own: Node | None
    others: tuple[tuple[str, Node], ...]
    table: RowTable
    axis: int
    shape: Shape

    @property
    def children(self) -> tuple[Node, ...]:
        rest = tuple(node for _, node in self.others)
        return rest if self.own is None else (self.own, *rest)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Agree:
    """Inputs that must be equal, element by element; the value of the first."""

    inputs: tuple[Node, ...]
    labels: tuple[str, ...]

    @property
    def shape(self) -> Shape:
        return self.inputs[0].shape

    @property
    def children(self) -> tuple[Node, ...]:
        return self.inputs


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Enter:
    """All inputs of one tensor on their way into the space `stage`; its `Coordinate`s are the values."""

    stage: str
    inputs: tuple[Node, ...]
    values: tuple[tuple[str, Any], ...]
    place: Place = NOWHERE

    @property
    def shape(self) -> Shape:
        return self.inputs[0].shape

    @property
    def children(self) -> tuple[Node, ...]:
        return self.inputs


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Coordinate:
    """Input number `index` in the coordinates of the space."""

    enter: Enter
    index: int

    @property
    def shape(self) -> Shape:
        return self.enter.shape

    @property
    def children(self) -> tuple[Node, ...]:
        return (self.enter,)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Leave:
    """The tensor that `child`, in the coordinates of the space, stands for."""

    enter: Enter
    child: Node

    @property
    def shape(self) -> Shape:
        return self.enter.shape

    @property
    def children(self) -> tuple[Node, ...]:
        return (self.child,)


Node: TypeAlias = Read | Convert | Difference | Sum | Apply | Gather | Agree | Enter | Coordinate | Leave


def space_of(node: Node) -> Enter | None:
    """The space whose coordinates the node's value is in; None in the tensor's own."""
    while isinstance(node, Apply):
        node = node.inputs[0]
    return node.enter if isinstance(node, Coordinate) else None


_below: WeakKeyDictionary[Node, tuple[Node, ...]] = WeakKeyDictionary()  # nodes do not know their roots


def walk(node: Node) -> Iterator[Node]:
    """Every node of the tree, children first, shared ones once."""
    below = _below.get(node)
    if below is None:  # plans are walked many times
        below = _below[node] = tuple(_nodes(node)[:-1])
    return chain(below, (node,))


def _nodes(node: Node) -> list[Node]:
    seen: set[int] = set()
    found: list[Node] = []

    def visit(current: Node) -> None:
        seen.add(id(current))
        for child in current.children:
            if id(child) not in seen:
                visit(child)
        found.append(current)

    visit(node)  # a list, not a generator at each level
    return found


def describe(node: Node) -> Any:
    """The node as plain JSON data: what digests and `--json` see."""
    if isinstance(node, Read):
        return {"read": node.source, "tensor": node.meta.name}
    if isinstance(node, Convert):
        return {"convert": describe(node.child), "dtype": node.dtype.name}
    if isinstance(node, Difference):
        return {"difference": [describe(node.expert), describe(node.base)]}
    if isinstance(node, Sum):
        return {"sum": [[c, describe(n)] for c, n in node.terms]}
    if isinstance(node, Gather):
        return {
            "gather": describe(node.own) if node.own is not None else None,
            "others": {name: describe(n) for name, n in node.others},
            "rows": node.table.as_dict(),
            "axis": node.axis,
        }
    if isinstance(node, Agree):
        return {"agree": [describe(n) for n in node.inputs]}
    if isinstance(node, Enter):
        return {
            "enter": node.stage,
            "inputs": [describe(n) for n in node.inputs],
            "values": dict(node.values),
        }
    if isinstance(node, Coordinate):
        return {"coordinate": node.index}
    if isinstance(node, Leave):
        return {"leave": describe(node.enter), "merged": describe(node.child)}
    return {
        "stage": node.stage,
        "inputs": [describe(n) for n in node.inputs],
        "values": {k: list(v) if isinstance(v, tuple) else v for k, v in node.values},
        **({"label": node.label} if node.label else {}),
        **({"group": node.group} if node.group else {}),
        **({"seed": node.seed, "tensor": node.tensor} if stage(node.stage).random else {}),
    }
