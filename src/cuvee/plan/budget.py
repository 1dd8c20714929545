"""Which blocks of which experts are worth reading: by gain per byte, with the error known before anything is read.

Leaving a block of an expert out sets its task vector to 0 there. For weighted sums the error is the norm of what is
left out, computed from the products in the catalogue. For votes (TIES) and the largest change (MagMax) a block is left
out of all experts or of none: the error is what they could have voted for at most. All is divided by the least that the
norm of the whole merged update can be. Nothing is estimated. Rounding is told apart. Must not read weights.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cuvee.core.lazy import numpy
from cuvee.plan.joined import Joined, Key, Unbounded, joined, rounding
from cuvee.plan.nodes import Read, walk
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.plan.sharing import nbytes_of
from cuvee.sources.catalogue import Catalogue, Sketch

# Products are sums of float64; their error is far below this share of Σ|c|²‖δ‖².
_SLACK = 1e-9
_SMALL = 1e-24  # kept magnitudes below this may vanish when they are multiplied
_FINER = 2.0**-126  # absolute errors near zero, per rounding
_FINER_HALF = 2.0**-25


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be read of the experts: a share of their bytes, or as much as keeps the error below a bound."""

    share: float | None = None
    deviation: float | None = None


@dataclass(frozen=True, slots=True)
class Thinned:
    """What a threshold leaves of one tensor of an expert: the norm of what it removes (at most), the least magnitude
    that is kept, how many are, and the bits below which everything is removed.
    """

    removed: float
    least: float
    kept: int
    bits: int


@dataclass(frozen=True, slots=True)
class Choice:
    """Blocks left out, by source and tensor; bytes of the experts, and of those the ones to read; the bounds.

    `bound` is the largest norm of the error over the norm of the merged update (0 when nothing that differs is left
    out, infinite when the update may be nothing), besides rounding; `rounded` counts all rounding, too. `identical`
    counts bytes that change nothing. `bounded`: whether there is anything at all whose error can be bounded.
    """

    spared: Mapping[str, Mapping[str, frozenset[int]]]
    total: int
    read: int
    identical: int
    bound: float
    rounded: float
    bounded: bool = True


@dataclass(slots=True)
class _Block:
    """A block of one output tensor: coefficients and products of the experts in it, and which of them are left out."""

    form: Joined
    gram: list[list[float]]
    factors: list[float]
    out: list[bool]
    ground: tuple[float, float]  # norm and peak of the base
    moved: list[int]
    narrow: float  # of the output's type: the relative error of rounding

    def error(self) -> float:
        """Squared norm of what is left out, at most."""
        left = [k for k, gone in enumerate(self.out) if gone]
        if not left:
            return 0.0
        sizes = [abs(self.factors[k]) * math.sqrt(self.gram[k][k]) for k in left]
        if self.form.how == "sum" and not self.form.thinned:
            return self.product(left, 1.0)
        if self.form.added:
            return math.fsum(sizes) ** 2 * (1 + _SLACK)
        return math.fsum(size * size for size in sizes) * (1 + _SLACK)

    def product(self, places: Sequence[int], sign: float) -> float:
        """Squared norm of the weighted sum of some, at most or (with sign −1) at least."""
        c, g = self.factors, self.gram
        value = math.fsum(c[i] * c[j] * g[i][j] for i in places for j in places)
        largest = math.fsum(abs(c[i]) * math.sqrt(g[i][i]) for i in places) ** 2
        return value + sign * _SLACK * largest

    def rounding(self) -> float:
        """The norm of what rounding can make of what is left out, in both results together."""
        moved = sum(many for many, gone in zip(self.moved, self.out, strict=True) if gone)
        if not moved:
            return 0.0
        form = self.form
        share = 1.01 * (math.expm1(form.steps * math.log1p(form.unit)) + 2 * self.narrow)
        norm = min(self.ground[0], math.sqrt(moved) * self.ground[1])
        size = sum(form.sizes.values()) * norm
        size += max(form.sizes.values()) * sum(math.sqrt(row[k]) for k, row in enumerate(self.gram))
        finer = _FINER_HALF if 2.0**-11 in (form.unit, self.narrow) else _FINER
        return 2 * (share * size + math.sqrt(moved) * form.steps * finer)


@dataclass(frozen=True, slots=True)
class _Unit:
    """Blocks of experts that are read together or not at all."""

    tensor: str
    number: int
    places: tuple[int, ...]
    keys: tuple[str, ...]
    nbytes: int
    gain: float


def summed(tensor: OutputTensor) -> Mapping[Key, float] | None:
    """The coefficients of an output tensor that is a plain weighted sum; else None."""
    try:
        found = joined(tensor)
    except Unbounded:
        return None
    return found.factors if found.how == "sum" and not found.thinned else None


def choose(
    plan: Plan,
    base: str,
    experts: Sequence[str],
    catalogue: Catalogue,
    budget: Budget,
    thinned: Mapping[int, Thinned],
) -> Choice:
    """The blocks to leave out: first those that change nothing, then those that add least for their bytes.

    A tensor of an expert is read whole when it is not part of exactly one output tensor whose error can be bounded, or
    is not in the catalogue. `thinned`: what is known of the thresholds, by the identity of their stage.
    """
    blocks, units, least = _collected(plan, base, experts, catalogue, thinned)
    total = sum(t.nbytes for key in experts for t in plan.sources[key].source.tensors.values())
    spared: dict[str, dict[str, set[int]]] = {key: {} for key in experts}
    identical, skippable = 0, 0
    for unit in units:
        for key in unit.keys:
            spared[key].setdefault(unit.tensor, set()).add(unit.number)
        if unit.gain <= 0 and blocks[unit.tensor, unit.number].error() == 0:
            identical += unit.nbytes
        else:
            skippable += unit.nbytes
            for place in unit.places:
                blocks[unit.tensor, unit.number].out[place] = True
    read = total - identical - skippable
    errors = {where: block.error() for where, block in blocks.items()}
    error = math.fsum(errors.values())
    for unit in sorted(
        (u for u in units if u.gain > 0), key=lambda u: (-u.gain / u.nbytes, u.tensor, u.number, u.keys)
    ):
        if budget.share is not None and read + unit.nbytes > budget.share * total:
            continue
        if budget.deviation is not None and _relative(error, least) <= budget.deviation:
            error = math.fsum(errors.values())  # small beside what was taken from it, so not exact until now
            if _relative(error, least) <= budget.deviation:
                break
        block = blocks[unit.tensor, unit.number]
        for place, key in zip(unit.places, unit.keys, strict=True):
            block.out[place] = False
            spared[key][unit.tensor].discard(unit.number)
        error += (fresh := block.error()) - errors[unit.tensor, unit.number]
        errors[unit.tensor, unit.number] = fresh
        read += unit.nbytes
    bound = _relative(math.fsum(block.error() for block in blocks.values()), least)
    extra = _relative(math.fsum(block.rounding() ** 2 for block in blocks.values()), least)
    kept = {key: {n: frozenset(b) for n, b in tensors.items() if b} for key, tensors in spared.items()}
    return Choice(kept, total, read, identical, bound, bound + extra, bool(units))


def _relative(error: float, update: float) -> float:
    if error <= 0:
        return 0.0
    return math.sqrt(error / update) if update > 0 else math.inf


_Found = tuple[dict[tuple[str, int], _Block], list[_Unit], float]


def _collected(
    plan: Plan,
    base: str,
    experts: Sequence[str],
    catalogue: Catalogue,
    thinned: Mapping[int, Thinned],
) -> _Found:
    """The blocks of all tensors that may be left out in part, what is read together, and the least that the squared
    norm of the whole update can be."""
    uses = Counter(
        key
        for t in plan.tensors
        for key in {(n.source, n.meta.name) for n in walk(t.node) if isinstance(n, Read)}
    )
    blocks: dict[tuple[str, int], _Block] = {}
    units: list[_Unit] = []
    least = 0.0
    for tensor in plan.tensors:
        found = _usable(plan, tensor, base, experts, catalogue, thinned)
        if found is None:
            continue
        form, name, sketch = found
        inside = [key for key in experts if (key, name) in form.factors]
        if any(uses[key, name] > 1 for key in inside):
            continue
        own = _blocks(plan, tensor, form, name, sketch, [experts.index(key) for key in inside], inside)
        _without(own, form, name, inside, sketch, experts, thinned)
        blocks |= {(name, number): block for number, block in own.items()}
        units += _units(plan, own, form, name, inside)
        if len(own) == len(sketch.gram) or (form.how == "sum" and not form.thinned):
            least += _least(own, form, name, inside, thinned)
    return blocks, units, least


def _usable(
    plan: Plan,
    tensor: OutputTensor,
    base: str,
    experts: Sequence[str],
    catalogue: Catalogue,
    thinned: Mapping[int, Thinned],
) -> tuple[Joined, str, Sketch] | None:
    """The form, the name and the sketch of a tensor whose error can be bounded; else None."""
    try:
        form = joined(tensor)
    except Unbounded:
        return None
    names = {name for _, name in form.factors}
    if len(names) != 1 or any(id(node) not in thinned for node in form.thinned.values()):
        return None
    name = names.pop()
    sketch = catalogue.tensors.get(name)
    if (
        sketch is None
        or form.base not in (None, (base, name))
        or name not in plan.sources[base].source.tensors
    ):
        return None
    strangers = {source for source, _ in form.factors} - {base, *experts}
    whole = abs(sum(form.factors.values()) - 1) < 1e-6 or bool(form.thinned) or form.how != "sum"
    inside = any((key, name) in form.factors for key in experts)
    return (form, name, sketch) if inside and whole and not strangers else None


def _blocks(
    plan: Plan,
    tensor: OutputTensor,
    form: Joined,
    name: str,
    sketch: Sketch,
    places: list[int],
    inside: Sequence[str],
) -> dict[int, _Block]:
    """The blocks in which everything is finite."""
    found: dict[int, _Block] = {}
    factors = [form.factors[key, name] for key in inside]
    changes = [sketch.changes[place] for place in places]
    for number, gram in enumerate(sketch.gram[:, places][:, :, places]):
        ground = math.sqrt(sketch.ground[number]), float(sketch.peak[number])
        if not numpy.isfinite(gram).all() or not math.isfinite(ground[0] + ground[1]) or None in changes:
            continue
        moved = [int(change.moved[number]) for change in changes if change is not None]
        found[number] = _Block(
            form, gram.tolist(), factors, [False] * len(inside), ground, moved, rounding(tensor.meta.dtype)
        )
    return found


def _without(
    blocks: dict[int, _Block],
    form: Joined,
    name: str,
    inside: Sequence[str],
    sketch: Sketch,
    experts: Sequence[str],
    thinned: Mapping[int, Thinned],
) -> None:
    """What a threshold removes whole weighs nothing: only for what is left out, so after the least was taken."""
    for place, key in enumerate(inside):
        condition = form.thinned.get((key, name))
        change = sketch.changes[experts.index(key)]
        if condition is None or change is None:
            continue
        for number, block in blocks.items():
            if change.largest[number] < thinned[id(condition)].bits:
                block.moved[place] = 0


def _units(
    plan: Plan, blocks: Mapping[int, _Block], form: Joined, name: str, inside: Sequence[str]
) -> list[_Unit]:
    found: list[_Unit] = []
    for number, block in blocks.items():
        moving = [k for k, many in enumerate(block.moved) if many and block.factors[k]]
        sizes = {k: nbytes_of(plan, inside[k], name, number) for k in range(len(inside))}
        found += [_Unit(name, number, (k,), (inside[k],), sizes[k], 0.0) for k in sizes if k not in moving]
        energy = {k: block.factors[k] ** 2 * block.gram[k][k] for k in moving}
        groups = [(k,) for k in moving] if form.how == "sum" else [tuple(moving)] if moving else []
        for group in groups:
            gain = max(sum(energy[k] for k in group), 5e-324)
            keys = tuple(inside[k] for k in group)
            found.append(_Unit(name, number, group, keys, sum(sizes[k] for k in group), gain))
    return found


def _least(
    blocks: Mapping[int, _Block],
    form: Joined,
    name: str,
    inside: Sequence[str],
    thinned: Mapping[int, Thinned],
) -> float:
    """The squared norm of a tensor's whole update, at least."""
    everyone = range(len(inside))
    together = math.fsum(block.product(everyone, -1.0) for block in blocks.values())
    if form.how == "sum" and not form.thinned:
        return together
    cut = {key: thinned[id(node)] for (key, _), node in form.thinned.items()}
    removed = [cut[key].removed if key in cut else 0.0 for key in inside]
    factors = [abs(form.factors[key, name]) for key in inside]
    energies = [math.sqrt(math.fsum(block.gram[k][k] for block in blocks.values())) for k in everyone]
    lost = sum(c * r for c, r in zip(factors, removed, strict=True))
    rounded = 4 * form.unit  # of differences, and of their sum
    lost += len(inside) * rounded * sum(c * e for c, e in zip(factors, energies, strict=True))
    whole = max(0.0, math.sqrt(max(0.0, together)) - lost)
    if form.how == "sum":
        return whole**2
    if form.how == "largest":
        sizes = (c * (e * (1 - rounded) - r) for c, e, r in zip(factors, energies, removed, strict=True))
        return max(0.0, *sizes) ** 2 * (1 - 1e-6)
    found = (whole / form.share) ** 2 if form.share else 0.0
    if len(cut) == len(inside):
        smallest = min(c * cut[key].least for c, key in zip(factors, inside, strict=True))
        if smallest > _SMALL:
            found = max(found, smallest**2 * max(cut[key].kept for key in inside))
    return found * (1 - 1e-6)
