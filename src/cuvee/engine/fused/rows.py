"""Tensors with a stage that ranks the entries of each row (`magprune`): whole rows at a time, in three steps.

One program computes the stage's inputs into memory, `cuvee_prune` ranks and thins them there, and a second program
goes on with the result as with an input. Rescaling to the l1 norm takes a pass more. A tensor is left to the generic
path where another stage needs figures of whole tensors as well.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cuvee.core.dtypes import DType
from cuvee.core.tensors import Held
from cuvee.engine.fused.builder import Builder, Program, Unfusable, program_of
from cuvee.engine.fused.feed import Feed, Key, Worker, padded
from cuvee.engine.fused.figures import exact, factor_of, wanted
from cuvee.engine.kernels.library import Kernels
from cuvee.engine.kernels.operations import TILE, Code
from cuvee.engine.streams import uniforms_of
from cuvee.methods.conditions.magprune import half_width
from cuvee.methods.contract import rows_of
from cuvee.plan.nodes import Apply, Node, Read, walk

_STEP = 128 * TILE  # elements worked on at once, where rows are not longer
_MOST = 4 << 20  # of a row, or of the fewest rows that end with a tile

Write = Callable[[int, int, memoryview], None]


def pruned(root: Node) -> list[Apply]:
    """The stages of an expression that rank rows."""
    return [node for node in walk(root) if isinstance(node, Apply) and ranks(node)]


def ranks(node: Apply) -> bool:
    """Whether a stage ranks rows with its parameter values."""
    return node.stage == "magprune" and 0 < dict(node.values)["density"] < 1


def merge_rows(feed: Feed, worker: Worker, kernels: Kernels, root: Node, dtype: DType, write: Write) -> None:
    """Compute a tensor and hand each finished block to `write(first, count, bytes)`."""
    nodes = pruned(root)
    if any(wanted(node) for node in walk(root) if isinstance(node, Apply)):
        raise Unfusable("figures besides ranks")
    length = rows_of(root.shape)[1]
    step = _step(length, feed.total)
    factors = [dict(node.values)["rescale"] == "l1" for node in nodes]
    if any(factors) and not all(factors):
        raise Unfusable("some are rescaled to a norm, some are not")
    known: dict[int, dict[str, Any]] = {}
    places = _Places(nodes, step, length)
    inputs = _inputs(nodes, places, feed.same)
    worker.blocks.reserve(_room(feed, step, dtype.size))
    mark = worker.blocks.used
    marks: list[Any] = []
    if any(factors):
        norms = [_Norms(feed.total, length) for _ in nodes]
        marks = [(ctypes.c_uint8 * (feed.total // 8 + 1))() for _ in nodes]
        for first, count, _ in _blocks(feed, worker, kernels, step, inputs, ()):
            _prune(kernels, places, nodes, first, count, norms)
            for address, bits in zip(places.addresses, marks, strict=True):
                kernels.mark(address, count, ctypes.addressof(bits) + first // 8)
        known = {id(node): {"factor": norm.factor()} for node, norm in zip(nodes, norms, strict=True)}
        worker.blocks.used = mark
    staged = {id(node): place for place, node in enumerate(nodes)}
    program = program_of(root, dtype, known, staged, feed.same)
    out, view = worker.blocks.take(step * dtype.size)
    for first, count, addresses in _blocks(feed, worker, kernels, step, inputs, program.reads):
        for address, bits in zip(places.addresses, marks, strict=False):
            kernels.keep(address, count, ctypes.addressof(bits) + first // 8)
        if not marks:
            _prune(kernels, places, nodes, first, count, None)
        every = (ctypes.c_void_p * (len(program.reads) + len(nodes)))(*addresses, *places.addresses)
        area = worker.registers_at(program.registers)
        if kernels.run(program.ops, program.count, every, out, first, count, area):
            raise Unfusable("a value is not finite")
        write(first, count, view[: count * dtype.size])


def _step(length: int, total: int) -> int:
    """Elements of whole rows that end with a tile, or all."""
    grain = math.lcm(max(length, 1), TILE)
    if grain >= total:
        grain = total
    if grain > _MOST:
        raise Unfusable("rows are too long")
    return min(max(_STEP // max(grain, 1), 1) * grain, total)


def _room(feed: Feed, step: int, size: int) -> int:
    """Bytes of arena: every input may be read for either program."""
    sizes = [
        lies.nbytes // max(feed.total, 1) for lies in feed.extents.values() if not isinstance(lies, Held)
    ]
    return 2 * sum(padded(step * each) for each in sizes) + padded(step * size)


def _inputs(nodes: Sequence[Apply], places: _Places, same: Mapping[Key, Key]) -> Program:
    """The program that computes what is ranked."""
    roots = [node.inputs[0] for node in nodes]
    builder = Builder({}, same=same)
    builder.expect(roots)
    for root, address in zip(roots, places.addresses, strict=True):
        value = builder.use(root)
        builder.emit(Code.SPILL, None, value, data=address)
        builder.release(value)
    return builder.program()


def _blocks(
    feed: Feed, worker: Worker, kernels: Kernels, step: int, inputs: Program, reads: Sequence[Read]
) -> Iterator[tuple[int, int, list[int]]]:
    """Blocks with the stage's inputs computed; and the addresses of `reads`."""
    own = len(inputs.reads)
    for first, count, addresses in feed.blocks([*inputs.reads, *reads], worker.blocks, step):
        area = worker.registers_at(inputs.registers)
        if kernels.run(inputs.ops, inputs.count, addresses, 0, first, count, area):
            raise Unfusable("a value is not finite")
        yield first, count, list(addresses)[own:]


class _Places:
    """Memory for what is ranked, an array for each stage; and for the ranking of a row."""

    def __init__(self, nodes: Sequence[Apply], step: int, length: int) -> None:
        self._data = [(ctypes.c_float * step)() for _ in nodes]
        self._scratch = (ctypes.c_uint64 * (2 * length + (step + length) // 2 + 1))()
        self.addresses = [ctypes.addressof(data) for data in self._data]
        self.scratch = ctypes.addressof(self._scratch)
        self.length = max(length, 1)


class _Norms:
    """Sums of magnitudes before and after, line by line."""

    def __init__(self, total: int, length: int) -> None:
        self.lines = max(-(-length // TILE), 1)  # of a row
        self._sums = [(ctypes.c_double * (total // max(length, 1) * self.lines))() for _ in range(2)]

    def addresses(self, row: int) -> tuple[int, int]:
        """Where the sums of a row go."""
        before, after = (ctypes.addressof(sums) + 8 * self.lines * row for sums in self._sums)
        return before, after

    def factor(self) -> float:
        return factor_of(*(exact(sums) for sums in self._sums))


def _prune(
    kernels: Kernels,
    places: _Places,
    nodes: Sequence[Apply],
    first: int,
    count: int,
    norms: list[_Norms] | None,
) -> None:
    """Thin what was computed of each stage, in place."""
    for number, node in enumerate(nodes):
        values = dict(node.values)
        half = half_width(values["epsilon"], values["window_size"])
        limits, divisors = _chances(places.length, values["density"], half)
        sums = norms[number].addresses(first // places.length) if norms else (None, None)
        kernels.prune(
            places.addresses[number],
            count // places.length,
            places.length,
            first,
            uniforms_of(node).key,  # type: ignore[attr-defined]
            limits,
            divisors if values["rescale"] == "inverse_q" else None,
            sums,
            places.scratch,
        )


@functools.lru_cache(maxsize=64)
def _chances(length: int, density: float, half: float) -> tuple[Any, Any]:
    """For each rank the random word below which an entry is kept, and the float32 probability of that."""
    limits, divisors = (ctypes.c_uint64 * length)(), (ctypes.c_float * length)()
    for rank in range(length):
        chance = (density - half) + 2 * half * (rank / (length - 1) if length > 1 else 0.5)
        limits[rank] = round(chance * 2.0**32)
        divisors[rank] = chance
    return limits, divisors
