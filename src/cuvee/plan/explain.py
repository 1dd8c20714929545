"""What a plan does to single tensors: their parameters with the origin of every value, and expressions as graphs."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import Any

from cuvee.core.names import printable
from cuvee.plan.nodes import Agree, Convert, Coordinate, Difference, Enter, Gather, Leave, Node, Read, Sum
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.plan.summary import duration, explain_html, explain_text, number, size
from cuvee.recipe.settings import Resolved


def selected(plan: Plan, pattern: str) -> list[OutputTensor]:
    """Output tensors whose names fit a glob."""
    return [t for t in plan.tensors if fnmatch.fnmatchcase(t.meta.name, pattern)]


def tensor_rows(tensor: OutputTensor) -> Iterator[tuple[str, str, str]]:
    """(parameter, value, origin) for one tensor: which line, default or curve gave each value."""
    for name, resolved in tensor.parameters.items():
        if isinstance(resolved, Resolved):
            yield name, number(resolved.value), _origin(resolved)
            continue
        for expert, one in resolved.items():
            yield f"{name} [{printable(expert, 40)}]", number(one.value), _origin(one)


def _origin(resolved: Resolved) -> str:
    where = resolved.where
    if where is None or where.line is None:
        return resolved.origin
    kind = "curve, " if resolved.origin == "curve" else ""
    return f"{kind}{where.file or 'recipe'}:{where.line}:{where.column} ({where.path})"


def tensor_json(tensor: OutputTensor) -> dict[str, Any]:
    """One tensor with its parameters and their origins, as plain data."""
    return {
        "name": tensor.meta.name,
        "dtype": tensor.meta.dtype.name,
        "shape": list(tensor.meta.shape),
        "module": tensor.module,
        "layer": tensor.layer,
        "role": tensor.role,
        "action": tensor.action,
        "parameters": [{"parameter": p, "value": v, "origin": o} for p, v, o in tensor_rows(tensor)],
        "expression": "\n".join(graph(tensor.node)),
    }


def graph(node: Node, depth: int = 0) -> Iterator[str]:
    """The expression as an indented tree."""
    pad = "  " * depth
    yield pad + _operation(node)
    for child in node.children:
        yield from graph(child, depth + 1)


def _operation(node: Node) -> str:
    if isinstance(node, Read):
        return f"read {printable(node.source, 40)} · {printable(node.meta.name)} {node.meta.dtype}"
    if isinstance(node, Convert):
        return f"as {node.dtype}"
    if isinstance(node, Difference):
        return "expert − base"
    if isinstance(node, Sum):
        return "sum " + " ".join(f"{c:+g}" for c, _ in node.terms)
    if isinstance(node, Gather):
        return f"rows realigned to {node.table.rows}"
    if isinstance(node, Agree):
        return "must agree"
    if isinstance(node, Coordinate):
        return f"coordinates of input {node.index + 1}"
    if isinstance(node, Leave):
        return f"back from the space `{node.enter.stage}`"
    if isinstance(node, Enter):
        return f"into the space `{node.stage}`"
    values = ", ".join(f"{k}={_short(v)}" for k, v in node.values)
    return f"{node.stage}({values})" + (" over the whole model" if node.group else "")


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(number(v) for v in value) + "]"
    return number(value)


def dot(node: Node) -> str:
    """The expression in Graphviz's language."""
    lines: list[str] = []
    numbers: dict[int, int] = {}

    def visit(current: Node) -> int:
        if id(current) in numbers:
            return numbers[id(current)]
        number = numbers[id(current)] = len(numbers)
        text = _operation(current).replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'  n{number} [label="{text}"];')
        lines.extend(f"  n{visit(child)} -> n{number};" for child in current.children)
        return number

    visit(node)
    return "\n".join(["digraph plan {", "  rankdir=LR; node [shape=box];", *lines, "}"])


__all__ = [
    "dot",
    "duration",
    "explain_html",
    "explain_text",
    "graph",
    "selected",
    "size",
    "tensor_json",
    "tensor_rows",
]
