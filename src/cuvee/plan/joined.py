"""How an output tensor joins its experts, as far as the size of what each adds follows: sums, votes, the largest.

Owns the reading of expressions for bounds (`plan.budget`): coefficients, the thinning in front of them, and why an
expression is none of these. Must not read weights or catalogues.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cuvee.core.dtypes import DType
from cuvee.methods.parameters import each
from cuvee.plan.nodes import Apply, Convert, Difference, Node, Read, Sum, walk
from cuvee.plan.plan import OutputTensor

Key = tuple[str, str]  # source, tensor
How = Literal["sum", "vote", "largest"]
_NEGLIGIBLE = 1e-6  # sums of weights below this are not divided by
_PRECISION = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}  # bits
_UNSTEADY = {
    "drop": "which elements are kept is random, so how large the merged update is cannot be known before reading",
    "magprune": "which elements are kept is random, so how large the merged update is cannot be known before reading",
    "sce": "which elements are selected depends on all experts together",
    "consensus": "its masks depend on all experts together",
    "ram": "its factors depend on all experts together",
    "ram_plus": "its factors depend on all experts together",
    "pcb": "its masks depend on all experts together",
}


class Unbounded(Exception):
    """The expression is none whose error can be bounded; the text says why."""


@dataclass(frozen=True, slots=True)
class Joined:
    """An output tensor y = θ₀ + f(τ₁ … τ_K), each τ perhaps thinned first, with f one of

        sum      Σ cᵢτᵢ
        vote     at most the largest |cᵢτᵢ| (`added`: at most Σ|cᵢτᵢ|); where something is kept, at least the smallest
                 of the kept |cᵢτᵢ|, and (`share` above 0) at least |Σ cᵢτᵢ| / share
        largest  the |cᵢτᵢ| that is largest

    `sizes`: Σ of the absolute coefficients of all inputs, for what rounding does; `steps`: roundings on the way.
    """

    how: How
    factors: Mapping[Key, float]
    thinned: Mapping[Key, Apply]
    base: Key | None
    sizes: Mapping[Key, float]
    steps: int
    unit: float  # the largest relative error of one rounding on the way
    share: float = 0.0
    added: bool = False


def joined(tensor: OutputTensor) -> Joined:
    """How the tensor joins its experts; Unbounded where that is not known."""
    steps = len(list(walk(tensor.node))) + sum(1 for n in walk(tensor.node) if isinstance(n, Read)) + 2
    unit = _unit(tensor.compute)
    _refuse_narrowing(tensor.node)
    found = _linear(tensor.node)
    if found is not None:
        factors = {key: signed for key, (signed, _) in found.items()}
        sizes = {key: size for key, (_, size) in found.items()}
        return Joined("sum", factors, {}, base_of(tensor), sizes, steps, unit)
    return _after_thinning(tensor, steps, unit)


def base_of(tensor: OutputTensor) -> Key | None:
    """The tensor that all task vectors of an expression start from; None where there are none, or several."""
    found: set[Key] = set()
    for node in walk(tensor.node):
        if isinstance(node, Difference):
            inner = _bare(node.base)
            if not isinstance(inner, Read):
                return None
            found.add((inner.source, inner.meta.name))
    return found.pop() if len(found) == 1 else None


def rounding(dtype: DType) -> float:
    """The largest relative error of rounding to a type."""
    return 2.0 ** -_PRECISION.get(dtype.name, 2)


def _unit(compute: DType) -> float:
    if compute.name not in _PRECISION:
        raise Unbounded(f"it is computed in {compute.name}")
    return rounding(compute)


def _refuse_narrowing(node: Node) -> None:
    """Tensors that are rounded before they are compared have other changes than those that are catalogued."""
    for part in walk(node):
        if isinstance(part, Convert) and isinstance(part.child, Read):
            stored = part.child.meta.dtype.name
            exact = stored == part.dtype.name or part.dtype.name in ("float32", "float64")
            if stored not in _PRECISION or not exact or (stored, part.dtype.name) == ("float64", "float32"):
                raise Unbounded(f"its inputs are rounded from {stored} to {part.dtype.name} first")


def _bare(node: Node) -> Node:
    while isinstance(node, Convert):
        node = node.child
    return node


def _linear(node: Node) -> dict[Key, tuple[float, float]] | None:
    """The coefficient of every tensor that a weighted sum reads, and the sum of its absolute parts; else None."""
    if isinstance(node, Read):
        return {(node.source, node.meta.name): (1.0, 1.0)}
    if isinstance(node, Convert):
        return _linear(node.child) if node.dtype.name in _PRECISION else None
    if isinstance(node, Difference):
        return _combined([(1.0, node.expert), (-1.0, node.base)])
    if isinstance(node, Sum):
        return _combined(list(node.terms))
    if isinstance(node, Apply):
        weights = _weights(node)
        return None if weights is None else _combined(list(zip(weights, node.inputs, strict=True)))
    return None


def _weights(node: Apply) -> list[float] | None:
    """The coefficients of a stage that is a weighted sum of its inputs; None for any other stage."""
    values = dict(node.values)
    if node.stage in ("scale", "negate") and set(values) == {"lam"}:
        return [float(values["lam"]) * (1 if node.stage == "scale" else -1)]
    if node.stage == "passthrough" and len(node.inputs) == 1:
        (factor,) = each(values.get("scale"), 1)
        return [1.0 if factor is None else float(factor)]
    if node.stage not in ("weighted_sum", "linear") or not set(values) <= {"weight", "normalize"}:
        return None
    weights = [float(w) for w in each(values.get("weight", 1.0), len(node.inputs))]
    if values.get("normalize", node.stage == "linear"):
        share = sum(weights)
        return [w / share for w in weights] if abs(share) >= _NEGLIGIBLE else None
    return weights


def _combined(terms: list[tuple[float, Node]]) -> dict[Key, tuple[float, float]] | None:
    found: dict[Key, tuple[float, float]] = {}
    for factor, node in terms:
        inner = _linear(node)
        if inner is None:
            return None
        for key, (signed, size) in inner.items():
            before = found.get(key, (0.0, 0.0))
            found[key] = before[0] + factor * signed, before[1] + abs(factor) * size
    return found


def _after_thinning(tensor: OutputTensor, steps: int, unit: float) -> Joined:
    total = _bare(tensor.node)
    if not isinstance(total, Sum) or len(total.terms) != 2 or not isinstance(_bare(total.terms[0][1]), Read):
        raise Unbounded(_why(tensor.node))
    (first, ground), (scale, node) = total.terms
    base = _bare(ground)
    node = _bare(node)
    while isinstance(node, Apply) and node.stage in ("scale", "negate"):
        (factor,) = _weights(node) or [1.0]
        scale, node = scale * factor, _bare(node.inputs[0])
    if not isinstance(node, Apply) or first != 1 or not isinstance(base, Read):
        raise Unbounded(_why(tensor.node))
    weights, how, share, added = _combining(node)
    factors: dict[Key, float] = {}
    thinned: dict[Key, Apply] = {}
    for weight, child in zip(weights, node.inputs, strict=True):
        key, condition = _expert(child, base)
        if key in factors:
            raise Unbounded("an expert is there twice")
        factors[key] = scale * weight
        if condition is not None:
            thinned[key] = condition
    place = (base.source, base.meta.name)
    sizes = {
        **{key: abs(factor) for key, factor in factors.items()},
        place: 1 + sum(map(abs, factors.values())),
    }
    return Joined(how, factors, thinned, place, sizes, steps, unit, share, added)


def _combining(node: Apply) -> tuple[list[float], How, float, bool]:
    """Coefficients of a combine stage's inputs, what kind it is, and what a vote's values are divided by at most."""
    values = dict(node.values)
    count = len(node.inputs)
    if node.stage == "weighted_sum" and (weights := _weights(node)) is not None:
        return weights, "sum", 0.0, True
    if node.stage == "magmax":
        return [1.0] * count, "largest", 0.0, False
    if node.stage != "elect":
        raise Unbounded(_why(node))
    weights = [float(w) for w in each(values["weight"], count)]
    if values["zero_sign"] == "majority":
        raise Unbounded("tied votes get the sign that most coordinates have, which needs all of them")
    if min(weights) < _NEGLIGIBLE:
        raise Unbounded("a vote with weights that are not positive can be of any size")
    mean_by_weight = values["merge"] == "mean" and values["divisor"] == "weight"
    share = 1.0 if values["merge"] == "sum" else float(count)
    if mean_by_weight:  # a mean of the entries themselves: weights only say how much each counts
        share = float(count) if len(set(weights)) == 1 else 0.0
    if values["vote"] != "weighted":
        share = 0.0  # the sign may be another than that of the weighted sum
    own = [1.0] * count if mean_by_weight else weights
    return own, "vote", share, values["merge"] == "sum"


def _expert(node: Node, base: Read) -> tuple[Key, Apply | None]:
    """The expert whose task vector a node is, and the stage that thins it."""
    inner, condition = _bare(node), None
    if isinstance(inner, Apply):
        condition, inner = _condition(inner), _bare(inner.inputs[0])
    if not isinstance(inner, Difference):
        raise Unbounded(_why(node))
    expert, ground = _bare(inner.expert), _bare(inner.base)
    alike = isinstance(expert, Read) and isinstance(ground, Read) and expert.meta.name == ground.meta.name
    if not alike or (ground.source, ground.meta) != (base.source, base.meta):  # type: ignore[union-attr]
        raise Unbounded("its task vectors are not those of one base")
    return (expert.source, expert.meta.name), condition  # type: ignore[union-attr]


def _condition(node: Apply) -> Apply | None:
    """A stage that thins by magnitude; None where it keeps everything."""
    values = dict(node.values)
    if node.stage not in ("trim", "band", "drop"):
        raise Unbounded(_why(node))
    if values["density"] >= 1 and values.get("count") != "strict":
        return None
    if node.stage == "drop" or values.get("count") == "strict":
        raise Unbounded(_why(node))
    if values["rescale"] != "none":
        raise Unbounded("its factor depends on all of an expert")
    return node


def _why(node: Node) -> str:
    stages = [part.stage for part in walk(node) if isinstance(part, Apply)]
    for name in stages:
        if name in _UNSTEADY:
            return _UNSTEADY[name]
    told = f"`{stages[-1]}`" if stages else "it"
    return f"{told} is not a sum, a vote or the largest of task vectors of one base"
