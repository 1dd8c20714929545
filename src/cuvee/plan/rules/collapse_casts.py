"""A cast to a wider type and back is no cast: the bytes can travel as they are."""

from __future__ import annotations

from cuvee.core.dtypes import DType
from cuvee.plan.nodes import Convert, Node, Read

# Every value of the key is exactly a value of these.
_WIDER = {
    "float8_e4m3fn": {"float16", "bfloat16", "float32", "float64"},
    "float8_e5m2": {"float16", "bfloat16", "float32", "float64"},
    "float16": {"float32", "float64"},
    "bfloat16": {"float32", "float64"},
    "float32": {"float64"},
}


def collapse_casts(node: Node, stored: DType) -> Node:
    """Convert(Read x of dtype d, wider) stored as d → Read x."""
    if (
        isinstance(node, Convert)
        and isinstance(node.child, Read)
        and node.child.meta.dtype == stored
        and node.dtype.name in _WIDER.get(stored.name, ())
    ):
        return node.child
    return node
