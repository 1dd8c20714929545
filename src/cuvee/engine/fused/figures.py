"""What a stage must know of whole tensors before it can run: thresholds, factors, products; found in passes.

Each figure is a generator: it yields a probe, which is run over every tensor it spans, and is sent what that found.
Probes of several figures share a pass. Owns the arithmetic of `methods.summaries` on what the machine counted.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Collection, Generator, Mapping, Sequence
from typing import Any

from cuvee.engine.fused.builder import Unfusable
from cuvee.engine.fused.selection import Gathering, Probe, chosen_of, cuts, ranked
from cuvee.engine.fused.trace import TRACED
from cuvee.engine.kernels.library import Kernels, kernels
from cuvee.engine.memo import summary_values
from cuvee.methods.combine.ram import boosts
from cuvee.methods.combine.sce import energy_weights, selected_count
from cuvee.methods.conditions.band import counts
from cuvee.methods.conditions.trim import kept
from cuvee.methods.registry import stage
from cuvee.methods.summaries import Ties
from cuvee.plan.nodes import Apply, Node

_SMALLEST = 1e-7  # as in `rescaling`


def keeps_all(node: Node) -> bool:
    """Whether a stage thins by magnitude and drops nothing; `count: strict` drops the least even at density 1."""
    return isinstance(node, Apply) and node.stage in ("trim", "band") and not wanted(node)


def wanted(node: Apply) -> tuple[str, ...]:
    """The figures a stage needs with its parameter values, in the order they build on each other."""
    values = dict(node.values)
    if node.stage in ("trim", "band"):
        if values["density"] >= 1 and ties_of(node) != "none":
            return ()
        return ("cuts", "factor") if values["rescale"] == "l1" else ("cuts",)
    if node.stage == "drop":
        return ("factor",) if values["rescale"] == "l1" and values["density"] < 1 else ()
    if node.stage == "elect":
        return ("majority",) if values["zero_sign"] == "majority" else ()
    if node.stage == "sce":
        return ("cuts", "weights") if values["select_topk"] < 1 else ("weights",)
    if node.stage == "ram_plus":
        return ("boosts",)
    if node.stage == "pcb":
        return ("sizes", "scores")
    if node.stage in TRACED:
        return ("traced",) if stage(node.stage).scope_for(values) is not None else ()
    return _coefficients(node)


def _coefficients(node: Apply) -> tuple[str, ...]:
    """What combinations of whole vectors need."""
    if node.stage in ("multislerp", "karcher") and len(node.inputs) == 1:
        return ()
    if node.stage == "karcher":
        return ("coefficients",)
    return ("gram",) if node.stage in ("slerp", "nuslerp", "multislerp", "model_stock") else ()


def depends(node: Apply, figure: str) -> Collection[str] | None:
    """The values of a stage that a figure of it follows from, its inputs given; None for all of them."""
    if figure == "gram":
        return ()
    if figure == "traced":
        return summary_values(node.stage)
    if figure == "cuts":
        return ("select_topk", "guard") if node.stage == "sce" else ("density", "gamma", "count", "scope")
    if figure in ("sizes", "scores"):
        return ("clamp",) if figure == "sizes" else ("clamp", "ratio", "variant")
    return ("weight", "vote") if figure == "majority" else None


def gathering(figure: str, nodes: Sequence[Apply], kernels: Kernels) -> Generator[Any, Any, Any]:
    """The passes of one figure over the tensors of these nodes; returns its value for each of them.

    Each pass is a `Probe`, or several at once.
    """
    sizes = [math.prod(node.shape) for node in nodes]
    if figure == "cuts" and nodes[0].stage == "sce":
        return _varying(nodes[0], sizes, kernels)
    if figure == "weights":
        return _energies(nodes[0], sum(sizes))
    if figure == "traced":
        from cuvee.engine.fused.asking import summary_of

        return summary_of(nodes)
    if figure in ("sizes", "scores"):
        from cuvee.engine.fused.balance import spans

        return spans(figure, nodes, kernels)
    if figure == "boosts":
        return _boosts(nodes)
    if figure == "cuts":
        return cuts(kept_counts(nodes[0], sum(sizes)), sizes, kernels, ties=ties_of(nodes[0]))
    if figure == "factor":
        return _factor(len(nodes))
    if figure == "majority":
        return _majority(len(nodes))
    return _products(nodes[0])


def ties_of(node: Apply) -> Ties:
    """What becomes of entries that tie at the threshold, as the stages have it."""
    counts: Mapping[str, Ties] = {"official": "all", "strict": "none"}
    return counts.get(dict(node.values).get("count", ""), "index")


def kept_counts(node: Apply, size: int) -> list[int]:
    """How many of the largest of `size` magnitudes a stage that thins asks for."""
    values = dict(node.values)
    if node.stage == "band":
        removed, left = counts(size, values["density"], values["gamma"])
        return [removed, removed + left]
    return [kept(values["density"], size, ties_of(node))]


def _varying(node: Apply, sizes: list[int], kernels: Kernels) -> Gathering:
    """The coordinates of greatest variance that `sce` selects: a share of those that vary at all."""
    (size,) = sizes
    values = dict(node.values)

    def count(zeros: int) -> int:
        return min(selected_count(size - zeros, values["select_topk"], values["guard"]), size)

    goals = [lambda zeros: min(size - count(zeros), size - 1)]
    zeros, (rank,) = yield from ranked(goals, size, kernels, zeros=True)
    found = yield from chosen_of(count(zeros), rank if 0 < count(zeros) < size else None, sizes, "index")
    return [found]


def _energies(node: Apply, size: int) -> Gathering:
    (lines,) = yield Probe("energies")
    return [energy_weights([exact(line) for line in lines], size, dict(node.values)["guard"])]


def _boosts(nodes: Sequence[Apply]) -> Gathering:
    found = yield Probe("movers")
    inputs = range(len(nodes[0].inputs))
    shared, unique = ([sum(counts[i][which] for counts in found) for i in inputs] for which in range(2))
    values = dict(nodes[0].values)
    return [boosts(shared, unique, values["epsilon"], values["r"], values["alpha"])] * len(nodes)


def _factor(tensors: int) -> Gathering:
    found = yield Probe("norms")
    before, after = (exact(*(lines[i] for lines in found)) for i in range(2))
    return [factor_of(before, after)] * tensors


def factor_of(before: float, after: float) -> float:
    """What restores the l1 norm `before` of what has the norm `after`."""
    return 1.0 if min(before, after) < _SMALLEST else before / after


def _majority(tensors: int) -> Gathering:
    found = yield Probe("signs")
    total = exact(*(lines[0] for lines in found))
    return [math.copysign(1.0, total) if total else 0.0] * tensors


def _products(node: Apply) -> Gathering:
    """The Gram matrix; for `karcher` the coefficients that follow from it."""
    (lines,) = yield Probe("gram")
    count = len(node.inputs)
    pairs = [(i, j) for i in range(count) for j in range(i, count)]
    sums = {pair: exact(line) for pair, line in zip(pairs, lines, strict=True)}
    gram = [[sums[min(i, j), max(i, j)] for j in range(count)] for i in range(count)]
    if node.stage != "karcher":
        return [gram]
    from cuvee.methods.coefficients import normalized
    from cuvee.methods.combine.karcher import mean_coefficients
    from cuvee.methods.parameters import each

    values = dict(node.values)
    weights = normalized(each(values["weight"], count))
    return [list(mean_coefficients(gram, weights, max_iter=values["max_iter"], tol=values["tol"]))]


def exact(*parts: Sequence[float] | ctypes.Array[ctypes.c_double]) -> float:
    """The sum of all numbers, rounded once; Unfusable where it is not finite."""
    machine = kernels() if all(isinstance(part, ctypes.Array) for part in parts) else None
    try:
        total = math.fsum(x for part in parts for x in part) if machine is None else machine.total(*parts)
    except (OverflowError, ValueError):
        total = math.inf
    if not math.isfinite(total):
        raise Unfusable("sums are not finite")
    return total
