"""Which blocks of which experts are worth reading: by gain per byte, with the error known before anything is read.

An output tensor that is a weighted sum of task vectors moves by Σ cₖδₖ. Leaving out the blocks of some experts changes
it by the sum over those alone, whose norm follows from the products in the catalogue: the error is computed, not
estimated. It is told relative to the norm of the whole merged update, besides rounding. Anything that is not such a
sum, or is computed in less than float32, is read whole. Must not read weights.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cuvee.core.lazy import numpy
from cuvee.plan.nodes import Apply, Convert, Difference, Node, Read, Sum, walk
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.sources.catalogue import Catalogue, step_of

Key = tuple[str, str]  # source, tensor
# Products are sums of float64; their error is far below this share of Σ|c|²‖δ‖².
_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be read of the experts: a share of their bytes, or as much as keeps the error below a bound."""

    share: float | None = None
    deviation: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """Blocks left out, by source and tensor; bytes of the experts, and of those the ones to read; the bound.

    `bound` is the largest norm of the error over the norm of the merged update (0 when nothing that differs is left
    out, infinite when the update may be nothing). `identical` counts bytes that equal the base's.
    """

    spared: Mapping[str, Mapping[str, frozenset[int]]]
    total: int
    read: int
    identical: int
    bound: float


@dataclass(slots=True)
class _Block:
    """A block of one output tensor: coefficients and products of the experts in it, and which of them are read."""

    gram: list[list[float]]
    factors: list[float]
    out: list[bool]

    def error(self) -> float:
        """Squared norm of what is left out, at most."""
        left = [k for k, gone in enumerate(self.out) if gone]
        return self._form(left, 1.0)

    def update(self) -> float:
        """Squared norm of the whole, at least; may be negative where it is nothing."""
        return self._form(range(len(self.factors)), -1.0)

    def _form(self, places: Sequence[int], sign: float) -> float:
        c, g = self.factors, self.gram
        value = math.fsum(c[i] * c[j] * g[i][j] for i in places for j in places)
        largest = math.fsum(abs(c[i]) * math.sqrt(g[i][i]) for i in places) ** 2
        return value + sign * _SLACK * largest


def factors_of(node: Node) -> dict[Key, float] | None:
    """The coefficient of every tensor that a weighted sum reads; None where the expression is something else."""
    if isinstance(node, Read):
        return {(node.source, node.meta.name): 1.0}
    if isinstance(node, Convert):
        return factors_of(node.child) if node.dtype.name in ("float32", "float64") else None
    if isinstance(node, Difference):
        return _combined([(1.0, node.expert), (-1.0, node.base)])
    if isinstance(node, Sum):
        return _combined(list(node.terms))
    if isinstance(node, Apply):
        return _stage(node)
    return None


def _stage(node: Apply) -> dict[Key, float] | None:
    values = dict(node.values)
    if node.stage == "scale" and len(node.inputs) == 1 and set(values) == {"lam"}:
        return _combined([(float(values["lam"]), node.inputs[0])])
    if node.stage == "weighted_sum" and set(values) <= {"weight", "normalize"}:
        given = values.get("weight", 1.0)
        weights = [float(w) for w in (given if isinstance(given, tuple) else [given] * len(node.inputs))]
        if values.get("normalize"):
            share = sum(weights)
            weights = [w / share for w in weights] if abs(share) >= 1e-6 else []
        return _combined(list(zip(weights, node.inputs, strict=True))) if weights else None
    return None


def _combined(terms: list[tuple[float, Node]]) -> dict[Key, float] | None:
    found: dict[Key, float] = {}
    for factor, node in terms:
        inner = factors_of(node)
        if inner is None:
            return None
        for key, value in inner.items():
            found[key] = found.get(key, 0.0) + factor * value
    return found


def summed(tensor: OutputTensor) -> dict[Key, float] | None:
    """The coefficients of an output tensor that is a weighted sum computed in float32 or better; else None."""
    return factors_of(tensor.node) if tensor.compute.name in ("float32", "float64") else None


def base_of(tensor: OutputTensor) -> Read | None:
    """The tensor that all task vectors of an expression start from; None where there are none, or several."""
    found: dict[Key, Read] = {}
    for node in walk(tensor.node):
        if isinstance(node, Difference):
            inner = node.base
            while isinstance(inner, Convert):
                inner = inner.child
            if not isinstance(inner, Read):
                return None
            found[inner.source, inner.meta.name] = inner
    return next(iter(found.values())) if len(found) == 1 else None


def choose(plan: Plan, base: str, experts: Sequence[str], catalogue: Catalogue, budget: Budget) -> Choice:
    """The blocks to leave out: first those that equal the base's, then those that add least for their bytes.

    A tensor of an expert is read whole when it is not part of exactly one weighted sum, or is not in the catalogue.
    """
    blocks, pairs = _collected(plan, base, experts, catalogue)
    total = sum(t.nbytes for key in experts for t in plan.sources[key].source.tensors.values())
    spared: dict[str, dict[str, set[int]]] = {key: {} for key in experts}
    identical = 0
    open_pairs: list[tuple[float, str, str, int, int, int]] = []
    for key, name, number, place, nbytes in pairs:
        block = blocks[name, number]
        gain = block.factors[place] ** 2 * block.gram[place][place]
        spared[key].setdefault(name, set()).add(number)
        if catalogue.tensors[name].same[experts.index(key), number]:
            identical += nbytes
        else:
            block.out[place] = True
            open_pairs.append((-gain / nbytes, key, name, number, place, nbytes))
    skippable = sum(pair[-1] for pair in open_pairs)
    read = total - identical - skippable
    update = sum(block.update() for block in blocks.values())
    errors = {where: block.error() for where, block in blocks.items()}
    error = math.fsum(errors.values())
    for _, key, name, number, place, nbytes in sorted(open_pairs):
        if budget.share is not None and read + nbytes > budget.share * total:
            continue
        if budget.deviation is not None and _relative(error, update) <= budget.deviation:
            break
        block = blocks[name, number]
        block.out[place] = False
        spared[key][name].discard(number)
        error += (fresh := block.error()) - errors[name, number]
        errors[name, number] = fresh
        read += nbytes
    bound = _relative(math.fsum(block.error() for block in blocks.values()), update)
    kept = {key: {n: frozenset(b) for n, b in tensors.items() if b} for key, tensors in spared.items()}
    return Choice(kept, total, read, identical, bound)


def _relative(error: float, update: float) -> float:
    if error <= 0:
        return 0.0
    return math.sqrt(error / update) if update > 0 else math.inf


def _collected(
    plan: Plan, base: str, experts: Sequence[str], catalogue: Catalogue
) -> tuple[dict[tuple[str, int], _Block], list[tuple[str, str, int, int, int]]]:
    """The blocks of all tensors that may be left out in part, and every (expert, block) with its bytes."""
    reads = [{id(n): n for n in walk(t.node) if isinstance(n, Read)} for t in plan.tensors]
    uses = Counter((read.source, read.meta.name) for inside in reads for read in inside.values())
    blocks: dict[tuple[str, int], _Block] = {}
    pairs: list[tuple[str, str, int, int, int]] = []
    for tensor in plan.tensors:
        factors = summed(tensor)
        names = {name for _, name in factors or {}}
        if factors is None or len(names) != 1:
            continue
        name = names.pop()
        sketch = catalogue.tensors.get(name)
        inside = [key for key in experts if (key, name) in factors]
        shape = plan.sources[base].source.tensors.get(name)
        if sketch is None or shape is None or (base, name) not in factors or not inside:
            continue
        places = [experts.index(key) for key in inside]
        step, size = step_of(shape.dtype.size), shape.dtype.size
        for number, gram in enumerate(sketch.gram[:, places][:, :, places]):
            if not numpy.isfinite(gram).all() or any(uses[key, name] > 1 for key in inside):
                continue
            blocks[name, number] = _Block(
                gram.tolist(), [factors[key, name] for key in inside], [False] * len(inside)
            )
            nbytes = size * (min(shape.numel, (number + 1) * step) - number * step)
            pairs += [(key, name, number, place, nbytes) for place, key in enumerate(inside)]
    return blocks, pairs
