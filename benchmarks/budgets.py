"""The error that a read budget leaves, beside its bound and beside blocks chosen by their energy in exact arithmetic.

    python benchmarks/budgets.py BASE EXPERT... [--shares 10 25 50 75] [--json FILE]

Task arithmetic of all experts with weight 1, in float32. *Greedy* takes blocks of a MiB by their energy for each byte,
in float64, as many as the whole budget holds, and reads nothing to measure its error.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cuvee.api.blend import Blend
from cuvee.api.budget import budgeted, make_catalogue
from cuvee.api.execute import load
from cuvee.recipe.load import parse_recipe
from cuvee.sources.catalogue import BLOCK

Tensors = Mapping[str, torch.Tensor]


def greedy(base: Tensors, experts: list[Tensors], share: float, size: int) -> float:
    """The relative error of leaving out the blocks with the least energy for their bytes."""
    step = BLOCK // size
    found: list[tuple[float, int, int, str, int]] = []
    for k, expert in enumerate(experts):
        for name, tensor in base.items():
            moved = (expert[name].double() - tensor.double()).flatten()
            for number, block in enumerate(moved.split(step)):
                found.append((float(block.square().sum()) / len(block), len(block), k, name, number))
    left = share * sum(row[1] for row in found)
    taken: set[tuple[int, str, int]] = set()
    for _, count, k, name, number in sorted(found, key=lambda row: -row[0]):
        if count <= left:
            left -= count
            taken.add((k, name, number))
    error = update = 0.0
    for name, tensor in base.items():
        whole, kept = torch.zeros(tensor.numel()).double(), torch.zeros(tensor.numel()).double()
        for k, expert in enumerate(experts):
            moved = (expert[name].double() - tensor.double()).flatten()
            whole += moved
            for number, block in enumerate(moved.split(step)):
                if (k, name, number) in taken:
                    kept[number * step : number * step + len(block)] += block
        error += float((whole - kept).square().sum())
        update += float(whole.square().sum())
    return (error / update) ** 0.5


def distance(one: Tensors, other: Tensors) -> float:
    """The norm of a difference, in float64."""
    return sum(float((one[n].double() - other[n].double()).square().sum()) for n in one) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base")
    parser.add_argument("experts", nargs="+")
    parser.add_argument("--shares", nargs="+", type=int, default=[10, 25, 50, 75])
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    paths = [str(Path(path).resolve()) for path in (given.base, *given.experts)]
    make_catalogue(paths[1:], paths[0], anchor=Path(), offline=True)
    data = {
        "merge_method": "task_arithmetic",
        "base_model": paths[0],
        "models": [{"model": path, "parameters": {"weight": 1.0}} for path in paths[1:]],
        "out_dtype": "float32",
    }
    plan = Blend(parse_recipe(json.dumps(data)), Path(), True).build()
    models: list[Any] = [
        dict(load(Blend(parse_recipe(copied(path)), Path(), True).build())) for path in paths
    ]
    whole, tensors = load(plan), next(iter(plan.sources.values())).source.tensors
    width = next(iter(tensors.values())).dtype.size
    rows = []
    print(f"{'budget':>8}{'read':>8}{'bound':>9}{'real':>9}{'greedy':>9}")
    for share in given.shares:
        asked = budgeted(plan, f"{share}%", None)
        real = distance(load(asked.plan), whole) / distance(whole, models[0])
        read = (asked.choice.read + asked.sample.nbytes) / asked.choice.total
        best = greedy(models[0], models[1:], share / 100, width)
        rows.append(
            {"budget": share / 100, "read": read, "bound": asked.choice.bound, "real": real, "greedy": best}
        )
        print(f"{share:7}%{read:8.2%}{asked.choice.bound:9.4f}{real:9.4f}{best:9.4f}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


def copied(path: str) -> str:
    """A recipe that passes a model on, in float32."""
    return json.dumps({"merge_method": "passthrough", "models": [{"model": path}], "out_dtype": "float32"})


if __name__ == "__main__":
    main()
