"""A plan for people: the summary screen, the table of tensors with the origin of every value, and a graph."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from cuvee.core.names import printable
from cuvee.plan.cost import cost
from cuvee.plan.nodes import Agree, Convert, Difference, Gather, Node, Read, Sum
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.recipe.settings import Resolved


def size(count: float) -> str:
    """Bytes in the unit that fits: `16.1 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def explain_text(plan: Plan) -> str:
    """The summary: recipe, sources, output, work, cost, notes."""
    return "\n".join(_lines(plan))


def _lines(plan: Plan) -> Iterator[str]:
    figures = cost(plan)
    name = printable(plan.recipe.file or "(in Python)")
    yield f"recipe   {name}   method  {plan.method_label}{_shared(plan)}"
    for i, (key, opened) in enumerate(plan.sources.items()):
        tensors = opened.source.tensors
        total = sum(m.nbytes for m in tensors.values())
        family = opened.family.name if opened.family else ""
        kinds = "/".join(sorted({m.dtype.name for m in tensors.values()})[:3])
        mark = "sources" if i == 0 else "       "
        label = "base" if key == plan.recipe.base else printable(key, 32)
        shown = printable(opened.source.label, 60)
        yield f"{mark}  {label:<12} {shown}   {size(total)} {kinds}   {len(tensors)} tensors   {family}"
    files = len(plan.layout.files)
    kinds = "/".join(sorted({t.meta.dtype.name for t in plan.tensors}))
    compute = "/".join(sorted({t.compute.name for t in plan.tensors if t.action == "merged"})) or "none"
    yield (
        f"output   {len(plan.tensors)} tensors, {size(plan.layout.total_bytes)} {kinds}, "
        f"{files} file{'s' if files > 1 else ''}   arithmetic {compute}"
    )
    yield (
        f"work     {figures.merged} merged · {figures.copied} copied · {figures.converted} converted"
        f" · {figures.summarised} read twice or more"
    )
    whole = f" + {size(figures.largest_whole)} for the largest whole tensor" if figures.largest_whole else ""
    yield f"cost     reads {size(figures.reads)} · writes {size(figures.writes)} · blocks within the budget{whole}"
    for i, note in enumerate(plan.notes):
        yield f"{'notes' if i == 0 else '     '}    {note.severity}: {note.message}"


def _shared(plan: Plan) -> str:
    for tensor in plan.tensors:
        shown = [f"{k} {_value(v)}" for k, v in tensor.parameters.items()]
        if shown:
            return ", " + ", ".join(shown)
    return ""


def _value(resolved: Resolved | Mapping[str, Resolved]) -> str:
    if isinstance(resolved, Resolved):
        return _number(resolved.value)
    values = [_number(r.value) for r in resolved.values()]
    return values[0] if len(set(values)) == 1 else "/".join(values)


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def selected(plan: Plan, pattern: str) -> list[OutputTensor]:
    """Output tensors whose names fit a glob."""
    return [t for t in plan.tensors if fnmatch.fnmatchcase(t.meta.name, pattern)]


def tensor_rows(tensor: OutputTensor) -> Iterator[tuple[str, str, str]]:
    """(parameter, value, origin) for one tensor: which line, default or curve gave each value."""
    for name, resolved in tensor.parameters.items():
        if isinstance(resolved, Resolved):
            yield name, _number(resolved.value), _origin(resolved)
            continue
        for expert, one in resolved.items():
            yield f"{name} [{printable(expert, 40)}]", _number(one.value), _origin(one)


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
    yield pad + _title(node)
    for child in node.children:
        yield from graph(child, depth + 1)


def _title(node: Node) -> str:
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
    values = ", ".join(f"{k}={_short(v)}" for k, v in node.values)
    return f"{node.stage}({values})" + (" over the whole model" if node.group else "")


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_number(v) for v in value) + "]"
    return _number(value)


def explain_html(plan: Plan) -> str:
    """The summary for notebooks."""
    rows = "".join(f"<div>{escape(line)}</div>" for line in _lines(plan))
    return f"<div style='font-family:monospace;white-space:pre-wrap'>{rows}</div>"


def dot(node: Node) -> str:
    """The expression in Graphviz's language."""
    lines: list[str] = []
    numbers: dict[int, int] = {}

    def visit(current: Node) -> int:
        if id(current) in numbers:
            return numbers[id(current)]
        number = numbers[id(current)] = len(numbers)
        text = _title(current).replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'  n{number} [label="{text}"];')
        lines.extend(f"  n{visit(child)} -> n{number};" for child in current.children)
        return number

    visit(node)
    return "\n".join(["digraph plan {", "  rankdir=LR; node [shape=box];", *lines, "}"])


__all__ = [
    "dot",
    "explain_html",
    "explain_text",
    "graph",
    "selected",
    "size",
    "tensor_json",
    "tensor_rows",
]
