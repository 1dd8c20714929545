"""Cells that failed: who, on what, and what was said, kept beside the finished ones so that no table is silent on them.

`failed/<address>.json` in a benchmark's folder. A failed cell is run again by the next `bench run`, and counts no more
once it is finished.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from cuvee.charts import Table
from cuvee.core import disk
from cuvee.core.names import printable
from cuvee.errors import EvaluationError
from cuvee.evaluate.cells import FAILED, Cell, Store
from cuvee.evaluate.kept import reading
from cuvee.evaluate.manifest import surroundings
from cuvee.evaluate.pages import Section

SCHEMA = "cuvee.bench.failed/1"


@dataclass(frozen=True, slots=True)
class Failure:
    """A cell that has no scores, and why."""

    cell: Cell
    problem: str

    def as_json(self) -> dict[str, Any]:
        """Plain data, with the address that the cell would have."""
        return {"address": self.cell.address, "cell": asdict(self.cell), "problem": self.problem}


def keep(store: Store, cell: Cell, problem: str) -> None:
    """Write down that a cell failed; an earlier failure of the same cell is replaced."""
    place = store.folder / FAILED
    disk.make_folders(place)
    content = {"schema": SCHEMA, "made_with": surroundings(), **Failure(cell, problem).as_json()}
    disk.write_file(place / f"{cell.address}.json", json.dumps(content, indent=1, sort_keys=True).encode())


def kept(store: Store) -> list[Failure]:
    """The failed cells that were not finished since; EvaluationError CV-B021 for a damaged file."""
    found = []
    for path in sorted((store.folder / FAILED).glob("*.json")):
        with reading(path):
            data = json.loads(path.read_text())
            cell = Cell(**{**data["cell"], "tasks": tuple(data["cell"]["tasks"])})
            failure = Failure(cell, str(data["problem"]))
        if not store.has(cell):
            found.append(failure)
    return sorted(found, key=lambda one: (one.cell.track, one.cell.seed, one.cell.label, one.cell.budget))


def section(failures: list[Failure]) -> Section | None:
    """A table of what failed, for reports."""
    if not failures:
        return None
    rows = [
        [
            printable(one.cell.track),
            printable(one.cell.label),
            len(one.cell.tasks),
            one.cell.seed,
            one.cell.budget,
            printable(one.problem),
        ]
        for one in failures
    ]
    said = "These cells have no scores and count in no table above; running the benchmark again tries them again."
    return Section("Failed", (said, Table(("track", "method", "experts", "seed", "budget", "problem"), rows)))


@contextmanager
def explaining(store: Store, *labels: str) -> Iterator[None]:
    """Add to an error about missing scores that cells of these methods failed, and why."""
    try:
        yield
    except EvaluationError as error:
        said = [
            f"`{printable(one.cell.label)}` failed: {printable(one.problem)}"
            for one in kept(store)
            if any(label == one.cell.label or label.startswith(f"{one.cell.label} (") for label in labels)
        ]
        if not said or error.diagnostics[0].code != "CV-B023":
            raise
        first = error.diagnostics[0]
        told = "; ".join(dict.fromkeys(said))
        raise EvaluationError.collected(
            [replace(first, hint=f"{told}. {first.hint}"), *error.diagnostics[1:]]
        ) from error
