"""The error of a budget, measured on a small part of what was left out.

Weighted sums: pieces of a page of blocks of which something is left out are drawn, with a chance that grows with the
error that the catalogue tells of a block (an eighth of the draws goes by size alone, so that nothing is never drawn).
Divided by the chance, the mean of their errors is an unbiased estimate of all of it, whatever the catalogue says, and
their scatter tells how sure that is. Other methods are run on whole tensors, with the thresholds of the whole model,
and compared in float32. What is drawn, and what it reads of the experts, follows from the plan, is known before
anything is read, and is part of the budget.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
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
from cuvee.plan.pages import PAGE, Places, Stretch
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.sinks.layout import plan_layout
from cuvee.sinks.memory import FilledSession
from cuvee.sources.bits import bits_of
from cuvee.sources.catalogue import blocks_of, span_of
from cuvee.sources.source import Source

SHARE = 100  # of tensors that are computed whole, one element in so many is measured
_DRAWS = 256  # pieces, at most
_BLIND = 1 / 8  # of the draws that do not look at the catalogue
_WHOLE = 1 << 24  # elements of a tensor that is computed whole, at most
_DECODED = 1 << 16  # elements of a packed tensor that are decoded together
_CHUNK = 1 << 20  # elements compared at a time


def sampled(whole: Plan, choice: Choice, room: int) -> Sample:
    """What is measured, as far as reading it takes at most `room` bytes of the experts (in whole pages): pieces of
    tensors that are weighted sums, and whole tensors of others.
    """
    pieces, nbytes = _drawn(whole, choice, room)
    tensors = []
    others = _others(whole)
    left = sum(t.meta.numel for t in others) / SHARE
    for tensor in others:
        cost = _both(whole, choice, tensor)
        fits = nbytes + cost <= room and tensor.meta.numel <= min(left, _WHOLE)
        if left > 0 and fits:
            tensors.append(tensor)
            left -= tensor.meta.numel
            nbytes += cost
    return Sample(tuple(pieces), tuple(tensors), nbytes)


def measured(asked: Budgeted) -> dict[str, float]:
    """Of weighted sums the error over the norm of the merged update, estimated, with its standard error (from two
    pieces on); of whole tensors the norms of error and update; and of how many blocks something was measured.
    """
    taken, update = asked.sample, asked.choice.update
    found: dict[str, float] = {}
    if taken.pieces and update:
        lost = [_lost(asked.whole, asked.choice, piece) / piece.chance for piece in taken.pieces]
        found |= _estimated(lost, update)
    if taken.tensors:
        made = [_norms(asked, tensor) for tensor in taken.tensors]
        found["sampled_error"] = math.fsum(error for error, _ in made) ** 0.5
        found["sampled_update"] = math.fsum(size for _, size in made) ** 0.5
    blocks = {(piece.tensor.meta.name, piece.number) for piece in taken.pieces}
    count = len(blocks) + sum(blocks_of(t.meta) for t in taken.tensors)
    return {**found, "sampled_blocks": float(count)}


def all_sums(plan: Plan) -> bool:
    """Whether all that is measured is measured in pieces."""
    return not _others(plan)


def _estimated(errors: Sequence[float], update: float) -> dict[str, float]:
    """The root of the mean of independent estimates of the squared error, over the update; and its standard error."""
    mean = math.fsum(errors) / len(errors)
    found = {"error": mean**0.5 / update}
    if len(errors) > 1 and mean > 0:
        scatter = math.fsum((e - mean) ** 2 for e in errors) / (len(errors) - 1)
        found["standard_error"] = (scatter / len(errors)) ** 0.5 / (2 * mean**0.5 * update)
    return found


def _drawn(plan: Plan, choice: Choice, room: int) -> tuple[list[Piece], int]:
    """Independent draws, in their order, as many as there is room for; and the bytes of the pages that they read."""
    sums = {key[1]: t for t in plan.tensors if t.action == "merged" for key in summed(t) or ()}
    blocks = [(*where, error) for where, error in sorted(choice.errors.items()) if where[0] in sums]
    ground = plan.sources[choice.base].source.tensors if blocks else {}
    spans = [span_of(ground[name], number) for name, number, _ in blocks]
    total, numel = math.fsum(error for *_, error in blocks), sum(stop - start for start, stop in spans)
    chances = [
        (1 - _BLIND) * error / total + _BLIND * (stop - start) / numel
        for (*_, error), (start, stop) in zip(blocks, spans, strict=True)
    ]
    places, summits = Places(plan), list(accumulate(chances))
    gone = [_gone(choice, sums[name], number) for name, number, _ in blocks]
    dearest = max(
        (_dearest(places, name, keys) for (name, *_), keys in zip(blocks, gone, strict=True)), default=0
    )
    pieces: list[Piece] = []
    nbytes = 0
    # how many draws there are must not depend on what they draw
    for draw in range(min(_DRAWS, room // dearest) if dearest else 0):
        at = min(bisect_right(summits, _uniform(f"block {draw}") * summits[-1]), len(blocks) - 1)
        name, number, _ = blocks[at]
        start, stop = _page(places, (gone[at][0], name), spans[at], _uniform(f"piece {draw}"))
        nbytes += sum(_cost(places.elements(key, name, start, stop), stop - start) for key in gone[at])
        share = (stop - start) / (spans[at][1] - spans[at][0])
        pieces.append(Piece(sums[name], number, start, stop, gone[at], chances[at] * share))
    return pieces, nbytes


def _gone(choice: Choice, tensor: OutputTensor, number: int) -> tuple[str, ...]:
    """The experts that a block of a tensor is not read of."""
    found = summed(tensor) or {}
    return tuple(key for key, name in found if number in choice.spared.get(key, {}).get(name, ()))


def _dearest(places: Places, name: str, keys: Sequence[str]) -> int:
    """The most that reading a piece takes: a page of each expert, two where it may lie across."""
    first, total = places.offset(keys[0], name), 0
    for key in keys:
        size, lies = places.plan.sources[key].source.tensors[name].dtype.size, places.offset(key, name)
        if lies is None:
            total += _DECODED * size
        else:
            alike = first is not None and (lies[1] - first[1]) % PAGE == 0 and lies[1] % size == 0
            total += PAGE if alike else 2 * PAGE
    return total


def _uniform(text: str) -> float:
    """A number in [0, 1) that is always the same for a text."""
    return int.from_bytes(blake3(text.encode()).digest()[:6], "little") / 2**48


def _page(places: Places, key: tuple[str, str], span: tuple[int, int], place: float) -> tuple[int, int]:
    """The elements of a block that begin in one page of an expert's file: the page of the element at `place` of 1."""
    size = places.plan.sources[key[0]].source.tensors[key[1]].dtype.size
    lies = places.offset(*key)
    offset = 0 if lies is None else lies[1]
    element = span[0] + int(place * (span[1] - span[0]))
    page = (offset + element * size) // PAGE
    start, stop = (-(-(number * PAGE - offset) // size) for number in (page, page + 1))
    return max(start, span[0]), min(stop, span[1])


def _cost(stretch: Stretch, numel: int) -> int:
    """Bytes that reading a piece takes of one expert; what is packed is decoded in chunks."""
    return stretch.size if stretch.path else stretch.nbytes // numel * _DECODED


def _lost(plan: Plan, choice: Choice, piece: Piece) -> float:
    """The squared norm of what leaving a piece out loses, from the values themselves, in float64."""
    factors = summed(piece.tensor) or {}
    (name,) = {name for _, name in factors}
    base = _values(plan.sources[choice.base].source, name, piece.start, piece.stop)
    lost = numpy.zeros(piece.stop - piece.start)
    for key in piece.gone:
        moved = _values(plan.sources[key].source, name, piece.start, piece.stop) - base
        lost += factors[key, name] * moved
    return float((lost**2).sum())


def _values(source: Source, name: str, start: int, stop: int) -> Any:
    """Elements in float64."""
    bits = bits_of(source, name, start, stop, exactly=True)
    kind = source.tensors[name].dtype.name
    if kind == "bfloat16":
        return (bits.astype(numpy.uint32) << 16).view(numpy.float32).astype(numpy.float64)
    return bits.view(kind).astype(numpy.float64)


def _both(plan: Plan, choice: Choice, tensor: OutputTensor) -> int:
    """Bytes of the pages that a tensor's experts lie in, twice: it is made from everything and from what is read."""
    form, places = _form(tensor), Places(plan)
    keys = form.factors if form else {}
    return 2 * sum(places.tensor(source, name).size for source, name in keys if source != choice.base)


def _others(plan: Plan) -> list[OutputTensor]:
    """Tensors whose error was bounded otherwise, by a hash of their names."""
    found = [t for t in plan.tensors if (form := _form(t)) and (form.thinned or form.how != "sum")]
    return sorted(found, key=lambda t: blake3(t.meta.name.encode()).digest())


def _form(tensor: OutputTensor) -> Joined | None:
    try:
        return joined(tensor)
    except Unbounded:
        return None


def _norms(asked: Budgeted, tensor: OutputTensor) -> tuple[float, float]:
    """The squared norms of the error of a tensor, and of what the experts add to the base."""
    base = base_of(tensor)
    assert base is not None
    full, left = (_computed(plan, asked.tables, tensor) for plan in (asked.whole, asked.plan))
    error = size = 0.0
    for start in range(0, tensor.meta.numel, _CHUNK):
        stop = min(start + _CHUNK, tensor.meta.numel)
        ground = _values(asked.whole.sources[base[0]].source, base[1], start, stop)
        whole, kept = full[start:stop] - ground, left[start:stop] - ground  # in float64
        error += float(((whole - kept) ** 2).sum())
        size += float((whole**2).sum())
    return error, size


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
