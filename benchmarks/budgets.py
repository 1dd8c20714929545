"""The error that a read budget leaves, beside its bound and beside blocks chosen by their energy in exact arithmetic.

    python benchmarks/budgets.py BASE EXPERT... [--shares 10 25 50 75] [--json FILE]

Task arithmetic of all experts with weight 1, in float32. *Greedy* takes blocks of a MiB by their energy for each byte,
in float64, as many as the whole budget holds, and reads nothing to measure its error: by the bytes of the blocks, and
by the pages of 4 KiB that they lie in, which is what a device gives and what our own budget counts. *Device* is what
the process made the device read over what the plan told of the experts, whose files are dropped from the page cache
before. *Measured* is what the run tells of its own error, with its standard error.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cuvee.api.blend import Blend
from cuvee.api.budget import budgeted, make_catalogue, measured
from cuvee.api.execute import load
from cuvee.core.tensors import Extent
from cuvee.recipe.load import parse_recipe
from cuvee.sources.catalogue import BLOCK
from cuvee.sources.source import Source

Tensors = Mapping[str, torch.Tensor]
Places = Mapping[str, tuple[int, int]]  # where a tensor begins in its file, and its elements
PAGE = 4096
COLUMNS = ("budget", "read", "device", "bound", "real", "measured", "± s.e.", "greedy", "in pages")


def greedy(
    base: Tensors, experts: list[Tensors], share: float, size: int, places: list[Places] | None
) -> float:
    """The relative error of leaving out the blocks with the least energy for their bytes; with the places of the
    experts' tensors, as many are taken as their pages allow.
    """
    step = BLOCK // size
    found: list[tuple[float, int, int, str, int]] = []
    for k, expert in enumerate(experts):
        for name, tensor in base.items():
            moved = (expert[name].double() - tensor.double()).flatten()
            for number, block in enumerate(moved.split(step)):
                found.append((float(block.square().sum()) / len(block), len(block), k, name, number))
    pages: set[tuple[int, int]] = set()
    room = share * sum(row[1] for row in found) * size
    if places is not None:
        room = (
            share
            * PAGE
            * sum(
                len({p for at, n in of.values() for p in _pages(k, at, at + n * size)})
                for k, of in enumerate(places)
            )
        )
    taken: set[tuple[int, str, int]] = set()
    for _, count, k, name, number in sorted(found, key=lambda row: -row[0]):
        cost, own = count * size, set()
        if places is not None:
            start = places[k][name][0] + number * step * size
            own = _pages(k, start, start + count * size) - pages
            cost = len(own) * PAGE
        if cost <= room:
            room -= cost
            pages |= own
            taken.add((k, name, number))
    return _error(base, experts, taken, step)


def _pages(k: int, start: int, stop: int) -> set[tuple[int, int]]:
    return {(k, page) for page in range(start // PAGE, -(-stop // PAGE))}


def _error(base: Tensors, experts: list[Tensors], taken: set[tuple[int, str, int]], step: int) -> float:
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


def from_device() -> int:
    """Bytes that this process made devices read so far; 0 where the system does not count."""
    path = Path("/proc/self/io")
    rows = path.read_text().splitlines() if path.exists() else []
    return next((int(row.split()[1]) for row in rows if row.startswith("read_bytes")), 0)


def forget(folders: list[str]) -> None:
    """Drop the files of some models from the page cache."""
    for path in (file for folder in folders for file in Path(folder).glob("*.safetensors")):
        number = os.open(path, os.O_RDONLY)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(number)


def extent_of(source: Source, name: str) -> Extent:
    """Where a tensor lies; the benchmark is for plain files."""
    found = source.extent(name)
    if found is None:
        raise SystemExit(f"{name} lies plainly in no file")
    return found


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
    whole, sources = load(plan), [opened.source for opened in plan.sources.values()]
    width = next(iter(sources[0].tensors.values())).dtype.size
    places = [{n: (extent_of(s, n).offset, t.numel) for n, t in s.tensors.items()} for s in sources[1:]]
    rows = []
    print("".join(f"{name:>10}" for name in COLUMNS))
    for share in given.shares:
        asked = budgeted(plan, f"{share}%", None)
        told = asked.choice.read + asked.sample.nbytes
        load(asked.plan)  # what is loaded late, and the base, are in memory from here on
        forget(paths[1:])
        before = from_device()
        real = distance(load(asked.plan), whole) / distance(whole, models[0])
        found = measured(asked)
        values = [
            told / asked.choice.total,
            (from_device() - before) / told,
            asked.choice.bound,
            real,
            found.get("error", 0.0),
            found.get("standard_error", 0.0),
            greedy(models[0], models[1:], share / 100, width, None),
            greedy(models[0], models[1:], share / 100, width, places),
        ]
        rows.append(dict(zip(COLUMNS, [share / 100, *values], strict=True)))
        print(f"{share:9}%" + "".join(f"{value:10.4f}" for value in values), flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


def copied(path: str) -> str:
    """A recipe that passes a model on, in float32."""
    return json.dumps({"merge_method": "passthrough", "models": [{"model": path}], "out_dtype": "float32"})


if __name__ == "__main__":
    main()
