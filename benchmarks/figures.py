"""The page of figures, made from the result files beside this program.

    python benchmarks/figures.py > docs/figures.md

Says what was measured and what could at most be reached, in tables for readers; a file that is missing is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LAST = {"ratio": float("inf")}  # of a method that was not measured
HEAD = """# Figures

How fast merges are and what memory they take, on two cores without a GPU. Made by `benchmarks/figures.py` from the
files in `benchmarks/results`; each program in `benchmarks` says in its first lines how it measures.
"""
TIME = """## Time beside the floor

Wall time of `cuvee merge` without start-up, divided by that of the **floor**: plain large reads of every input byte,
plain writes of every output byte, `fsync`, a thread for each core. Each round measures floor and merge twice, in turn,
and takes the faster of each: where a virtual machine gives free pages back to its host, either may take several times
as long, by chance ([where pages come from](decisions/0017-limits.md)). Since commit `898de18` the floor uses
written pages again, as a merge does there, and warm inputs are locked in the page cache; rows before that had inputs of
which the system may have dropped a part. Rounds before commit `d4e6928` had one merge between two floors,
which is stricter where pages are scarce. Medians of {rounds} over a Llama of {size} parameters in
bfloat16 (a base and up to 3 experts), with the least and most of the rounds. *Cold*: with dropped caches; where the
file system is a virtual machine's, its host may still remember. Cold floors ask ahead since commit `7d7e804`, and floor
and merge find the same free pages; before, both were up to half as slow again, so that cold rows of earlier commits, if
any are left below, say little. *Start* is the whole command on a checkpoint of 1 MB, Python's own start among it.
"""
RIVAL = """## Beside MergeKit

The same recipes and files in turn, from the command to the synced output, with warm caches: how many times
longer `mergekit-yaml` 0.1.5 took, and how many times longer than the median floor, which is what a program could reach
that starts in no time and computes nothing. Medians of {rounds}.
"""
MEMORY = """## Peak memory

Largest resident size of the whole process in MB, by parameters and experts; *one*: a model of a single tensor of 2 GB.
"""
AHEAD = """## What `cuvee plan` said

Said over taken, by `benchmarks/predict.py`: bytes, peak memory, and time in multiples of the floor, which is probed in
the same rounds with warm caches. Time: said, taken, and the one over the other. Medians of {rounds}.
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


def lengths(rows: Iterable[Sequence[Any]]) -> str:
    """How many rounds rows rest on: `5 rounds`, `1 to 5 rounds`."""
    counts = sorted({len(row) for row in rows} - {0}) or [0]
    least, most = counts[0], counts[-1]
    return ("" if least == most else f"{least} to ") + f"{most} round{'s' if most > 1 else ''}"


def origins(cells: Mapping[str, Mapping[str, Any]]) -> str:
    """Which commit cells are of, by name those that are not of the usual one; old ones had one floor a round."""
    found: dict[str, list[str]] = {}
    for name, cell in cells.items():
        found.setdefault(cell.get("commit", ""), []).append(name)
    usual, *others = sorted(found, key=lambda commit: -len(found[commit]))
    of = {
        commit: f"commit `{commit}`" if commit else "an earlier commit, with one floor a round"
        for commit in found
    }
    differ = "; ".join(f"of {of[commit]}: {', '.join(found[commit])}" for commit in others)
    return f"\nMeasured at {of[usual]}" + (f", except {differ}" if differ else "") + ".\n"


def cells_of(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Every measurement of a file by what readers see it under: `linear` warm."""
    return {f"{method} {state}": cell for method, found in results.items() for state, cell in found.items()}


def times(size: str) -> str:
    results = stored(f"engine-{size}").get("results", {})
    rows = []
    for method, found in sorted(results.items(), key=lambda pair: pair[1].get("warm", LAST)["ratio"]):
        warm = found.get("warm", {})
        own = warm or found["cold"]
        cells = [spread(found.get("cold", {})), spread(warm)]
        rows.append(
            [f"`{method}`", *cells, number(own["cpu"]), number(own["start"]), number(own["rss_mb"], 0)]
        )
    if not rows:
        return ""
    heads = ("method", "cold ÷ floor", "warm ÷ floor", "CPU s", "start s", "peak MB")
    cells = cells_of(results)
    text = TIME.format(rounds=lengths(cell.get("rounds", ()) for cell in cells.values()), size=size)
    return text + "\n" + table(heads, rows) + origins(cells)


def beside(size: str) -> str:
    """What has a rival: of the rounds with the floor, and what those lack from a file of its own."""
    cells: dict[str, Any] = {}
    for name in (f"engine-{size}-mergekit", f"engine-{size}"):
        found = stored(name).get("results", {})
        warm = {m: each["warm"] for m, each in found.items() if each.get("warm", {}).get("times_faster")}
        cells |= {m: cell | {"commit": commit_of_rivals(cell)} for m, cell in warm.items()}
    if not cells:
        return ""
    rows = [[f"`{m}`", number(c["times_faster"], 1), number(c.get("at_most"), 1)] for m, c in cells.items()]
    text = RIVAL.format(rounds=lengths(rivals(cell) for cell in cells.values()))
    return text + "\n" + table(("method", "times faster", "at most"), rows) + origins(cells)


def commit_of_rivals(cell: Mapping[str, Any]) -> str:
    """The commit of the rounds with a rival, which may be a series of their own."""
    commit: str = rivals(cell)[0].get("commit", cell.get("commit", ""))
    return commit


def rivals(cell: Mapping[str, Any]) -> Sequence[Any]:
    """The runs of the rival that a measurement holds, in either form of the files."""
    kept: Sequence[Any] = cell.get("mergekit") or [r for r in cell.get("rounds", ()) if "rival" in r]
    return kept


def memory() -> str:
    data: dict[str, dict[str, float]] = stored("footprint").get("peak_mb", {})
    if not data:
        return ""
    cases = list(dict.fromkeys(case for found in data.values() for case in found))
    rows = [[f"`{m}`", *(number(found.get(case), 0) for case in cases)] for m, found in data.items()]
    return MEMORY + "\n" + table(("method", *cases), rows)


def ahead() -> str:
    """How near predictions came."""
    data = stored("predict")
    results, rounds = data.get("results", {}), data.get("rounds", 0)
    rows = []
    for method, found in results.items():
        near = [number(found["read"], 3), number(found["written"], 3), number(found["peak"])]
        time = [number(found.get(key)) for key in ("said_floors", "taken_floors", "seconds")]
        rows.append([f"`{method}`", *near, *time])
    heads = ("method", "bytes read", "written", "peak memory", "floors said", "floors taken", "time")
    return (
        AHEAD.format(rounds=lengths([range(rounds)])) + "\n" + table(heads, rows) + origins(results)
        if rows
        else ""
    )


if __name__ == "__main__":
    print(
        "\n".join(part for part in (HEAD, times("0.5b"), beside("0.5b"), memory(), ahead()) if part), end=""
    )
