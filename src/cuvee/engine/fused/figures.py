"""What a stage must know of whole tensors before it can run: thresholds, factors, products; found in passes.

Each figure is a generator: it yields a probe, which is run over every tensor it spans, and is sent what that found.
Probes of several figures share a pass. Owns the arithmetic of `methods.summaries` on what the machine counted.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cuvee.engine.fused.builder import Unfusable
from cuvee.engine.fused.stages import ALL, Chosen
from cuvee.engine.kernels.library import Kernels
from cuvee.methods.conditions.band import counts
from cuvee.plan.nodes import Apply

_SMALLEST = 1e-7  # as in `rescaling`

Kind = Literal["high", "low", "tied", "norms", "gram", "signs"]


@dataclass(frozen=True, slots=True)
class Probe:
    """One pass: what is gathered, and for which leading digits (`low`) or whole bits (`tied`)."""

    kind: Kind
    bits: tuple[int, ...] = ()


# `high`, `low`: one table for each digit, all tensors counted together; the others: an entry for each tensor, with a
# count for each of `bits`, or lines of float64 sums for each figure.
Found = list[Any]
Gathering = Generator[Probe, Found, Any]


def wanted(node: Apply) -> tuple[str, ...]:
    """The figures a stage needs with its parameter values, in the order they build on each other."""
    values = dict(node.values)
    if node.stage in ("trim", "band"):
        if values["density"] >= 1:
            return ()
        return ("cuts", "factor") if values["rescale"] == "l1" else ("cuts",)
    if node.stage == "drop":
        return ("factor",) if values["rescale"] == "l1" and values["density"] < 1 else ()
    if node.stage == "elect":
        return ("majority",) if values["zero_sign"] == "majority" else ()
    if node.stage in ("multislerp", "karcher") and len(node.inputs) == 1:
        return ()
    if node.stage == "karcher":
        return ("coefficients",)
    return ("gram",) if node.stage in ("slerp", "nuslerp", "multislerp", "model_stock") else ()


def gathering(figure: str, nodes: Sequence[Apply], kernels: Kernels) -> Gathering:
    """The passes of one figure over the tensors of these nodes; returns its value for each of them."""
    sizes = [math.prod(node.shape) for node in nodes]
    if figure == "cuts":
        return _cuts(nodes[0], sizes, kernels)
    if figure == "factor":
        return _factor(len(nodes))
    if figure == "majority":
        return _majority(len(nodes))
    return _products(nodes[0])


def _keeps(node: Apply, size: int) -> list[int]:
    values = dict(node.values)
    density = values["density"]
    if node.stage == "band":
        removed, kept = counts(size, density, values["gamma"])
        return [removed, removed + kept]
    if values["count"] == "official":
        return [int(density * size) + 1]
    return [max(1, int(density * size)) if density > 0 else 0]


def _cuts(node: Apply, sizes: list[int], kernels: Kernels) -> Gathering:
    """Exact selection in two passes over the bits, and a third where ties must be shared out between tensors."""
    total = sum(sizes)
    keeps = [min(max(count, 0), total) for count in _keeps(node, total)]
    official = node.stage == "trim" and dict(node.values)["count"] == "official"
    inner = sorted({count for count in keeps if 0 < count < total})
    ranks: dict[int, tuple[int, int, int]] = {}
    if inner:
        (table,) = yield Probe("high")
        tops = {count: _found(kernels, table, total - count) for count in inner}
        digits = tuple(sorted({digit for digit, _, _ in tops.values()}))
        tables = yield Probe("low", digits)
        lows = dict(zip(digits, tables, strict=True))
        for count, (digit, less, _) in tops.items():
            bottom, below, equal = _found(kernels, lows[digit], total - count - less)
            ranks[count] = (digit << 16 | bottom, less + below, equal)
    shared: dict[int, int] = {}  # bits → ties that are kept
    chosen = []
    for count in keeps:
        bits, less, equal = ranks.get(count, (0, 0, 0))
        above = total - less - equal
        if count in ranks and not official and above + equal > count:
            shared[count] = count - above
        chosen.append(Chosen(above + equal if official and count in ranks else count, total, bits, ALL))
    quotas = yield from _quotas(sizes, {count: (ranks[count][0], left) for count, left in shared.items()})
    return [
        [
            Chosen(c.kept, c.total, c.bits, quotas[count][place] if count in quotas else c.ties)
            for c, count in zip(chosen, keeps, strict=True)
        ]
        for place in range(len(sizes))
    ]


def _quotas(
    sizes: list[int], shared: dict[int, tuple[int, int]]
) -> Generator[Probe, Found, dict[int, list[int]]]:
    """For each count the ties that each tensor keeps, the first tensors first."""
    if len(sizes) == 1:
        return {count: [left] for count, (_, left) in shared.items()}
    quotas: dict[int, list[int]] = {}
    if shared:
        found = yield Probe("tied", tuple(bits for bits, _ in shared.values()))
        for number, (count, (_, left)) in enumerate(shared.items()):
            quotas[count] = []
            for ties in found:
                quotas[count].append(min(left, ties[number]))
                left -= quotas[count][-1]
    return quotas


def _factor(tensors: int) -> Gathering:
    found = yield Probe("norms")
    before, after = (_exact([x for lines in found for x in lines[i]]) for i in range(2))
    factor = 1.0 if min(before, after) < _SMALLEST else before / after
    return [factor] * tensors


def _majority(tensors: int) -> Gathering:
    found = yield Probe("signs")
    total = _exact([x for lines in found for x in lines[0]])
    return [math.copysign(1.0, total) if total else 0.0] * tensors


def _products(node: Apply) -> Gathering:
    """The Gram matrix; for `karcher` the coefficients that follow from it."""
    (lines,) = yield Probe("gram")
    count = len(node.inputs)
    pairs = [(i, j) for i in range(count) for j in range(i, count)]
    sums = {pair: _exact(line) for pair, line in zip(pairs, lines, strict=True)}
    gram = [[sums[min(i, j), max(i, j)] for j in range(count)] for i in range(count)]
    if node.stage != "karcher":
        return [gram]
    from cuvee.core.lazy import torch
    from cuvee.methods.coefficients import normalized
    from cuvee.methods.combine.karcher import mean_coefficients
    from cuvee.methods.parameters import each

    values = dict(node.values)
    with torch.no_grad():
        weights = normalized(each(values["weight"], count))
        found = mean_coefficients(gram, weights, max_iter=values["max_iter"], tol=values["tol"])
    return [list(found)]


def _found(kernels: Kernels, table: Any, goal: int) -> tuple[int, int, int]:
    found = kernels.find(table, goal)
    if found is None:
        raise Unfusable("an input changed between two passes")
    return found


def _exact(lines: Sequence[float]) -> float:
    """The sum, rounded once; Unfusable where it is not finite."""
    try:
        total = math.fsum(lines)
    except (OverflowError, ValueError):
        total = math.inf
    if not math.isfinite(total):
        raise Unfusable("sums are not finite")
    return total
