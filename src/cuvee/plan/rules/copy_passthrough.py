"""A passthrough without a scale is its input."""

from __future__ import annotations

from cuvee.core.dtypes import DType
from cuvee.plan.nodes import Apply, Node


def copy_passthrough(node: Node, stored: DType) -> Node:
    """Drop a `passthrough` stage that scales by nothing."""
    if isinstance(node, Apply) and node.stage == "passthrough":
        scale = dict(node.values).get("scale")
        if scale is None or scale == (None,):
            return node.inputs[0]
    return node
