"""What a plan costs, before anything is read: bytes in and out, passes, memory, time.

`cost` counts what the plan says; `predict` adds what depends on the machine and on how it is run. Must not know how
an engine works beyond its budget and its threads.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from cuvee.core.tensors import TensorMeta
from cuvee.methods.registry import stage
from cuvee.plan.matrices import COPIES, is_whole, memory_of, outgrows
from cuvee.plan.nodes import Apply, Node, Read, walk
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.plan.reads import Reads, exactly, generic_reads
from cuvee.plan.stored import laid_below, stored_below, untold
from cuvee.sources.source import stored_form

PROGRAM = 300_000_000  # bytes of the interpreter, torch and what a small merge takes besides its blocks
APART = 1 / 3  # of the shorter of waiting for the device and computing, that does not pass during the longer
_WORD = 4  # bytes of a float32
_HALVINGS = 50


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
    """How fast bytes pass through this machine when every input is read and every output written once, plainly (the
    floor), and whether that was measured here."""

    bytes_per_second: float = 300e6
    measured: bool = False


@dataclass(frozen=True, slots=True)
class Moving:
    """Seconds of one thread for each byte that is read and that is written, whoever does it."""

    read: float = 0.0
    written: float = 0.0


@dataclass(frozen=True, slots=True)
class Means:
    """How an engine goes about a plan, as far as it can tell: the bytes of the program itself, the bytes that a worker
    holds for a tensor (where they do not follow from its expression), seconds of arithmetic over all threads, the bytes
    that it reads for a tensor (where it goes about it in its own way; of a package, for the bits of one), and for all
    of those `before` the first; of a package, figures of the groups named in `grouped` take no more than these. What
    moving bytes takes of a thread, and how many bytes of files the machine remembers (None: all)."""

    program: int = PROGRAM
    held: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    reads: Mapping[str, Reads] = field(default_factory=dict)
    before: Reads = field(default_factory=Reads)
    grouped: frozenset[str] = frozenset()
    moving: Moving = field(default_factory=Moving)
    remembered: int | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a run will take: bytes of tensors (repeated passes count), peak resident memory, and seconds of wall clock
    (`taken`), for which the processor's are `arithmetic`, over all threads, moving bytes included.

    Exactly `bytes_read`, or up to `bytes_read_at_most` where the data decide (None: they do not). `moved` bytes pass
    the device (None: all that are read and written); the floor of these takes `copied` seconds of the processor.
    `ahead` of the bytes are read before the first is written.
    """

    bytes_read: int
    bytes_written: int
    peak_memory: int
    seconds: float
    arithmetic: float = 0.0
    bytes_read_at_most: int | None = None
    moved: int | None = None
    copied: float = 0.0
    ahead: int = 0

    @property
    def passing(self) -> int:
        """Bytes that pass the device."""
        return self.bytes_read + self.bytes_written if self.moved is None else self.moved


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


def decoded(plan: Plan) -> bool:
    """Whether an input is stored otherwise than its values are read, as that of a packed expert is."""
    inputs = inputs_of(plan.tensors).items()
    return any(
        stored_form(plan.sources[key].source, name).nbytes != meta.nbytes for (key, name), meta in inputs
    )


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
    largest tensor takes that is made whole and does not fit: they wait for each other. Passes over inputs that the
    machine remembers take the processor's time, not the device's.
    """
    means = means or Means()
    share = options.memory // max(1, options.threads)
    reads = _reads(plan, share, means)
    reads += exactly(sum(untold(opened.source) for opened in plan.sources.values()))
    read, once = reads.least, _read_once(plan)
    written = plan.layout.total_bytes
    loose = [tensor for tensor in plan.tensors if tensor.meta.name not in means.held]
    held = [*means.held.values(), *(_buffers(tensor) for tensor in loose)]
    in_hand = sum(heapq.nlargest(options.threads, held))
    large = (tensor.node for tensor in loose if outgrows(tensor.node, share))
    whole = max(map(memory_of, large), default=0)
    again = 0 if means.remembered is None or once <= means.remembered else means.before.least
    found = Prediction(
        bytes_read=read,
        bytes_written=written,
        peak_memory=means.program + min(options.memory, in_hand) + whole,
        seconds=0.0,
        arithmetic=means.seconds + _copying(means.moving, read, written) / max(1, options.threads),
        bytes_read_at_most=reads.most if reads.most > read else None,
        moved=once + again + written,
        copied=_copying(means.moving, once, written) / max(1, options.threads),
        ahead=means.before.least,
    )
    return replace(found, seconds=taken(found, found.passing / rates.bytes_per_second))


def _copying(moving: Moving, read: int, written: int) -> float:
    return moving.read * read + moving.written * written


def taken(run: Prediction, floor: float) -> float:
    """Seconds that a run takes beside a floor of so many.

    Both wait for the same device. The longer of waiting and computing is taken whole and of the shorter one a part:
    what is read before there is something to compute, and what is synced after it. Passes over many tensors are a run
    of their own, behind which the device still has to write.
    """
    rest = floor - APART * run.copied
    return _beside(run, rest if rest >= run.copied else max((floor - run.copied) / APART, 0.0))


def floor_of(run: Prediction, seconds: float) -> float:
    """The floor beside which a run takes so many seconds: the inverse of `taken`; the least where it took fewer."""
    least, most = 0.0, seconds
    for _ in range(_HALVINGS):
        device = (least + most) / 2
        least, most = (least, device) if _beside(run, device) > seconds else (device, most)
    return _together(least, run.copied)


def _beside(run: Prediction, device: float) -> float:
    """Seconds of a run that waits so many for the device, its passes before the first byte written apart."""
    waits = device * min(run.ahead, run.passing - run.bytes_written) / max(1, run.passing)
    computes = run.arithmetic * run.ahead / max(1, run.bytes_read)
    return _together(waits, computes) + _together(device - waits, run.arithmetic - computes)


def _together(one: float, other: float) -> float:
    return max(one, other) + APART * min(one, other)


def _reads(plan: Plan, share: int, means: Means) -> Reads:
    form = plan.recipe.output.package
    if form is not None:
        from cuvee.plan.package_reads import package_reads

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
