"""Task vectors that are known as products of factors, and what linear stages make of them.

Which differences adapters know by themselves is the plan's to say (`plan.changes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import torch
from cuvee.methods.contract import Factors, rows_of
from cuvee.methods.registry import stage
from cuvee.plan.changes import changes_of
from cuvee.plan.nodes import Apply, Difference, Node
from cuvee.sources.low_rank import LowRank
from cuvee.sources.source import Source

if TYPE_CHECKING:
    from torch import Tensor

_LINEAR = frozenset(
    {"weighted_sum", "scale", "negate"}
)  # stages whose result is Σ cᵢxᵢ with cᵢ from parameters alone


def factors_of(node: Node, sources: Mapping[str, Source], like: Tensor) -> Factors | None:
    """The task vector as a product, in the dtype and on the device of `like`; None where it is not known as one."""
    changes = changes_of(node, sources)
    if changes is None or not all(isinstance(change, LowRank) for change in changes):
        return None
    rows, columns = rows_of(node.shape)
    pairs: list[Any] = [change.factors(torch.float64) for change in changes if isinstance(change, LowRank)]
    lefts = [torch.zeros(rows, 0, dtype=torch.float64), *(left for left, _ in pairs)]
    rights = [torch.zeros(0, columns, dtype=torch.float64), *(right for _, right in pairs)]
    left, right = torch.cat(lefts, dim=1), torch.cat(rights, dim=0)
    own = [change.scale for change in changes if isinstance(change, LowRank)]
    scale = own[0] if len(own) == 1 and own[0] else 1.0
    return Factors(left.to(like.device, like.dtype), right.to(like.device, like.dtype), scale)


def product_of(node: Node, sources: Mapping[str, Source]) -> Factors | None:
    """The value of a linear combination of task vectors that are products, as one product of all their columns."""
    parts = _terms(node, sources)
    if parts is None:
        return None
    lefts = [part.left * coefficient for coefficient, part in parts]
    return Factors(torch.cat(lefts, dim=1), torch.cat([part.right for _, part in parts], dim=0))


def is_product(node: Node, sources: Mapping[str, Source]) -> bool:
    """Whether `product_of` knows the value; nothing is read."""
    if isinstance(node, Difference):
        found = changes_of(node, sources)
        return found is not None and all(isinstance(change, LowRank) for change in found)
    linear = isinstance(node, Apply) and node.stage in _LINEAR
    return linear and all(is_product(child, sources) for child in node.children)


def _terms(node: Node, sources: Mapping[str, Source]) -> list[tuple[float, Factors]] | None:
    if isinstance(node, Difference):
        found = factors_of(node, sources, torch.zeros(0, dtype=torch.float64))
        return None if found is None else [(1.0, found)]
    if not isinstance(node, Apply) or node.stage not in _LINEAR:
        return None
    below = [_terms(child, sources) for child in node.inputs]
    out: list[tuple[float, Factors]] = []
    for number, terms in enumerate(below):
        if terms is None:
            return None
        out += [(_coefficient(node, number) * c, part) for c, part in terms]
    return out


def _coefficient(node: Apply, number: int) -> float:
    """What the stage multiplies an input by: its own value where that input is 1 and the others are 0."""
    step = stage(node.stage)
    units = [torch.tensor([float(i == number)], dtype=torch.float64) for i in range(len(node.inputs))]
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in node.values}
    return float(step.function(units if step.role == "combine" else units[0], **values))
