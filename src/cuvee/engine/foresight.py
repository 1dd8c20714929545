"""What this engine will take for a plan, as far as that can be told before it runs: whose arithmetic, memory, seconds.

Owns what is known of the compiled kernels' memory (of their speed: `engine.work`); `plan.cost` adds it up. Reads no
weight, imports no torch.
"""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from cuvee.engine.blocks import cut
from cuvee.engine.fused.drops import draws
from cuvee.engine.fused.feed import padded
from cuvee.engine.fused.figures import wanted
from cuvee.engine.fused.fuse import Fused, fuse
from cuvee.engine.fused.recognise import extents_of
from cuvee.engine.fused.rows import pruned, refusal, room_of
from cuvee.engine.kernels.operations import TILE
from cuvee.engine.options import RunOptions
from cuvee.engine.rounds import Told, compiled_reads
from cuvee.engine.work import moving, planning, seconds_of
from cuvee.errors import SourceError
from cuvee.plan.cost import PROGRAM, Means, decoded, inputs_of
from cuvee.plan.matrices import is_whole, repeats
from cuvee.plan.nodes import Apply, Node, Read, walk
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.plan.reads import Reads
from cuvee.plan.stored import Sources
from cuvee.sources.source import unfetched

if TYPE_CHECKING:
    from cuvee.engine.tables import Tables

COMPILED = 38_000_000  # bytes of the interpreter and cuvee without torch
_TORCH = 215_000_000  # more, where coefficients are computed with it
_NUMPY = 13_000_000  # the same
_DECODING, _DECODED = 20_000_000, 10_000_000  # more, where packed experts are decoded; of it by each worker
_BY_TORCH = {"slerp_fold", "emr_expert", "layer_top", "one_bit", "slack", "tall_masks"}
_BY_NUMPY = {"multislerp", "karcher"}
_STEP = 128 * 1024  # elements of a block of each input
_RUNS = 8  # blocks of the output
_FLOAT, _WORD = 4, 8  # bytes of a magnitude that is gathered or ranked, and of sums and ranks
_TEMPORARIES = 4  # of a run that torch makes
_SMALL, _SHARE, _SHARE_LARGE = 1 << 24, 0.08, 0.012  # of a tensor's magnitudes, gathered for a threshold
_HELD = 8 << 20  # magnitudes that are gathered at most; more are counted
_JOINED, _JOINED_EACH = 0.11, 0.065  # bytes of joined inputs for each element, and with each input


def foreseen(plan: Plan, options: RunOptions, tables: Tables | None = None) -> Means:
    """How the engine will go about the plan with these options, thresholds known that follow from `tables`."""
    told = None if tables is None else tables.figure
    fused = fuse(plan, options)
    late = {key for key, opened in plan.sources.items() if unfetched(opened.source)}
    share, grouped = options.memory // max(1, options.threads), frozenset[str]()
    taken = [t for t in plan.tensors if fused is not None and _takes(fused, t, late, share)]
    compiled = {tensor.meta.name for tensor in taken}
    adapter = plan.recipe.output.adapter
    if plan.recipe.output.package is not None:
        reads, before, grouped = _marked(plan, fused, share, late)
    elif adapter is None:
        reads, before = compiled_reads(plan, taken, share, told)
    else:
        from cuvee.engine.adapter_reads import adapter_reads

        reads, before = adapter_reads(plan, adapter, options)
    held = {t.meta.name: _held(t, options, told) for t in taken}
    others = (t for t in plan.tensors if t.meta.name not in compiled)
    held |= {t.meta.name: _run_by_run(t, options, share) for t in others if not _kept(t.node)}
    stages = {n.stage for t in plan.tensors for n in walk(t.node) if isinstance(n, Apply)}
    program = COMPILED + (_TORCH if stages & _BY_TORCH else _NUMPY if tables or stages & _BY_NUMPY else 0)
    program += 0 if tables is None else tables.nbytes
    program += _DECODING + options.threads * _DECODED if decoded(plan) else 0
    seconds = sum(seconds_of(t, compiled=t.meta.name in compiled) for t in plan.tensors)
    return Means(
        program=program + _gathered(plan, options.threads, told)
        if len(compiled) == len(plan.tensors)
        else PROGRAM,
        held=held,
        seconds=seconds / max(1, options.threads) + planning(plan.tensors),
        reads=reads,
        before=before,
        grouped=grouped,
        moving=moving(),
        remembered=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2,
    )


def _marked(
    plan: Plan, fused: Fused | None, share: int, late: Collection[str]
) -> tuple[Mapping[str, Reads], Reads, frozenset[str]]:
    """What kernels take of a package."""
    if fused is None:
        return {}, Reads(), frozenset()
    from cuvee.engine.package_rounds import marked_reads

    sources = {key: opened.source for key, opened in plan.sources.items()}
    return marked_reads(plan, fused, share, lambda node: _lies_plainly(node, sources, late))


def _takes(fused: Fused, tensor: OutputTensor, late: Collection[str], share: int) -> bool:
    """Whether the kernels will take a tensor; of `late` sources the weights are fetched when the run begins."""
    if pruned(tensor.node) and refusal(tensor.node, share) is not None:
        return False
    if any(isinstance(node, Read) and node.source in late for node in walk(tensor.node)):
        return fused.recognises(tensor)
    try:
        return fused.takes(tensor)
    except SourceError:  # what lies in layers over a source that was closed is not compiled either
        return False


def _lies_plainly(node: Node, sources: Sources, late: Collection[str]) -> bool:
    if any(isinstance(part, Read) and part.source in late for part in walk(node)):
        return True
    try:
        return extents_of(node, sources) is not None
    except SourceError:  # as in `_takes`
        return False


def _held(tensor: OutputTensor, options: RunOptions, told: Told | None) -> int:
    """Bytes of a worker's memory for a tensor that is compiled."""
    inputs = [meta.nbytes for meta in inputs_of([tensor]).values()]
    share = options.memory // max(1, options.threads)
    size, count = tensor.meta.dtype.size, tensor.meta.numel
    out = padded(min(_RUNS * _STEP, count) * size)
    blocks = sum(padded(nbytes * min(_STEP, count) // max(count, 1)) for nbytes in inputs)
    if pruned(tensor.node):
        return out + blocks + room_of(tensor.node, share)
    applied = [n for n in walk(tensor.node) if isinstance(n, Apply) and n.group is None]
    asked = [
        (n, figure) for n in applied for figure in wanted(n) if told is None or told(figure, [n]) is None
    ]
    if asked and sum(inputs) <= share:
        blocks = sum(map(padded, inputs))
    return out + blocks + draws(asked, count, share - out - blocks).room


def _kept(node: Node) -> bool:
    """Whether the generic path keeps more of a tensor than a run: all of it, or its inputs for several passes."""
    return repeats(node) or any(map(is_whole, walk(node)))


def _run_by_run(tensor: OutputTensor, options: RunOptions, share: int) -> int:
    """Bytes of a worker's memory for a tensor that torch makes run by run: a value of each node, and temporaries."""
    runs = cut(tensor.node, share, options.block)
    return _FLOAT * (len(list(walk(tensor.node))) + _TEMPORARIES) * min(runs.step, runs.total)


def _gathered(plan: Plan, threads: int, told: Told | None) -> int:
    """Bytes of what is gathered at once for figures that are not told: by each worker for the tensor in hand, and for
    all tensors of a group.
    """
    own: list[int] = []
    joint = 0
    for tensor in plan.tensors:
        applied = [node for node in walk(tensor.node) if isinstance(node, Apply)]
        looked = [node for node in applied if told is None or told("cuts", [node]) is None]
        own.append(sum(map(_sums, (node for node in applied if node.group is None))))
        own[-1] += sum(map(_magnitudes, (node for node in looked if node.group is None)))
        joint += sum(map(_magnitudes, (node for node in looked if node.group is not None)))
    return sum(heapq.nlargest(threads, own)) + joint


def _magnitudes(node: Apply) -> int:
    """Bytes of the magnitudes among which a stage's thresholds are searched."""
    count = math.prod(node.shape)
    if not {"cuts", "sizes"} & set(wanted(node)):
        return 0
    if node.stage == "pcb":  # all inputs' magnitudes joined, then searched
        return int((_JOINED + _JOINED_EACH * len(node.inputs)) * count)
    share = _SHARE if count <= _SMALL and node.group is None else _SHARE_LARGE
    return min(int(share * count), _HELD) * _FLOAT


def _sums(node: Apply) -> int:
    """Bytes of the sums of each line of elements that a stage asks for."""
    inputs = len(node.inputs)
    pairs = inputs * (inputs + 1) // 2
    each = {"gram": pairs, "coefficients": pairs, "factor": 2, "weights": inputs}
    return _WORD * sum(each.get(figure, 0) for figure in wanted(node)) * (math.prod(node.shape) // TILE)
