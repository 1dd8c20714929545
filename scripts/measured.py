"""What was measured of each method: memory on a sharded checkpoint, and its row in the evaluation's table of all.

Owns how the files of `benchmarks/results` are read; measures nothing, and must not know any method.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
RESULTS = BENCHMARKS / "results"
HEAD = ("method", "each model", "memory", "allowed", "read ÷ predicted", "untuned", "tuned")
_LABEL = re.compile(r"(\w+)(?: \((untuned|budget \d+)\))?(?:, reconstructed)?")


@dataclass(frozen=True)
class Measured:
    """Bytes of one model, the resident maximum beyond that on 1 MB, what is allowed, bytes read ÷ bytes predicted.

    `steps`: iterations, where they were made fewer than the method's own.
    """

    model: int
    peak: int
    bound: int
    reads: float
    steps: int | None


def memory(results: Path = RESULTS) -> dict[str, Measured]:
    """The largest checkpoint each method was measured on, of all files named `catalogue*.json`; failures are none."""
    found: dict[str, Measured] = {}
    for path in sorted(results.glob("catalogue*.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["results"]:
            if "failed" in row:
                continue
            reads = row["read"] / max(1, row["read_said"])
            one = Measured(_bytes_of(row["size"]), row["peak"], row["bound"], reads, row.get("steps"))
            name = row["method"]
            if name not in found or one.model >= found[name].model:
                found[name] = one
    return found


def scores(page: Path = RESULTS / "every-method.md") -> dict[str, dict[str, str]]:
    """Normalised scores by method and by `untuned` or `tuned` ("" of references), from the leaderboard's rows."""
    found: dict[str, dict[str, str]] = {}
    for cells in _rows(page.read_text(encoding="utf-8").splitlines()):
        label = _LABEL.fullmatch(cells.get("method", ""))
        if label and "normalised" in cells:
            way = "tuned" if (label[2] or "").startswith("budget") else label[2] or ""
            found.setdefault(label[1], {}).setdefault(way, cells["normalised"])
    return found


def cells(name: str, shown: str, held: Mapping[str, Measured], rows: Mapping[str, Any]) -> list[str]:
    """One line of the table; what was not measured is empty."""
    own = rows.get(name, {})
    scored = [own.get("untuned", ""), own.get("tuned", "")]
    one = held.get(name)
    if one is None:
        return [shown, "", "", "", "", *scored]
    over = " (over)" if one.peak > one.bound else ""
    over += "" if one.steps is None else f" ({one.steps} step{'s' * (one.steps != 1)})"
    return [
        shown,
        f"{one.model / 1e9:.2f} GB",
        f"{one.peak / 1e6:,.0f} MB{over}",
        f"{one.bound / 1e6:,.0f} MB",
        f"{one.reads:.2f}",
        *scored,
    ]


def _rows(lines: Sequence[str]) -> Iterator[dict[str, str]]:
    """Lines of markdown tables by their heads."""
    head: list[str] = []
    for line in lines:
        if not line.startswith("|"):
            head = []
            continue
        values = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not head:
            head = values
        elif len(values) == len(head):
            yield dict(zip(head, values, strict=True))


def _bytes_of(size: str) -> int:
    """Of one synthetic model in bfloat16."""
    spec = importlib.util.spec_from_file_location("checkpoints", BENCHMARKS / "checkpoints.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shapes: Mapping[str, tuple[int, ...]] = module.shapes(size)
    return 2 * sum(math.prod(shape) for shape in shapes.values())
