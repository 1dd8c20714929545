"""What a plan costs, before anything is read: bytes in and out, passes, memory, time.

`cost` counts what the plan says; `predict` adds what depends on the machine and on how it is run. Must not know how
an engine works beyond its budget and its threads.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cuvee.core.tensors import TensorMeta
from cuvee.errors import SourceError
from cuvee.methods.registry import stage
from cuvee.plan.changes import changes_of
from cuvee.plan.matrices import COPIES, is_whole, keeps, memory_of, outgrows
from cuvee.plan.nodes import Apply, Node, Read, walk
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.sources.source import Source, stored_form

PROGRAM = 300_000_000  # bytes of the interpreter, torch and what a small merge takes besides its blocks
_WORD = 4  # bytes of a float32


class Budget(Protocol):
    """What of a run's options decides its memory."""

    @property
    def memory(self) -> int:
        """Bytes of block buffers, over all threads."""
        ...

    @property
    def threads(self) -> int:
        """Workers, each of which has one tensor in hand."""
        ...


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast bytes pass through this machine, read and written together, and whether that was measured here."""

    bytes_per_second: float = 300e6
    measured: bool = False


@dataclass(frozen=True, slots=True)
class Means:
    """How an engine goes about a plan, as far as it can tell: the bytes of the program itself, the bytes that a worker
    holds for a tensor (where they do not follow from its expression), and seconds of arithmetic, over all threads."""

    program: int = PROGRAM
    held: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    again: Mapping[str, int] = field(
        default_factory=dict
    )  # bytes read before the pass that writes, where it knows


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a run will take: bytes (repeated passes count), peak resident memory, and seconds of wall clock, of which
    `arithmetic` is what does not pass with reading and writing."""

    bytes_read: int
    bytes_written: int
    peak_memory: int
    seconds: float
    arithmetic: float = 0.0


@dataclass(frozen=True, slots=True)
class Outlook:
    """A prediction with what it rests on, and the room there is for the output (None: not known)."""

    prediction: Prediction
    rates: Rates
    free: int | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes read once, bytes written, the largest tensor that must be held whole, and counts of what is done."""

    reads: int
    writes: int
    largest_whole: int
    merged: int
    copied: int
    converted: int
    summarised: int


def inputs_of(tensors: Iterable[OutputTensor]) -> dict[tuple[str, str], TensorMeta]:
    """Every input tensor that is read, once, by (source key, name)."""
    found: dict[tuple[str, str], TensorMeta] = {}
    for tensor in tensors:
        for node in walk(tensor.node):
            if isinstance(node, Read):
                found[node.source, node.meta.name] = node.meta
    return found


def cost(plan: Plan) -> Cost:
    """The plan's cost; one walk over its expressions."""
    actions = [t.action for t in plan.tensors]
    return Cost(
        reads=_read_by(plan, [tensor.node for tensor in plan.tensors]) + _overlaid(plan),
        writes=plan.layout.total_bytes,
        largest_whole=max((memory_of(tensor.node) for tensor in plan.tensors), default=0),
        merged=actions.count("merged"),
        copied=actions.count("copied"),
        converted=actions.count("converted"),
        summarised=sum(_passes(tensor.node) > 0 for tensor in plan.tensors),
    )


def predict(plan: Plan, options: Budget, rates: Rates, means: Means | None = None) -> Prediction:
    """What running the plan will take with these options on a machine of these rates.

    A stage that needs figures first reads its inputs once more for each pass, and one that takes whole tensors one at
    a time reads them whenever it asks, unless they fit into a worker's share of the budget and the figures are of that
    tensor alone: then they are kept. Memory is the program's own, the blocks of the budget (or of all tensors in hand,
    where those are smaller), and what the largest tensor takes that is made whole and does not fit: they wait for
    each other.
    """
    means = means or Means()
    share = options.memory // max(1, options.threads)
    merged = [tensor for tensor in plan.tensors if tensor.action == "merged"]
    again = sum(_again(plan, tensor, share, means) for tensor in merged)
    read = _read_by(plan, [tensor.node for tensor in plan.tensors]) + _overlaid(plan) + again
    written = plan.layout.total_bytes
    loose = [tensor for tensor in plan.tensors if tensor.meta.name not in means.held]
    held = [*means.held.values(), *(_buffers(tensor) for tensor in loose)]
    in_hand = sum(heapq.nlargest(options.threads, held))
    large = (tensor.node for tensor in loose if outgrows(tensor.node, share))
    whole = max(map(memory_of, large), default=0)
    peak = means.program + min(options.memory, in_hand) + whole
    seconds = (read + written) / rates.bytes_per_second + means.seconds
    return Prediction(read, written, peak, seconds, means.seconds)


def _again(plan: Plan, tensor: OutputTensor, share: int, means: Means) -> int:
    """Bytes of a tensor's inputs that are read besides once, by a worker with `share` bytes."""
    name = tensor.meta.name
    if name in means.again:
        return means.again[name]
    if name not in means.held:
        return _repeated(plan, tensor.node, share)
    nbytes = _read_by(plan, [tensor.node])  # compiled: all experts' figures are gathered in one pass
    stages = [node for node in _distinct_stages(tensor.node) if _summarised(node)]
    if nbytes <= share:
        stages = [node for node in stages if node.group is not None]
    return len(stages) * nbytes


def _repeated(plan: Plan, node: Node, share: int) -> int:
    """Bytes that stages read for their figures, each for itself, and when they take whole tensors apart."""
    kept, total = keeps(node, share, {k: o.source for k, o in plan.sources.items()}), 0
    for current in walk(node):
        if isinstance(current, Apply) and (current.group is not None or not kept):
            total += _passes_of(current) * _read_by(plan, [current])
    if kept or not outgrows(node, share):
        return total
    total += _read_by(plan, [node], above=True) - _read_by(plan, [node])
    for current in filter(is_whole, walk(node)):
        asked = stage(current.stage).asks_for(dict(current.values)) if isinstance(current, Apply) else 1
        each = (
            _read_by(plan, [child], above=True) for child in current.children
        )  # a base beside each expert
        total += asked * sum(each)
    return total


def _passes_of(node: Apply) -> int:
    return stage(node.stage).passes_for(dict(node.values))


def _read_by(plan: Plan, nodes: Iterable[Node], *, above: bool = False) -> int:
    """Bytes of the inputs below some nodes, each once; what adapters know by themselves is not read of a base.

    `above`: of those only that are not below a node that is made whole.
    """
    sources = {key: opened.source for key, opened in plan.sources.items()}
    reads: set[tuple[str, str]] = set()
    seen: set[int] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Read):
            reads.add((node.source, node.meta.name))
        elif not _known(node, sources) and not (above and is_whole(node)):
            left += node.children
    return sum(stored_form(sources[source], name).nbytes for source, name in reads)


def _known(node: Node, sources: Mapping[str, Source]) -> bool:
    """Whether adapters know a difference by themselves; not where sources were closed and cannot be asked."""
    try:
        return changes_of(node, sources) is not None
    except SourceError:
        return False


def _overlaid(plan: Plan) -> int:
    """Bytes of the adapters that lie over sources."""
    return sum(facts.nbytes for one in plan.sources.values() for facts in getattr(one.source, "overlays", ()))


def _passes(node: Node) -> int:
    """How often inputs are read before the pass that writes."""
    return sum(_summarised(n) for n in _distinct_stages(node))


def _distinct_stages(node: Node) -> list[Apply]:
    """Applications of stages, one for each stage: all experts' are gathered in one pass."""
    return list({n.stage: n for n in walk(node) if isinstance(n, Apply)}.values())


def _summarised(node: Apply) -> bool:
    return stage(node.stage).scope_for(dict(node.values)) is not None


def _buffers(tensor: OutputTensor) -> int:
    nodes = list(walk(tensor.node))
    made_whole = COPIES if any(map(is_whole, nodes)) else 0
    return _WORD * tensor.meta.numel * (len(nodes) + made_whole)
