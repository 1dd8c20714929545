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
from cuvee.methods.registry import stage
from cuvee.plan.matrices import COPIES, is_whole, memory_of, outgrows
from cuvee.plan.nodes import Apply, Node, Read, walk
from cuvee.plan.package_reads import package_reads
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.plan.reads import Reads, exactly, generic_reads
from cuvee.plan.stored import laid_below, stored_below, untold

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
    holds for a tensor (where they do not follow from its expression), seconds of arithmetic over all threads, the bytes
    that it reads for a tensor (where it goes about it in its own way; of a package, for the bits of one), and for all
    of those `before` the first; of a package, figures of the groups named in `grouped` take no more than these."""

    program: int = PROGRAM
    held: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    reads: Mapping[str, Reads] = field(default_factory=dict)
    before: Reads = field(default_factory=Reads)
    grouped: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a run will take: bytes of tensors (repeated passes count), peak resident memory, and seconds of wall clock,
    of which `arithmetic` is what does not pass with reading and writing.

    Exactly `bytes_read`, or up to `bytes_read_at_most` where the data decide (None: they do not).
    """

    bytes_read: int
    bytes_written: int
    peak_memory: int
    seconds: float
    arithmetic: float = 0.0
    bytes_read_at_most: int | None = None


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
        reads=_read_once(plan),
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
    a time reads them whenever it asks, unless they fit into a worker's share of the budget (`plan.reads`). Memory is
    the program's own, the blocks of the budget (or of all tensors in hand, where those are smaller), and what the
    largest tensor takes that is made whole and does not fit: they wait for each other.
    """
    means = means or Means()
    share = options.memory // max(1, options.threads)
    reads = _reads(plan, share, means)
    reads += exactly(sum(untold(opened.source) for opened in plan.sources.values()))
    read = reads.least
    written = plan.layout.total_bytes
    loose = [tensor for tensor in plan.tensors if tensor.meta.name not in means.held]
    held = [*means.held.values(), *(_buffers(tensor) for tensor in loose)]
    in_hand = sum(heapq.nlargest(options.threads, held))
    large = (tensor.node for tensor in loose if outgrows(tensor.node, share))
    whole = max(map(memory_of, large), default=0)
    peak = means.program + min(options.memory, in_hand) + whole
    seconds = (read + written) / rates.bytes_per_second + means.seconds
    at_most = reads.most if reads.most > read else None
    return Prediction(read, written, peak, seconds, means.seconds, at_most)


def _reads(plan: Plan, share: int, means: Means) -> Reads:
    form = plan.recipe.output.package
    if form is not None:
        others = package_reads(plan, share, set(means.reads), means.grouped, include_base=form.include_base)
        return sum(means.reads.values(), means.before) + others
    rest = [tensor.node for tensor in plan.tensors if tensor.meta.name not in means.reads]
    return sum(means.reads.values(), means.before) + generic_reads(plan, rest, share)


def _read_once(plan: Plan) -> int:
    """Bytes of all inputs, each once, and of what adapters add to them."""
    sources = {key: opened.source for key, opened in plan.sources.items()}
    roots = [tensor.node for tensor in plan.tensors]
    found = {**stored_below(roots, sources), **laid_below(roots, sources)}
    return sum(found.values()) + sum(map(untold, sources.values()))


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
