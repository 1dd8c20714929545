"""What a plan adds to its base, tensor by tensor, without adding it: for outputs that hold changes.

Owns the way into expressions: which part of one is the base, which the change, and whether anything changes at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuvee.core.lazy import torch
from cuvee.engine.changes import product_of
from cuvee.engine.evaluate import Evaluator
from cuvee.methods.contract import Factors
from cuvee.plan.changes import changes_of
from cuvee.plan.nodes import Convert, Difference, Node, Read, Sum, walk
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.sources.source import Source

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Change:
    """An output tensor that differs from the base's: the node of the difference, or None where the base has none."""

    tensor: OutputTensor
    delta: Node | None

    def value(self, evaluator: Evaluator) -> Tensor:
        """The difference as a tensor; the whole tensor where the base has none."""
        return whole(self.delta or self.tensor.node, evaluator)

    def product(self, sources: Mapping[str, Source]) -> Factors | None:
        """The difference as a product, where that is known without computing it."""
        return None if self.delta is None else product_of(self.delta, sources)


def changes(plan: Plan) -> Iterator[Change]:
    """Every tensor that may differ from the base's; those that cannot are left out."""
    sources = {key: opened.source for key, opened in plan.sources.items()}
    bases = {read.source for tensor in plan.tensors if (read := _base(tensor.node)) is not None}
    for tensor in plan.tensors:
        base = _base(tensor.node)
        if base is not None:
            (_, (_, delta)) = _unwrapped(tensor.node).terms  # type: ignore[union-attr]
            if not _unchanged(delta, sources):
                yield Change(tensor, delta)
        elif not _copied(tensor.node, bases):
            yield Change(tensor, None)


def whole(node: Node, evaluator: Evaluator) -> Tensor:
    """The value of a node, in its shape."""
    parts = [value for _, _, value in evaluator.blocks(node)]
    return torch.cat(parts).reshape(node.shape) if parts else torch.zeros(node.shape)


def adds_to_base(plan: Plan) -> bool:
    """Whether the plan's method adds something to a base, so that there is a change to speak of."""
    merged = [tensor for tensor in plan.tensors if tensor.action == "merged"]
    return any(_base(tensor.node) is not None for tensor in merged)


def _unwrapped(node: Node) -> Node:
    return node.child if isinstance(node, Convert) else node


def _base(node: Node) -> Read | None:
    """The tensor that a merged one adds to, if it is one of a source as it stands."""
    total = _unwrapped(node)
    if not isinstance(total, Sum) or len(total.terms) != 2:
        return None
    inner = _unwrapped(total.terms[0][1])
    return inner if isinstance(inner, Read) else None


def _unchanged(delta: Node, sources: Mapping[str, Source]) -> bool:
    differences = [node for node in walk(delta) if isinstance(node, Difference)]
    return bool(differences) and all(changes_of(node, sources) == () for node in differences)


def _copied(node: Node, bases: set[str]) -> bool:
    inner = _unwrapped(node)
    return isinstance(inner, Read) and inner.source in bases
