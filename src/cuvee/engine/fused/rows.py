"""Tensors with a stage that ranks the entries of each row (`magprune`): what stays is found first, then combined.

A pass of the machine gathers rows and thins them as they come. Where a norm is restored, it spans the tensor and
leaves a bit for each entry, as far as there is room for that; otherwise it spans some rows, which are combined then. A
tensor is left to the generic path where another stage needs figures of whole tensors as well.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from cuvee.core.dtypes import DType
from cuvee.engine.fused.builder import Builder, Unfusable, program_of
from cuvee.engine.fused.feed import Feed, Worker
from cuvee.engine.fused.figures import exact, factor_of, wanted
from cuvee.engine.fused.passes import run
from cuvee.engine.kernels.library import Kernels
from cuvee.engine.kernels.operations import TILE, Code, Ranked
from cuvee.engine.streams import uniforms_of
from cuvee.methods.conditions.magprune import half_width
from cuvee.methods.contract import rows_of
from cuvee.plan.nodes import Apply, Node, Read, walk

_ROOM = 8 << 20  # bytes of what a pass over some rows leaves, where a row leaves less
_BITS = 64 << 20  # bytes of what a pass over a whole tensor leaves
_MOST = 4 << 20  # elements of a row, or of the fewest rows that end with a tile

Write = Callable[[int, int, memoryview], None]


def pruned(root: Node) -> list[Apply]:
    """The stages of an expression that rank rows."""
    return [node for node in walk(root) if isinstance(node, Apply) and ranks(node)]


def ranks(node: Apply) -> bool:
    """Whether a stage ranks rows with its parameter values."""
    return node.stage == "magprune" and 0 < dict(node.values)["density"] < 1


def passes_of(root: Node, share: int) -> list[list[Node]]:
    """The nodes below which each pass over a tensor reads everything, by a worker with `share` bytes of memory."""
    lasting, again, late = _turns(root, share)
    thinned = [[node.inputs[0] for node in nodes] for nodes in (lasting + again, again + late)]
    return [*thinned, list(_left(root, {id(node) for node in late}))]


def room_of(root: Node, share: int) -> int:
    """Bytes of memory besides those for blocks of the inputs and of the output, of a worker with `share` bytes."""
    length, total = rows_of(root.shape)[1], math.prod(root.shape)
    lasting, again, late = _turns(root, share)
    lines = -(-length // TILE) * (total // max(length, 1))
    found = len(lasting) * total // 8 + 16 * lines * len(lasting + again) + 20 * length
    found += _step(again, late, length, total) * (len(again) + 32 * len(late)) // 8
    return found + (len(lasting + late) + 2 * len(again)) * 8 * (length + 2 * TILE)


def merge_rows(
    feed: Feed, worker: Worker, kernels: Kernels, root: Node, dtype: DType, write: Write, share: int
) -> None:
    """Compute a tensor with `share` bytes of memory, about, and hand each block to `write(first, count, bytes)`."""
    if reason := refusal(root, share):
        raise Unfusable(reason)
    length, total = rows_of(root.shape)[1], feed.total
    lasting, again, late = _turns(root, share)
    step = _step(again, late, length, total)
    worker.blocks.reserve(feed.room(dtype.size))
    scratch = (ctypes.c_uint32 * (5 * length + 16))()
    whole = [_Rows(node, length, scratch, bits=total) for node in lasting]
    whole += [_Rows(node, length, scratch) for node in again]
    factors = _factors(feed, worker, kernels, whole)
    known = {id(rows.node): rows.left(0, factors) for rows in whole[: len(lasting)]}
    some = [_Rows(node, length, scratch, bits=step) for node in again]
    some += [_Rows(node, length, scratch, values=step) for node in late]
    for first in range(0, total, step):
        part = first, min(first + step, total)
        _sweep(feed, worker, kernels, some, part)
        known |= {id(rows.node): rows.left(first, factors) for rows in some}
        program = program_of(root, dtype, known, same=feed.same)
        feed.parts = (part,)
        run(feed, worker, kernels, program, write, dtype.size)


def refusal(root: Node, share: int) -> str | None:
    """Why an expression that ranks rows is left to the generic path, by a worker with `share` bytes of memory."""
    if any(wanted(node) for node in walk(root) if isinstance(node, Apply)):
        return "figures besides ranks"
    length, total = rows_of(root.shape)[1], math.prod(root.shape)
    _, again, late = _turns(root, share)
    if length > _MOST or ((again or late) and min(math.lcm(length, TILE), total) > _MOST):
        return "rows are too long"
    return None


def _turns(root: Node, share: int) -> tuple[list[Apply], list[Apply], list[Apply]]:
    """The stages that leave bits of the whole tensor, those for which that is too much, and those without a norm."""
    normed = [node for node in pruned(root) if _restores(node)]
    count = 8 * min(_BITS, share) // max(math.prod(root.shape), 1)
    return normed[:count], normed[count:], [node for node in pruned(root) if not _restores(node)]


def _restores(node: Apply) -> bool:
    return bool(dict(node.values)["rescale"] == "l1")


def _left(node: Node, known: Collection[int]) -> Iterator[Read]:
    """What is read of an expression whose nodes are known in part."""
    if isinstance(node, Read):
        yield node
    for child in () if id(node) in known else node.children:
        yield from _left(child, known)


def _step(again: Sequence[Apply], late: Sequence[Apply], length: int, total: int) -> int:
    """Elements of whole rows that end with a tile, or all."""
    each = len(again) + 32 * len(late)  # bits of what is left
    grain = math.lcm(length, TILE)
    return min(max(8 * _ROOM // each // grain, 1) * grain, total) if each else total


class _Rows:
    """Memory for the rows of a stage, and for what is left of some of them: bits, values, or sums alone."""

    def __init__(self, node: Apply, length: int, scratch: Any, *, bits: int = 0, values: int = 0) -> None:
        given = dict(node.values)
        self.node = node
        most, divisors = _chances(
            length, given["density"], half_width(given["epsilon"], given["window_size"])
        )
        self._memory = {
            "most": most,
            "divisors": divisors if given["rescale"] == "inverse_q" else None,
            "bits": (ctypes.c_uint64 * (bits // 64 + 2))() if bits else None,
            "out": (ctypes.c_float * values)() if values else None,
            "values": (ctypes.c_float * (length + 2 * TILE))(),
            "words": (ctypes.c_uint32 * (length + 2 * TILE))(),
            "scratch": scratch,
        }
        self.head = Ranked(length=length, key=uniforms_of(node).key)  # type: ignore[attr-defined]
        for name, memory in self._memory.items():
            setattr(self.head, name, None if memory is None else ctypes.addressof(memory))

    def begin(self) -> None:
        """Be ready for other rows."""
        self.head.rows = self.head.held = 0
        if self.head.bits:
            ctypes.memset(self.head.bits, 0, ctypes.sizeof(self._memory["bits"]))

    def left(self, first: int, factors: Mapping[int, float]) -> dict[str, Any]:
        """What is known of the stage after rows that begin at element `first`: addresses are of element 0."""
        if self.head.out:
            return {"values": self.head.out - 4 * first}
        return {"bits": self.head.bits - first // 8, "factor": factors[id(self.node)]}


def _factors(feed: Feed, worker: Worker, kernels: Kernels, whole: Sequence[_Rows]) -> dict[int, float]:
    """What restores the norm of each stage, after a pass over the tensor."""
    sums = []
    for rows in whole:
        lines = -(-rows.head.length // TILE) * (feed.total // rows.head.length)
        sums.append([(ctypes.c_double * lines)() for _ in range(2)])
        rows.head.before, rows.head.after = map(ctypes.addressof, sums[-1])
    _sweep(feed, worker, kernels, whole, (0, feed.total))
    return {id(rows.node): factor_of(*map(exact, own)) for rows, own in zip(whole, sums, strict=True)}


def _sweep(
    feed: Feed, worker: Worker, kernels: Kernels, every: Sequence[_Rows], part: tuple[int, int]
) -> None:
    """Thin elements [first, stop) of the inputs of some stages."""
    if not every:
        return
    builder = Builder({}, same=feed.same)
    builder.expect([rows.node.inputs[0] for rows in every])
    for rows in every:
        rows.begin()
        value = builder.use(rows.node.inputs[0])
        builder.emit(Code.RANKED, None, value, data=ctypes.addressof(rows.head))
        builder.release(value)
    feed.parts = (part,)
    run(feed, worker, kernels, builder.program(), None)


@functools.lru_cache(maxsize=64)
def _chances(length: int, density: float, half: float) -> tuple[Any, Any]:
    """For each rank the largest random word that keeps an entry, and the float32 probability of that."""
    most, divisors = (ctypes.c_uint32 * length)(), (ctypes.c_float * length)()
    for rank in range(length):
        chance = (density - half) + 2 * half * (rank / (length - 1) if length > 1 else 0.5)
        below = round(chance * 2.0**32)
        if below < 1:
            raise Unfusable("an entry that is never kept")
        most[rank] = min(below, 1 << 32) - 1
        divisors[rank] = chance
    return most, divisors
