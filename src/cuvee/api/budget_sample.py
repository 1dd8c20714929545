"""The error of a budget, measured: at most a hundredth of what is merged is made from everything and from what is read.

Weighted sums are sampled in pieces of blocks from the values themselves, in float64. Other methods are run on whole
tensors, with the thresholds of the whole model, and compared in float32. What the sample reads of the experts is known
before anything is read, and is part of the budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from blake3 import blake3

from cuvee.api.budgeted_plan import Budgeted, Piece, Sample
from cuvee.core.dtypes import FLOAT32
from cuvee.core.lazy import numpy
from cuvee.core.tensors import TensorMeta
from cuvee.engine.memo import Memo
from cuvee.engine.options import RunOptions
from cuvee.engine.run import run
from cuvee.engine.tables import Tables
from cuvee.plan.budget import Choice, summed
from cuvee.plan.joined import Joined, Unbounded, base_of, joined
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.sinks.layout import plan_layout
from cuvee.sinks.memory import FilledSession
from cuvee.sources.bits import bits_of
from cuvee.sources.catalogue import step_of
from cuvee.sources.source import Source

SHARE = 100  # one element in so many is measured
_LEAST = 8  # pieces, where the model has so many blocks
_PIECE = 1 << 15  # elements, at most and
_SMALLEST = 64  # at least
_WHOLE = 1 << 24  # elements of a tensor that is computed whole, at most
_CHUNK = 1 << 20  # elements compared at a time


def sampled(whole: Plan, choice: Choice, room: int | None, every: int = SHARE) -> Sample:
    """One element in `every`, chosen by a hash of its place, as far as reading it takes at most `room` bytes of the
    experts: pieces of as many blocks as possible of tensors that are weighted sums, and whole tensors of others.
    Pieces are shorter where there is less room.
    """
    pieces, nbytes = [], 0
    for piece in _pieces(whole, every if room is None else max(every, -(-choice.total // max(room, 1)))):
        cost = _cost(whole, piece)
        if room is None or nbytes + cost <= room:
            pieces.append(piece)
            nbytes += cost
    tensors = []
    others = _others(whole)
    left = sum(t.meta.numel for t in others) / every
    for tensor in others:
        cost = _both(whole, choice, tensor)
        fits = room is None or (nbytes + cost <= room and tensor.meta.numel <= min(left, _WHOLE))
        if left > 0 and fits:
            tensors.append(tensor)
            left -= tensor.meta.numel
            nbytes += cost
    return Sample(tuple(pieces), tuple(tensors), nbytes)


def measured(asked: Budgeted, every: int | None = None) -> dict[str, float]:
    """The norms of the error and of the update on the sample (or on one element in `every`), and of how many blocks
    it has something.
    """
    whole, choice = asked.whole, asked.choice
    taken = asked.sample if every is None else sampled(whole, choice, None, every)
    error = update = 0.0
    for piece in taken.pieces:
        full, left = _moved(whole, choice, piece)
        error += float(((full - left) ** 2).sum())
        update += float((full**2).sum())
    for tensor in taken.tensors:
        for full, left in _made(asked, tensor):
            error += float(((full - left) ** 2).sum())
            update += float((full**2).sum())
    count = len(taken.pieces) + sum(-(-t.meta.numel // step_of(t.meta.dtype.size)) for t in taken.tensors)
    return {"sampled_error": error**0.5, "sampled_update": update**0.5, "sampled_blocks": float(count)}


def all_sums(plan: Plan) -> bool:
    """Whether all that is measured is measured in pieces."""
    return not _others(plan)


def _pieces(plan: Plan, every: int) -> list[Piece]:
    """Of weighted sums, in the order of their hashes: one piece of a block each, one element in `every` together."""
    sums = [t for t in plan.tensors if summed(t) is not None and t.meta.numel]
    numel = sum(t.meta.numel for t in sums)
    length = max(_SMALLEST, min(_PIECE, numel // (_LEAST * every)))
    found: list[tuple[bytes, Piece]] = []
    for tensor in sums:
        step = step_of(tensor.meta.dtype.size)
        for block in range(-(-tensor.meta.numel // step)):
            start, stop = block * step, min((block + 1) * step, tensor.meta.numel)
            told = blake3(f"{tensor.meta.name}\0{block}".encode()).digest()
            if every > 1 and stop - start > length:
                start += int.from_bytes(told[:8], "little") % (stop - start - length + 1)
                stop = start + length
            found.append((told, Piece(tensor, start, stop)))
    found.sort(key=lambda row: row[0])
    many = len(found) if every == 1 else max(_LEAST, -(-numel // (every * length)))
    return [piece for _, piece in found[:many]]


def _cost(plan: Plan, piece: Piece) -> int:
    """Bytes of the experts in a piece."""
    factors, ground = _coefficients(piece.tensor)
    sources = [plan.sources[source].source.tensors[name] for source, name in factors if source != ground]
    return sum((piece.stop - piece.start) * meta.dtype.size for meta in sources)


def _both(plan: Plan, choice: Choice, tensor: OutputTensor) -> int:
    """Bytes of the experts in a tensor, as often as they are read to make it from everything and from what is read."""
    form = _form(tensor)
    keys = form.factors if form else {}
    whole = sum(plan.sources[source].source.tensors[name].nbytes for source, name in keys)
    spared = any(choice.spared.get(source, {}).get(name) for source, name in keys)
    return 2 * whole if spared else whole


def _coefficients(tensor: OutputTensor) -> tuple[Mapping[tuple[str, str], float], str | None]:
    """The coefficients of a weighted sum, and the source that the others are compared with; a copy has none."""
    factors = summed(tensor) or {}
    base = base_of(tensor) or next(iter(factors), None)
    return (factors, base[0]) if base is not None and tensor.action == "merged" else ({}, None)


def _moved(plan: Plan, choice: Choice, piece: Piece) -> tuple[Any, Any]:
    """What the experts add to the base in a piece, in float64: all of it, and what is read of it."""
    factors, ground = _coefficients(piece.tensor)
    full, left = numpy.zeros(piece.stop - piece.start), numpy.zeros(piece.stop - piece.start)
    base, at = None, None
    for (source, name), factor in factors.items():
        if source == ground:
            continue
        if name != at:
            base, at = _values(plan.sources[str(ground)].source, name, piece), name
        moved = factor * (_values(plan.sources[source].source, name, piece) - base)
        full += moved
        size = plan.sources[source].source.tensors[name].dtype.size
        if piece.start // step_of(size) not in choice.spared.get(source, {}).get(name, ()):
            left += moved
    return full, left


def _values(source: Source, name: str, piece: Piece) -> Any:
    """Elements in float64."""
    bits = bits_of(source, name, piece.start, piece.stop, exactly=True)
    kind = source.tensors[name].dtype.name
    if kind == "bfloat16":
        return (bits.astype(numpy.uint32) << 16).view(numpy.float32).astype(numpy.float64)
    return bits.view(kind).astype(numpy.float64)


def _others(plan: Plan) -> list[OutputTensor]:
    """Tensors whose error was bounded otherwise, by a hash of their names."""
    found = [t for t in plan.tensors if (form := _form(t)) and (form.thinned or form.how != "sum")]
    return sorted(found, key=lambda t: blake3(t.meta.name.encode()).digest())


def _form(tensor: OutputTensor) -> Joined | None:
    try:
        return joined(tensor)
    except Unbounded:
        return None


def _made(asked: Budgeted, tensor: OutputTensor) -> Iterator[Sequence[Any]]:
    """What the experts add to the base, from everything and from what is read, chunk by chunk."""
    base = base_of(tensor)
    assert base is not None
    made = [_computed(plan, asked.tables, tensor) for plan in (asked.whole, asked.plan)]
    for start in range(0, tensor.meta.numel, _CHUNK):
        stop = min(start + _CHUNK, tensor.meta.numel)
        ground = _values(asked.whole.sources[base[0]].source, base[1], Piece(tensor, start, stop))
        yield [values[start:stop].astype(numpy.float64) - ground for values in made]


def _computed(plan: Plan, tables: Tables | None, tensor: OutputTensor) -> Any:
    """A tensor in float32, with the thresholds of the whole plan."""
    meta = TensorMeta(tensor.meta.name, FLOAT32, tensor.meta.shape)
    layout = plan_layout([meta], max_shard_bytes=None)
    one = replace(plan, tensors=(replace(tensor, meta=meta),), layout=layout, nested=())
    memo = None if tables is None else Memo(known=tables.figure, keeps=False)
    values = numpy.empty(meta.numel, numpy.float32)
    with FilledSession({meta.name: values}) as session:
        run(one, session, RunOptions.from_settings(threads=1), memo=memo)
    return values


__all__ = ["SHARE", "all_sums", "measured", "sampled"]
