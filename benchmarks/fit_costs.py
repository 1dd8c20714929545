"""The costs behind predicted times, from one quiet result file, and how near predictions come with them.

    python benchmarks/fit_costs.py benchmarks/results/engine-0.5b.json --write
    python benchmarks/fit_costs.py OTHER.json                                    # judges only

Bytes come from the processor's seconds of the floors; stages from those of warm merges, less the bytes that the plan
says are read and written: non-negative least squares of relative errors, with a slight pull towards the costs known so
far, which decides where the file cannot (stages that only occur together keep their proportion). `--write` puts them
into `costs.toml`. Then each row, warm and cold, is predicted as `cuvee plan` does at the rate of the faster floor of
its round; --fold N tells how near rows come that a fit without them predicts, every N-th left out. Plans are made of
files that hold headers and no data. Ends with 1 where a prediction is further off than 30 %.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from checkpoints import config
from engine import EXPERTS, faster, header, recipe

import cuvee
from cuvee.engine.foresight import foreseen
from cuvee.engine.options import RunOptions
from cuvee.engine.work import planning, work_of
from cuvee.plan.cost import Prediction, Rates, predict, taken

COSTS = Path(__file__).resolve().parents[1] / "src" / "cuvee" / "engine" / "costs.toml"
PULL = 0.02  # weight of the known costs, beside a row's 1
STEPS = 4000  # of coordinate descent
LIMIT = 0.3  # how far from 1 said over taken may be


@dataclass(frozen=True)
class Asked:
    """What a method's plan asks for: entries of each stage, the prediction, whose bytes are taken from it, and seconds
    of planning."""

    work: Mapping[str, int]
    said: Prediction
    planning: float = 0.0

    @property
    def once(self) -> int:
        return self.said.passing - self.said.bytes_written


def outlines(folder: Path, size: str) -> None:
    """Models that have headers and a length, but no data."""
    head, nbytes = header(size)
    for name in ("base", *EXPERTS):
        (folder / name).mkdir(parents=True)
        with (folder / name / "model.safetensors").open("wb") as file:
            file.write(head)
            file.truncate(len(head) + nbytes)
        (folder / name / "config.json").write_text(json.dumps(config(size)))


def asked(folder: Path, method: str, threads: int) -> Asked:
    plan = cuvee.load(str(recipe(folder, method)[0])).build()
    options = RunOptions(threads=threads)
    said = predict(plan, options, Rates(), replace(foreseen(plan, options), remembered=None))
    work: dict[str, int] = {}
    for tensor in plan.tensors:
        for stage, entries in work_of(tensor).items():
            work[stage] = work.get(stage, 0) + entries
    plan.close()
    return Asked(work, said, planning(plan.tensors))


def floors(round_: Mapping[str, Any]) -> dict[str, float]:
    """The faster floor of a round; the oldest files have one."""
    return faster(round_["floors"]) if "floors" in round_ else dict(round_["floor"])


def run(round_: Mapping[str, Any]) -> dict[str, float]:
    """The faster run of a round; older files have one."""
    return faster(round_["runs"]) if "runs" in round_ else dict(round_["run"])


def least(matrix: np.ndarray, goal: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Non-negative costs that meet `goal` in relative error and stay near what is known where that is open."""
    rows = np.vstack([matrix / goal[:, None], np.diag(PULL / np.maximum(known, 0.05))])
    aims = np.concatenate([np.ones(len(goal)), PULL * known / np.maximum(known, 0.05)])
    found, square = known.copy(), (rows**2).sum(0)
    rest = aims - rows @ found
    for _ in range(STEPS):
        for column in range(len(found)):
            step = max(rows[:, column] @ rest / square[column], -found[column])
            found[column] += step
            rest -= step * rows[:, column]
    return found


def fit(
    rows: Mapping[str, Any], plans: Mapping[str, Asked], known: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Costs of `costs.toml` that meet the warm measurements of these methods."""
    each = list(rows)
    moved = np.array([[plans[m].once, plans[m].said.bytes_written] for m in each]) * 1e-9
    copied = np.array([median(floors(r)["cpu"] for r in rows[m]["rounds"]) for m in each])
    two = least(moved, copied, np.array([known["bytes"][name] for name in ("read", "written")]))
    stages = sorted({stage for m in each for stage in plans[m].work})
    matrix = np.array([[plans[m].work.get(stage, 0) for stage in stages] for m in each]) * 1e-9
    taken = np.array([rows[m]["cpu"] - plans[m].planning for m in each])
    taken -= np.array([[plans[m].said.bytes_read, plans[m].said.bytes_written] for m in each]) @ two * 1e-9
    before = np.array([known["stages"].get(s, known["stages"].get(s.partition("@")[0], 1.0)) for s in stages])
    found = least(matrix, np.maximum(taken, 0.01), before)
    own = {stage: float(cost) for stage, cost in zip(stages, found, strict=True)}
    moving = dict(zip(("read", "written"), map(float, two), strict=True))
    return {**known, "bytes": moving, "stages": known["stages"] | own}


def nearness(rows: Sequence[Mapping[str, Any]], plan: Asked, costs: Mapping[str, Any], threads: int) -> float:
    """Said over taken, the median of the rounds: what the plan would say at the rate of each round's floor."""
    read, written = (costs["bytes"][name] * 1e-9 / threads for name in ("read", "written"))
    stages, said = costs["stages"], plan.said
    work = sum(stages.get(s, stages.get(s.partition("@")[0], 1.0)) * n for s, n in plan.work.items()) * 1e-9
    said = replace(
        said,
        arithmetic=plan.planning + work / threads + read * said.bytes_read + written * said.bytes_written,
        copied=read * plan.once + written * said.bytes_written,
    )
    return median(taken(said, floors(r)["wall"]) / (run(r)["wall"] - r["start"]["wall"]) for r in rows)


def written(costs: Mapping[str, Mapping[str, float]]) -> str:
    """The text of `costs.toml`, its comments kept."""
    lines = COSTS.read_text(encoding="utf-8").splitlines()
    comments = {
        lines[i + 1]: line for i, line in enumerate(lines[:-1]) if line.startswith("#") and lines[i + 1]
    }
    parts = [lines[0], ""]
    for table, values in costs.items():
        head = f"[{table}]"
        parts += [*([comments[head]] if head in comments else []), head]
        parts += [
            f"{name if name.isidentifier() else json.dumps(name)} = {number(cost)}"
            for name, cost in values.items()
        ]
        parts.append("")
    return "\n".join(parts)


def number(cost: float) -> str:
    """Three digits are more than is known."""
    return f"{cost:.3g}" if cost < 100 else str(round(cost))


def judged(
    data: Mapping[str, Any], plans: Mapping[str, Asked], costs: Mapping[str, Any], threads: int
) -> bool:
    """Print said over taken for each row; whether all are near enough."""
    near = True
    for method, found in data.items():
        cells = f"{method:18}"
        for state in ("warm", "cold"):
            if "rounds" in found.get(state, {}):
                value = nearness(found[state]["rounds"], plans[method], costs, threads)
                far = abs(value - 1) > LIMIT
                near = near and not far
                cells += f"  {state} {value:5.2f}{'!' if far else ' '}"
        print(cells)
    return near


def folds(
    rows: Mapping[str, Any], plans: Mapping[str, Asked], known: Mapping[str, Any], threads: int, count: int
) -> None:
    """How near rows come that a fit without them predicts (a stage that only they have keeps its known cost)."""
    for number in range(count):
        left = list(rows)[number::count]
        costs = fit({m: row for m, row in rows.items() if m not in left}, plans, known)
        print(
            "left out:", *(f"{m} {nearness(rows[m]['rounds'], plans[m], costs, threads):.2f}" for m in left)
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="a file of engine.py")
    parser.add_argument("--write", action="store_true", help="fit, and write costs.toml")
    parser.add_argument("--fold", type=int, default=0, help="fit without every N-th row, and judge it")
    given = parser.parse_args()
    os.environ.setdefault("CUVEE_CATALOG", "off")
    data = json.loads(given.results.read_text())
    threads = data["machine"]["cpus"]
    known: dict[str, Any] = tomllib.loads(COSTS.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="cuvee-costs-") as name:
        folder = Path(name)
        outlines(folder, data["size"])
        plans = {method: asked(folder, method, threads) for method in data["results"]}
    warm = {m: found["warm"] for m, found in data["results"].items() if "rounds" in found.get("warm", {})}
    if given.fold:
        folds(warm, plans, known, threads, given.fold)
    costs = fit(warm, plans, known) if given.write else known
    if given.write:
        COSTS.write_text(written(costs), encoding="utf-8")
    print("said / taken")
    sys.exit(not judged(data["results"], plans, costs, threads))


if __name__ == "__main__":
    main()
