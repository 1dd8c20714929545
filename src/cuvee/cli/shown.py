"""Inspections and differences as text."""

from __future__ import annotations

import re
from typing import Any

from cuvee.api.compare import Diff
from cuvee.cli.render import table
from cuvee.core.names import printable
from cuvee.plan.explain import size


def inspect_text(summary: dict[str, Any], *, everything: bool) -> str:
    """A checkpoint for people; without `everything` one line stands for a tensor in all layers."""
    family = summary["family"]
    layers = ", ".join(f"{module} {count}" for module, count in family["layers"].items() if count)
    kinds = ", ".join(f"{count} {name}" for name, count in summary["stored_types"].items())
    lines = [
        f"source      {printable(summary['source'])}",
        f"family      {family['name']}{'' if family['known'] else ' (from names and shapes)'}",
        f"layers      {layers or 'none found'}",
        f"parameters  {summary['parameters']:,} in {size(summary['stored_bytes'])}",
        f"tensors     {len(summary['tensors'])} ({kinds})",
        f"files       {', '.join(printable(f) for f in summary['files']) or 'none'}",
    ]
    lines += [f"adapter     {_overlay(facts)}" for facts in summary["overlays"]]
    lines += [f"{note['severity']:<11} {note['message']}" for note in summary["notes"]]
    rows = [
        [printable(t["name"]), _kind(t), "×".join(map(str, t["shape"])) or "scalar", t["role"]]
        for t in summary["tensors"]
    ]
    shown = rows if everything else _by_template(rows, summary["tensors"])
    return "\n".join(lines) + "\n\n" + table(["tensor", "dtype", "shape", "role"], shown)


def package_text(summary: dict[str, Any]) -> str:
    """A package for people: its base, and for each task its codecs and bytes."""
    base, found = summary["base"], summary["bytes"]
    shown = "included" if base["included"] else printable(base["path"])
    given = ", ".join(f"{name} {value}" for name, value in summary["parameters"].items())
    lines = [
        f"package     {printable(summary['source'])}",
        f"method      {summary['method']}{f' ({printable(given, 200)})' if given else ''}",
        f"base        {shown}, {size(base['bytes'])}",
        f"shared      {size(found['shared'])}",
        f"size        {size(found['total'])}, where {len(summary['tasks'])} separate models take "
        f"{size(found['separate_models'])}",
    ]
    rows = [
        [
            printable(name),
            size(task["bytes"]),
            ", ".join(f"{len(names)} {codec}" for codec, names in task["codecs"].items()) or "as the base",
        ]
        for name, task in summary["tasks"].items()
    ]
    return "\n".join(lines) + "\n\n" + table(["task", "bytes", "tensors by codec"], rows)


def _kind(tensor: dict[str, Any]) -> str:
    """How a tensor is stored, and what it is read as where that is another type."""
    stored, read = tensor["stored"], tensor["dtype"]
    return str(read) if stored == read else f"{stored} as {read}"


def _overlay(facts: dict[str, Any]) -> str:
    ranks = "/".join(map(str, facts["ranks"])) or "none"
    return (
        f"{printable(facts['name'])}: rank {ranks}, {size(facts['nbytes'])}, changes {facts['changed']} tensors, "
        f"replaces {facts['replaced']}"
    )


def _by_template(rows: list[list[str]], tensors: list[dict[str, Any]]) -> list[list[str]]:
    """Rows of equal template, dtype and shape joined: `model.layers.{0-23}.mlp.up_proj.weight`."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for row, tensor in zip(rows, tensors, strict=True):
        layer = tensor["layer"]
        template = row[0] if layer is None else re.sub(rf"\.{layer}\.", ".{}.", f".{row[0]}", count=1)[1:]
        groups.setdefault((template, *row[1:]), []).append(-1 if layer is None else layer)
    out = []
    for (template, *rest), found in groups.items():
        span = f"{min(found)}-{max(found)}" if len(found) > 1 else str(found[0])
        out.append([template.replace("{}", "{" + span + "}"), *rest])
    return out


def diff_text(found: Diff, *, everything: bool) -> str:
    """Differences for people: one line a tensor that differs, then the sum."""
    rows = [
        [
            printable(t.name),
            t.status.replace("_", " "),
            _figure(t.norm_difference),
            _figure(None if not t.norm_a or t.norm_difference is None else t.norm_difference / t.norm_a),
            _figure(t.cosine, 6),
            _figure(t.max_change),
            "" if t.changed is None else f"{t.changed} of {t.numel}",
        ]
        for t in found.tensors
        if everything or t.status != "equal"
    ]
    equal = sum(t.status == "equal" for t in found.tensors)
    last = f"{equal} of {len(found.tensors)} tensors are equal"
    if not rows:
        return last
    header = ["tensor", "status", "‖a−b‖", "‖a−b‖/‖a‖", "cosine", "max change", "changed"]
    return table(header, rows) + "\n" + last


def _figure(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}g}"
