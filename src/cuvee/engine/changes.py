"""Task vectors that a source knows by itself: what adapters add, as it stands in their files.

Owns the question whether a difference of two tensors is one. Such a difference needs no subtraction, so it has none of
its rounding. Knows sources by their protocol alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cuvee.core.dtypes import FLOAT32, FLOAT64, DType
from cuvee.core.lazy import torch
from cuvee.methods.contract import Factors, rows_of
from cuvee.methods.registry import stage
from cuvee.plan.nodes import Apply, Convert, Difference, Node, Read
from cuvee.sources.low_rank import Delta, LowRank
from cuvee.sources.source import Source

if TYPE_CHECKING:
    from torch import Tensor

_LINEAR = frozenset(
    {"weighted_sum", "scale", "negate"}
)  # stages whose result is Σ cᵢxᵢ with cᵢ from parameters alone


def changes_of(node: Node, sources: Mapping[str, Source]) -> Sequence[Delta] | None:
    """The deltas whose sum an expert − base is; None where it must be subtracted."""
    if not isinstance(node, Difference) or dtype_of(node.base) not in (FLOAT32, FLOAT64):
        return None
    expert, base = _read(node.expert), _read(node.base)
    if expert is None or base is None or expert.meta.name != base.meta.name:
        return None
    changes = getattr(sources[expert.source], "changes", None)
    found: Sequence[Delta] | None = changes(expert.meta.name, sources[base.source]) if changes else None
    return found


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


def dtype_of(node: Node) -> DType | None:
    """The type of an input of a task vector, which is a tensor of a source or one converted."""
    if isinstance(node, Convert):
        return node.dtype
    return node.meta.dtype if isinstance(node, Read) else None


def _read(node: Node) -> Read | None:
    inner = node.child if isinstance(node, Convert) else node
    return inner if isinstance(inner, Read) else None


def product_of(node: Node, sources: Mapping[str, Source]) -> Factors | None:
    """The value of a linear combination of task vectors that are products, as one product of all their columns."""
    parts = _terms(node, sources)
    if parts is None:
        return None
    lefts = [part.left * coefficient for coefficient, part in parts]
    return Factors(torch.cat(lefts, dim=1), torch.cat([part.right for _, part in parts], dim=0))


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
