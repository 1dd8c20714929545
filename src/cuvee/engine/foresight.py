"""What this engine will take for a plan, as far as that can be told before it runs: whose arithmetic, memory, seconds.

Owns what is known of the compiled kernels' speed and memory; `plan.cost` adds it up. Reads no weight, imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cuvee.engine.adapter_reads import adapter_reads
from cuvee.engine.fused.feed import padded
from cuvee.engine.fused.figures import wanted
from cuvee.engine.fused.fuse import Fused, fuse
from cuvee.engine.fused.recognise import extents_of
from cuvee.engine.options import RunOptions
from cuvee.engine.package_rounds import marked_reads
from cuvee.engine.rounds import compiled_reads
from cuvee.errors import SourceError
from cuvee.plan.cost import PROGRAM, Means, inputs_of
from cuvee.plan.nodes import Apply, Node, Read, walk
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.plan.reads import Reads
from cuvee.plan.stored import Sources
from cuvee.sources.source import unfetched

COMPILED = 36_000_000  # bytes of the interpreter and cuvee without torch
_TORCH = 215_000_000  # more, where coefficients are computed with it
_NUMPY = 13_000_000  # the same
_BY_TORCH = {"slerp_fold", "emr_expert", "layer_top", "one_bit", "slack", "tall_masks"}
_BY_NUMPY = {"slerp", "nuslerp", "multislerp", "karcher", "model_stock"}
_STEP = 128 * 1024  # elements of a block of each input
_RUNS = 8  # blocks of the output
_KEY = 4  # bytes of a magnitude that is gathered
_SMALL, _SHARE, _SHARE_LARGE = 1 << 24, 0.08, 0.012  # of a tensor's magnitudes, gathered for a threshold

# Nanoseconds of one thread for each element and input, by stage (`benchmarks/kernels.py`); the generic path takes
# about twelve times that.
_NANOSECONDS: Mapping[str, float] = {
    "passthrough": 0.0,
    "linear": 0.2,
    "weighted_sum": 0.2,
    "elect": 0.6,
    "trim": 2.4,
    "band": 2.4,
    "drop": 0.9,
    "magprune": 8.5,
    "sce": 3.5,
    "magmax": 0.4,
    "consensus": 0.5,
    "ram": 0.5,
    "ram_plus": 1.2,
    "slerp": 1.0,
    "nuslerp": 1.2,
    "multislerp": 1.6,
    "karcher": 1.6,
    "model_stock": 1.6,
    "nearswap": 0.4,
    "pcb": 6.0,
    "scale": 0.1,
    "negate": 0.1,
    **dict.fromkeys(("analogy", "forget", "lines", "keep_near", "layer_top"), 0.3),
    **dict.fromkeys(("window_mean", "exponential_mean", "newest_mean", "recency_mean", "metric_mean"), 0.2),
}
_OTHER = 1.5  # of a stage that is not listed
_NORM = 1.4  # more, where a stage restores the l1 norm
_OUTPUT = 0.5  # hashing and handing over an element of the output
_GENERIC = 12.0


def foreseen(plan: Plan, options: RunOptions) -> Means:
    """How the engine will go about the plan with these options."""
    fused = fuse(plan, options)
    late = {key for key, opened in plan.sources.items() if unfetched(opened.source)}
    taken = [t for t in plan.tensors if fused is not None and _takes(fused, t, late)]
    compiled = {tensor.meta.name for tensor in taken}
    share, grouped = options.memory // max(1, options.threads), frozenset[str]()
    adapter = plan.recipe.output.adapter
    if plan.recipe.output.package is not None:
        reads, before, grouped = _marked(plan, fused, share, late)
    elif adapter is None:
        reads, before = compiled_reads(plan, taken, share)
    else:
        reads, before = adapter_reads(plan, adapter, options)
    held = {t.meta.name: _held(t, options) for t in plan.tensors if t.meta.name in compiled}
    stages = {n.stage for t in plan.tensors for n in walk(t.node) if isinstance(n, Apply)}
    program = COMPILED + (_TORCH if stages & _BY_TORCH else _NUMPY if stages & _BY_NUMPY else 0)
    seconds = sum(_seconds(t, compiled=t.meta.name in compiled) for t in plan.tensors)
    return Means(
        program=program + _gathered(plan) if len(compiled) == len(plan.tensors) else PROGRAM,
        held=held,
        seconds=seconds / max(1, options.threads),
        reads=reads,
        before=before,
        grouped=grouped,
    )


def _marked(
    plan: Plan, fused: Fused | None, share: int, late: Collection[str]
) -> tuple[Mapping[str, Reads], Reads, frozenset[str]]:
    """What kernels take of a package."""
    if fused is None:
        return {}, Reads(), frozenset()
    sources = {key: opened.source for key, opened in plan.sources.items()}
    return marked_reads(plan, fused, share, lambda node: _lies_plainly(node, sources, late))


def _takes(fused: Fused, tensor: OutputTensor, late: Collection[str]) -> bool:
    """Whether the kernels will take a tensor; of `late` sources the weights are fetched when the run begins."""
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


def _held(tensor: OutputTensor, options: RunOptions) -> int:
    """Bytes of a worker's memory for a tensor that is compiled."""
    inputs = [meta.nbytes for meta in inputs_of([tensor]).values()]
    share = options.memory // max(1, options.threads)
    size, count = tensor.meta.dtype.size, tensor.meta.numel
    out = padded(min(_RUNS * _STEP, count) * size)
    several = any(isinstance(n, Apply) and n.group is None and wanted(n) for n in walk(tensor.node))
    if several and sum(inputs) <= share:
        return out + sum(map(padded, inputs))
    return out + sum(padded(nbytes * min(_STEP, count) // max(count, 1)) for nbytes in inputs)


def _gathered(plan: Plan) -> int:
    """Bytes of the magnitudes that are gathered at once for thresholds."""
    most = 0
    alone: dict[str, int] = {}
    for tensor in plan.tensors:
        count = tensor.meta.numel
        for node in walk(tensor.node):
            if isinstance(node, Apply) and {"cuts", "sizes"} & set(wanted(node)):
                if node.group is None:
                    share = _SHARE if count <= _SMALL else _SHARE_LARGE
                    most = max(most, int(share * count) * _KEY)
                else:
                    copies = 2.5 * len(node.inputs) if node.stage == "pcb" else 1  # joined, then searched
                    kept = int(copies * _SHARE_LARGE * count) * _KEY
                    alone[node.group] = alone.get(node.group, 0) + kept
    return most + sum(alone.values())


def _seconds(tensor: OutputTensor, *, compiled: bool) -> float:
    """Seconds of one thread for a tensor's arithmetic."""
    nanoseconds = 0.0
    for node in walk(tensor.node):
        if isinstance(node, Apply):
            each = _NANOSECONDS.get(node.stage, _OTHER)
            each += _NORM if dict(node.values).get("rescale") == "l1" else 0.0
            nanoseconds += each * len(node.inputs)
    factor = 1.0 if compiled else _GENERIC
    return (factor * nanoseconds + _OUTPUT) * tensor.meta.numel * 1e-9
