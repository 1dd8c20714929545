"""The page of figures, made from the result files beside this program.

    python benchmarks/figures.py > docs/figures.md

Says what was measured and what could at most be reached, in tables for readers; a file that is missing is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
HEAD = """# Figures

How fast merges are and what memory they take, on two cores without a GPU. Made by `benchmarks/figures.py` from the
files in `benchmarks/results`; each program in `benchmarks` says in its first lines how it measures.
"""
TIME = """## Time beside the floor

Wall time of `cuvee merge` without start-up, divided by that of the **floor**: plain large reads of every input byte,
plain writes of every output byte, `fsync`, a thread for each core, in the same round. Medians of {rounds} rounds over a
Llama of {size} parameters in bfloat16 (a base and up to 3 experts). Under 1 is faster than the floor, which does not
read ahead. *Cold*: with dropped caches; where the file system is a virtual machine's, its host may still
remember. *Start* is the whole command on a checkpoint of 1 MB, Python's own start among it.
"""
RIVAL = """## Beside MergeKit

The same recipes and files in the same rounds, from the command to the synced output, with warm caches: how many times
longer `mergekit-yaml` 0.1.5 took, and how many times longer it took than the floor, which is what a program could reach
that starts in no time and computes nothing.
"""
MEMORY = """## Peak memory

Largest resident size of the whole process in MB, by parameters and experts; *one*: a model of a single tensor of 2 GB.
"""


def stored(name: str) -> dict[str, Any]:
    """A result file, or nothing."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def spread(found: dict[str, Any]) -> str:
    """A ratio with the least and most of its rounds."""
    return "{} ({}–{})".format(number(found["ratio"]), *map(number, found["spread"])) if found else "–"


def times(size: str) -> str:
    data = stored(f"engine-{size}")
    if not data:
        return ""
    rows = []
    for method, found in sorted(data["results"].items(), key=lambda pair: pair[1]["warm"]["ratio"]):
        warm = found["warm"]
        rows.append(
            [
                f"`{method}`",
                spread(found.get("cold", {})),
                spread(warm),
                number(warm["cpu"]),
                number(warm["start"]),
                number(warm["rss_mb"], 0),
            ]
        )
    heads = ("method", "cold ÷ floor", "warm ÷ floor", "CPU s", "start s", "peak MB")
    note = f"\n{data['note']}\n" if data.get("note") else ""
    return TIME.format(rounds=data["rounds"], size=size) + "\n" + table(heads, rows) + note


def beside(size: str) -> str:
    data = stored(f"engine-{size}-mergekit")
    rows = [
        [f"`{method}`", number(found["warm"]["times_faster"], 1), number(found["warm"].get("at_most"), 1)]
        for method, found in data.get("results", {}).items()
    ]
    note = f"\n{data['note']}\n" if data.get("note") else ""
    return RIVAL + "\n" + table(("method", "times faster", "at most"), rows) + note if rows else ""


def memory() -> str:
    data: dict[str, dict[str, float]] = stored("footprint").get("peak_mb", {})
    if not data:
        return ""
    cases = list(dict.fromkeys(case for found in data.values() for case in found))
    rows = [[f"`{m}`", *(number(found.get(case), 0) for case in cases)] for m, found in data.items()]
    return MEMORY + "\n" + table(("method", *cases), rows)


if __name__ == "__main__":
    print("\n".join(part for part in (HEAD, times("0.5b"), beside("0.5b"), memory()) if part), end="")
