"""The blocks of a plan that may be left out in part: what each of their experts adds, and the error without some.

The error of a block is a quadratic form of what is left out. For weighted sums its matrix holds the products from the
catalogue, so that it is exact; behind thresholds it holds products of norms, so that it is an upper bound; for votes it
is diagonal. Experts that hold the same bytes in a block are one member of it. Nothing is estimated. Must not read
weights.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cuvee.core.lazy import numpy
from cuvee.plan.budget_spending import Chain, Step
from cuvee.plan.joined import Joined, Unbounded, joined, rounding
from cuvee.plan.nodes import Read, walk
from cuvee.plan.pages import Stretch
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.plan.sharing import StandIns
from cuvee.sources.catalogue import Catalogue, Sketch

# Products are sums of float64; their error is far below this share of Σ|c|²‖δ‖².
_SLACK = 1e-9
_SMALL = 1e-24  # kept magnitudes below this may vanish when they are multiplied
_FINER = 2.0**-126  # absolute errors near zero, per rounding
_FINER_HALF = 2.0**-25


@dataclass(frozen=True, slots=True)
class Thinned:
    """What a threshold leaves of one tensor of an expert: the norm of what it removes (at most), the least magnitude
    that is kept, how many are, and the bits below which everything is removed.
    """

    removed: float
    least: float
    kept: int
    bits: int


@dataclass(slots=True)
class Block:
    """A block of one output tensor: coefficients and products of the experts in it, and which of them are left out.

    `keys`: their sources. `members`: experts of the same bytes, by their places; those that add nothing are in none.
    """

    form: Joined
    keys: Sequence[str]
    gram: list[list[float]]
    factors: list[float]
    ground: tuple[float, float]  # norm and peak of the base
    moved: list[int]
    narrow: float  # of the output's type: the relative error of rounding
    out: list[bool]
    members: tuple[tuple[int, ...], ...] = ()

    def joined(self, holders: Mapping[str, str]) -> None:
        """Bring experts together of which one holds the other's bytes, once it is known what each adds."""
        places = {key: place for place, key in enumerate(self.keys)}
        found: dict[int, list[int]] = {}
        for place, key in enumerate(self.keys):
            found.setdefault(places.get(holders.get(key, key), place), []).append(place)
        self.members = tuple(tuple(m) for m in found.values() if any(map(self.adds, m)))

    def adds(self, place: int) -> bool:
        """Whether an expert changes anything here."""
        return bool(self.moved[place] and self.factors[place])

    def form_of(self) -> list[list[float]]:
        """The matrix W of the error: with x of 0 and 1 for members left out, xᵀWx is its squared norm at most."""
        places = [k for member in self.members for k in member]
        sizes = {k: abs(self.factors[k]) * math.sqrt(self.gram[k][k]) * self.adds(k) for k in places}
        exact = self.form.how == "sum" and not self.form.thinned
        together = self.form.how == "sum" or self.form.added

        def entry(i: int, j: int) -> float:
            if exact:
                product = self.factors[i] * self.factors[j] * self.gram[i][j]
                return product + _SLACK * sizes[i] * sizes[j]
            return (1 + _SLACK) * sizes[i] * sizes[j] if together or i == j else 0.0

        return [
            [math.fsum(entry(i, j) for i in one for j in other) for other in self.members]
            for one in self.members
        ]

    def chain(self, stretches: Sequence[Stretch]) -> Chain:
        """The order to read the members in, with what each step gains; `stretches`: where each member lies."""
        w, rest = self.form_of(), list(range(len(self.members)))
        errors, order = [_total(w, rest)], []
        if self.form.how != "sum":  # a vote is whole or not at all
            return Chain(errors[0], (_step(tuple(rest), errors[0], 0.0, stretches),) if rest else ())
        sizes = [max(1, stretch.size) for stretch in stretches]
        while rest:
            sums = {i: math.fsum(w[i][j] for j in rest) for i in rest}
            first = max(rest, key=lambda i: ((2 * sums[i] - w[i][i]) / sizes[i], -i))
            rest.remove(first)
            order.append(first)
            errors.append(_total(w, rest))
        steps, at = [], 0
        while at < len(order):
            until = _steepest(errors, [sizes[i] for i in order], at)
            steps.append(_step(tuple(order[at:until]), errors[at], errors[until], stretches))
            at = until
        return Chain(errors[0], tuple(steps))

    def error(self) -> float:
        """Squared norm of what is left out, at most."""
        return _total(self.form_of(), [n for n, member in enumerate(self.members) if self.out[member[0]]])

    def product(self) -> float:
        """Squared norm of the whole weighted sum, at least."""
        c, g = self.factors, self.gram
        places = range(len(c))
        value = math.fsum(c[i] * c[j] * g[i][j] for i in places for j in places)
        return value - _SLACK * math.fsum(abs(c[i]) * math.sqrt(g[i][i]) for i in places) ** 2

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


def _total(w: Sequence[Sequence[float]], places: Sequence[int]) -> float:
    return max(0.0, math.fsum(w[i][j] for i in places for j in places))


def _steepest(errors: Sequence[float], sizes: Sequence[int], at: int) -> int:
    """How far to go from a place on the lower convex hull of the errors."""
    ends = range(at + 1, len(errors))
    return max(ends, key=lambda end: ((errors[at] - errors[end]) / sum(sizes[at:end]), -end))


def _step(members: tuple[int, ...], before: float, after: float, stretches: Sequence[Stretch]) -> Step:
    """What changes a byte gains something, however little of that is left in float64."""
    gain = max(before - after, 5e-324)
    return Step(members, gain, after, tuple(stretches[member] for member in members))


def collected(
    plan: Plan,
    base: str,
    experts: Sequence[str],
    catalogue: Catalogue,
    thinned: Mapping[int, Thinned],
    equal: StandIns,
) -> tuple[dict[tuple[str, int], Block], float]:
    """The blocks of all tensors that may be left out in part, by tensor and number, and the least that the squared
    norm of the whole update can be. `equal`: which blocks hold another source's bytes.
    """
    uses = Counter(
        key
        for t in plan.tensors
        for key in {(n.source, n.meta.name) for n in walk(t.node) if isinstance(n, Read)}
    )
    blocks: dict[tuple[str, int], Block] = {}
    least = 0.0
    for tensor in plan.tensors:
        found = _usable(plan, tensor, base, experts, catalogue, thinned)
        if found is None:
            continue
        form, name, sketch = found
        inside = [key for key in experts if (key, name) in form.factors]
        if any(uses[key, name] > 1 for key in inside):
            continue
        own = _blocks(tensor, form, name, sketch, [experts.index(key) for key in inside], inside)
        _without(own, form, name, inside, sketch, experts, thinned)
        for number, block in own.items():
            held = ((key, equal.get(key, {}).get(name, {}).get(number)) for key in inside)
            block.joined({key: holder for key, holder in held if holder is not None})
            blocks[name, number] = block
        if len(own) == len(sketch.gram) or (form.how == "sum" and not form.thinned):
            least += _least(own, form, name, inside, thinned)
    return blocks, least


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
    tensor: OutputTensor,
    form: Joined,
    name: str,
    sketch: Sketch,
    places: list[int],
    inside: Sequence[str],
) -> dict[int, Block]:
    """The blocks in which everything is finite."""
    found: dict[int, Block] = {}
    factors = [form.factors[key, name] for key in inside]
    changes = [sketch.changes[place] for place in places]
    for number, gram in enumerate(sketch.gram[:, places][:, :, places]):
        ground = math.sqrt(sketch.ground[number]), float(sketch.peak[number])
        if not numpy.isfinite(gram).all() or not math.isfinite(ground[0] + ground[1]) or None in changes:
            continue
        moved = [int(change.moved[number]) for change in changes if change is not None]
        found[number] = Block(
            form=form,
            keys=inside,
            gram=gram.tolist(),
            factors=factors,
            ground=ground,
            moved=moved,
            narrow=rounding(tensor.meta.dtype),
            out=[False] * len(inside),
        )
    return found


def _without(
    blocks: dict[int, Block],
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


def _least(
    blocks: Mapping[int, Block],
    form: Joined,
    name: str,
    inside: Sequence[str],
    thinned: Mapping[int, Thinned],
) -> float:
    """The squared norm of a tensor's whole update, at least."""
    everyone = range(len(inside))
    together = math.fsum(block.product() for block in blocks.values())
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
