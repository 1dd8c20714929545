"""What a probe emits for one tensor, and how its results are read once that ran. Knows no passes and no files."""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from cuvee.core.dtypes import FLOAT32
from cuvee.engine.fused import drops, sifted, varying
from cuvee.engine.fused.builder import Builder, Unfusable, Value
from cuvee.engine.fused.crowd import changed
from cuvee.engine.fused.products import products
from cuvee.engine.fused.selection import Probe, Window
from cuvee.engine.fused.stages import ballot, thinned
from cuvee.engine.fused.votes import moved, selected, variance
from cuvee.engine.kernels.operations import TILE, Code, Picked
from cuvee.plan.nodes import Apply, Node

TABLE = 65536  # 32-bit counts of `high` (in two halves) and `low`
_COUNTED = (1 << 32) - 1  # elements of one tensor, which may all be in one bin
_MOST = (4 << 20) - 1  # magnitudes of one tensor that may be gathered

Results = Callable[[], list[Any]]


def roots(probe: Probe, node: Apply) -> Iterable[Node]:
    """The nodes that the probe uses, once for each use."""
    if probe.by is not None and probe.by[0] == "size":
        return (node.inputs[probe.by[1]],)
    return (*node.inputs, *node.inputs) if probe.kind == "norms" else node.inputs


def probed(builder: Builder, probe: Probe, node: Apply, place: int, total: int) -> Results:
    """The operations of a probe over a tensor of `total` elements, which stands at a place among those of its figure;
    what to call for its results once they ran.
    """
    lines = -(-total // TILE)
    if probe.kind == "pick":
        return _pick(builder, probe, node, -(-lines // probe.every) * TILE)
    if probe.kind in ("high", "low", "tied"):
        return _count(builder, probe, node, total)
    if probe.kind == "totals":
        from cuvee.engine.fused import asking

        return asking.summed(builder, probe, node, place, lambda: _lines(lines))
    emit = {"gram": _gram, "signs": _signs, "energies": _energies, "movers": _movers, "norms": _norms}
    return emit[probe.kind](builder, node, lines)


def _gram(builder: Builder, node: Apply, lines: int) -> Results:
    at_once = products(builder, node, lines)
    if at_once is not None:
        return lambda: at_once
    values = [builder.use(child) for child in node.inputs]
    sums = []
    for i, a in enumerate(values):
        for b in values[i:]:
            sums.append(_lines(lines))
            builder.emit(Code.DOT, None, a, b, data=ctypes.addressof(sums[-1]))
    for value in values:
        builder.release(value)
    return lambda: sums


def _signs(builder: Builder, node: Apply, lines: int) -> Results:
    figure, entries, by = ballot(builder, node)
    builder.emit(Code.SIGN, figure, figure)
    sums = [_lines(lines)]
    builder.emit(Code.SUM, None, figure, data=ctypes.addressof(sums[0]))
    for value in (figure, *entries, *by):
        builder.release(value)
    return lambda: sums


def _norms(builder: Builder, node: Apply, lines: int) -> Results:
    sums = [_lines(lines), _lines(lines)]
    if drops.norms(builder, node, *sums):
        return lambda: sums
    changes = (builder.use(node.inputs[0]), thinned(builder, node, builder.known.get(id(node), {})))
    for value, own in zip(changes, sums, strict=True):
        size = builder.new()
        builder.emit(Code.ABS, size, value)
        builder.emit(Code.SUM, None, size, data=ctypes.addressof(own))
        builder.release(size)
        builder.release(value)
    return lambda: sums


def _judged(builder: Builder, probe: Probe, node: Apply) -> Value:
    """What a stage selects by."""
    if probe.by is not None:
        from cuvee.engine.fused.balance import judged

        return judged(builder, node, *probe.by, least=min((low for low, _ in probe.windows), default=0))
    if node.stage != "sce":
        return builder.use(node.inputs[0])
    at_once = varying.spread(builder, node)
    if at_once is not None:
        return at_once
    tensors = [builder.use(child) for child in node.inputs]
    value = variance(builder, tensors)
    for tensor in tensors:
        builder.release(tensor)
    return value


def _energies(builder: Builder, node: Apply, lines: int) -> Results:
    sums = [_lines(lines) for _ in node.inputs]
    figures = builder.known.get(id(node), {})
    if varying.energies(builder, node, figures, sums):
        return lambda: sums
    tensors = [builder.use(child) for child in node.inputs]
    for value, own in zip(selected(builder, tensors, figures), sums, strict=True):
        builder.emit(Code.DOT, None, value, value, data=ctypes.addressof(own))
        builder.release(value)
    return lambda: sums


def _movers(builder: Builder, node: Apply, lines: int) -> Results:
    tensors, movers = moved(builder, node)
    counts = []
    for tensor in tensors:
        counts.append((ctypes.c_int64 * 2)())
        epsilon = dict(node.values)["epsilon"]
        builder.emit(Code.UNIQUE, None, tensor, movers, x=epsilon, data=ctypes.addressof(counts[-1]))
        builder.release(tensor)
    builder.release(movers)
    return lambda: counts


def _pick(builder: Builder, probe: Probe, node: Apply, total: int) -> Results:
    room = min(total, _MOST)
    if sifted.sifting(probe, node, builder.known.get(id(node), {})):
        return _sift(builder, probe, node, total // TILE, room)
    found = [_Places(room, alone=node.group is None) for _ in probe.windows]
    picks = [
        {"bits": low, "key": high, "count": room, "data": own.address}
        for (low, high), own in zip(probe.windows, found, strict=True)
    ]
    if not _picked_changes(builder, probe, node, picks):
        value = _judged(builder, probe, node)
        for pick in picks:
            builder.emit(Code.PICK, None, value, **pick)
        builder.release(value)
    return lambda: [own.window(bounds) for own, bounds in zip(found, probe.windows, strict=True)]


def _sift(builder: Builder, probe: Probe, node: Apply, tiles: int, room: int) -> Results:
    """As `_pick` for a threshold, and bits for the passes after it."""
    own, figures = _Places(room, alone=node.group is None), builder.known[id(node)]
    value = _judged(builder, probe, node)
    sifted.sift(builder, probe, figures, value, tiles, data=own.address, room=room)
    builder.release(value)
    return lambda: sifted.windows(probe, figures, tiles, own.window(probe.windows[1]))


def _picked_changes(builder: Builder, probe: Probe, node: Apply, picks: Sequence[dict[str, int]]) -> bool:
    """Whether magnitudes of a plain change are picked, in one operation that makes it, too."""
    if probe.by is not None or node.stage == "sce":
        return False
    member = changed(builder, node.inputs[0])
    if member is None or member.base is None:
        return False
    base, own = builder.use(member.base), builder.new()
    for pick in picks:
        op = builder.emit(Code.PICK_CHANGE, None, base, **pick)
        op.b, op.c, op.d = builder.place(member.read), int(member.read.meta.dtype == FLOAT32), own.register
    builder.release(base)
    builder.release(own)
    return True


class _Places:
    """Where the machine puts the magnitudes it picks; memory comes when it is written, and is used again, for the first
    touch of new memory costs more than what is put there. `alone`: keys are left there, not copied.
    """

    def __init__(self, room: int, *, alone: bool) -> None:
        self._spare = _SPARE.setdefault(room.bit_length(), [])
        self._alone = alone
        try:
            self._data = self._spare.pop()
        except IndexError:
            self._data = mmap.mmap(-1, ctypes.sizeof(Picked) + 4 * ((1 << room.bit_length()) + 16))
        self._head = Picked.from_buffer(self._data)
        self._head.less = self._head.low = self._head.high = self._head.picked = 0
        self.address = ctypes.addressof(self._head)

    def window(self, bounds: tuple[int, int]) -> Window:
        """What was found; to be asked once. The memory is free again once nobody holds the keys."""
        head, keys = self._head, None
        found = Window(bounds, head.less, head.low, head.high, None)
        if head.picked < 0:
            return found  # a tensor's worth of memory, which is given back
        kind, at = ctypes.c_uint32 * head.picked, ctypes.sizeof(Picked)
        if self._alone:
            keys = kind.from_buffer(self._data, at)
            weakref.finalize(keys, self._spare.append, self._data).atexit = False
        else:
            keys = kind.from_buffer_copy(self._data, at)
            self._spare.append(self._data)
        return replace(found, keys=keys)


_SPARE: dict[int, list[mmap.mmap]] = {}  # by the bits of how many magnitudes there is room for


def _count(builder: Builder, probe: Probe, node: Apply, total: int) -> Results:
    if total > _COUNTED and probe.kind != "tied":
        raise Unfusable("there are more elements than a bin counts")
    value = _judged(builder, probe, node)
    if probe.kind == "tied":
        counts = [_one_count() for _ in probe.bits]
        for bits, count in zip(probe.bits, counts, strict=True):
            builder.emit(Code.TIED, None, value, bits=bits, data=ctypes.addressof(count))
        builder.release(value)
        return lambda: [count.value for count in counts]
    code = Code.HIGH if probe.kind == "high" else Code.LOW
    tables = []
    for bits in probe.bits or (0,):
        tables.append((ctypes.c_uint32 * TABLE)())
        builder.emit(code, None, value, bits=bits, data=ctypes.addressof(tables[-1]))
    builder.release(value)
    return lambda: tables


def _one_count() -> Any:
    return ctypes.c_int64(0)


def _lines(count: int) -> Any:
    return (ctypes.c_double * count)()
