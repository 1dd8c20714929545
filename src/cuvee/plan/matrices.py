"""What is made whole or kept, and what that takes: memory for one tensor, and disk for decompositions.

Must not know any method: a stage of whole tensors that takes its inputs one at a time works on matrices, one that takes
them together holds them all, and one that names `decompose` has decompositions kept.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cuvee.core import settings
from cuvee.errors import Diagnostic
from cuvee.methods.registry import stage
from cuvee.plan.nodes import Apply, Coordinate, Enter, Gather, Leave, Node, walk
from cuvee.plan.plan import OutputTensor
from cuvee.plan.stored import stored_below
from cuvee.sources.source import Source

COPIES = 8  # float32 copies of a tensor that a method may take, one input among them
_FLOAT = 4  # bytes
_SMALL = 256  # directions below which nothing is kept


def is_whole(node: Node) -> bool:
    """Whether a node is made of whole tensors, so that no run of it can be had alone."""
    if isinstance(node, Apply):
        return stage(node.stage).access_for(dict(node.values), node.shape, node.place) == "tensor"
    return isinstance(node, Enter) or (isinstance(node, Gather) and node.axis != 0)


def is_joint(node: Node) -> bool:
    """Whether evaluation by runs stops at a node: it is made whole, or stands for what was."""
    if isinstance(node, Gather):
        return any(map(is_whole, walk(node)))
    return is_whole(node) or isinstance(node, Coordinate | Leave)


def region(node: Node) -> tuple[list[Node], list[Node]]:
    """The nodes that runs of `node` are made of, children first, and the joints that they stand on."""
    inner: list[Node] = []
    joints: list[Node] = []
    seen: set[int] = set()

    def visit(current: Node) -> None:
        seen.add(id(current))
        if current is not node and is_joint(current):
            joints.append(current)
            return
        for child in current.children:
            if id(child) not in seen:
                visit(child)
        inner.append(current)

    visit(node)
    return inner, joints


def memory_of(node: Node) -> int:
    """Bytes that making this tensor may take; 0 where it is made by runs."""
    copies = max((_copies(n) for n in walk(node) if is_whole(n)), default=0)
    return copies * _FLOAT * math.prod(node.shape)


def outgrows(node: Node, share: int) -> bool:
    """Whether making this tensor takes more than a worker's `share` of the budget.

    Up to it, every value of its expression is kept while it is made, so that nothing is read twice.
    """
    nodes = list(walk(node))
    held = _FLOAT * math.prod(node.shape) * (len(nodes) + COPIES)
    return held > share and any(map(is_whole, nodes))


def kept_of(node: Node) -> int:
    """Bytes of decompositions that merging a tensor may leave in the cache: of each input, and two of the result."""
    shape = node.shape
    if len(shape) != 2 or min(shape) < _SMALL:
        return 0
    each = _FLOAT * min(shape) * (sum(shape) + 1)
    return sum((len(n.inputs) + 2) * each for n in _whole(node) if _decomposes(n))


def kept_note(tensors: Iterable[OutputTensor]) -> Iterator[Diagnostic]:
    """A note where decompositions will be kept, with the disk they may take."""
    room = settings.get("CUVEE_DECOMPOSITIONS") or "off"
    total = sum(kept_of(tensor.node) for tensor in tensors)
    if total and room.lower() not in ("off", "0"):
        message = (
            f"decompositions of matrices are kept in the cache for later runs: at most {total / 1e9:.1f} GB, "
            f"within `CUVEE_DECOMPOSITIONS={room}`"
        )
        yield Diagnostic("CV-P160", message, severity="note")


def matrices_lacking(tensors: Iterable[OutputTensor]) -> Iterator[Diagnostic]:
    """A warning for each stage of matrices to which none of the tensors that it was given is one."""
    found: dict[str, list[Apply]] = {}
    for node in (n for tensor in tensors for n in walk(tensor.node) if isinstance(n, Apply)):
        if dict(node.values).get("spectral") is not False and stage(node.stage).acts is not None:
            found.setdefault(node.stage, []).append(node)
    for name, nodes in found.items():
        if not any(map(_acts, nodes)):
            yield _lacking(name, nodes)


def _acts(node: Apply) -> bool:
    acts = stage(node.stage).acts
    return acts is None or acts(node.shape, node.place, dict(node.values))


def _lacking(name: str, nodes: Sequence[Apply]) -> Diagnostic:
    """What a stage looked for, what becomes of the tensors, and which values would find some."""
    values = dict(nodes[0].values)
    layers = values.get("tensors") == "layers"
    sought = "tensor of two axes of a layer" if layers else "tensor of two axes"
    rules = {"base": "stays at the base", "mean": "is averaged", "sum": "is added"}
    rule = values.get("elsewhere")
    told = (
        f"{rules[rule]} (`elsewhere: {rule}`)" if rule in rules else "is merged by the rule for other tensors"
    )
    message = f"`{name}` takes each {sought} as a matrix and finds none: all it is given {told}"
    hints = ["`tensors: matrices` takes every tensor of two axes"] * layers
    hints += ["`flatten: true` takes convolutions"] * any(len(node.shape) > 2 for node in nodes)
    return Diagnostic("CV-P161", message, None, "; ".join(hints) or None, "warning")


def keeps(nodes: Sequence[Node], share: int, sources: Mapping[str, Source]) -> bool:
    """Whether the stored inputs of a tensor, or of several that are made one after the other, are kept meanwhile, so
    that repeated passes read nothing again.

    They may take half of a worker's `share` of the budget; blocks take the rest.
    """
    repeated = len(nodes) > 1 or any(map(repeats, nodes))
    return repeated and sum(stored_below(nodes, sources).values()) <= share // 2


def repeats(node: Node) -> bool:
    """Whether inputs of a tensor are asked for more than once while it is made: for figures, or one at a time."""
    return any(is_whole(n) or (isinstance(n, Apply) and n.group is None and _figures(n)) for n in walk(node))


def _figures(node: Apply) -> bool:
    return stage(node.stage).scope_for(dict(node.values)) is not None


def _copies(node: Node) -> int:
    one_at_a_time = isinstance(node, Apply) and stage(node.stage).lazy
    return COPIES if one_at_a_time else COPIES - 1 + len(node.children)


def _whole(node: Node) -> list[Apply]:
    return [n for n in walk(node) if isinstance(n, Apply) and is_whole(n)]


def _decomposes(node: Apply) -> bool:
    return "decompose" in inspect.signature(stage(node.stage).function).parameters
