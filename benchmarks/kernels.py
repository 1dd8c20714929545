"""Arithmetic alone: compiled kernels against generic torch, nanoseconds of one thread for each element.

    python benchmarks/kernels.py --out benchmarks/results/kernels.json

One tensor of 4 M bfloat16 elements, base + 3 experts in the page cache, is merged in this process to nowhere: reading
and arithmetic are counted, writing is not. Both ways take turns; reported are medians of the thread's CPU time, which
other work on the machine disturbs least. `--generic` measures every method on the generic path alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from engine import narrow

import cuvee
from cuvee.core.lazy import torch
from cuvee.engine.evaluate import Evaluator
from cuvee.engine.fused.fuse import fuse
from cuvee.engine.guard import Guard
from cuvee.engine.options import RunOptions
from cuvee.methods.registry import get, names

# method → (experts, parameters); what is not listed takes three experts and its defaults
METHODS: dict[str, tuple[int, dict[str, Any]]] = {
    "passthrough": (1, {}),
    "ties": (3, {"density": 0.3, "scope": "tensor"}),
    "breadcrumbs": (3, {"density": 0.9, "gamma": 0.01}),
    "dare_linear": (3, {"density": 0.3}),
    "dare_ties": (3, {"density": 0.3}),
    "dare_linear l1": (3, {"density": 0.3, "rescale": "l1"}),
    "ram": (3, {}),
    "della": (3, {"density": 0.3, "epsilon": 0.15}),
    "della l1": (3, {"density": 0.3, "epsilon": 0.15, "rescale": "l1"}),
    "della_linear": (3, {"density": 0.3, "epsilon": 0.15}),
    "slerp": (2, {"t": 0.3}),
    "nuslerp": (2, {}),
    "nearswap": (1, {"t": 0.0005}),
    "arcee_fusion": (1, {}),
    "karcher": (3, {}),
    "sce": (3, {"select_topk": 0.1}),
}


class Nowhere:
    """A session that keeps nothing."""

    def write(self, tensor: str, offset: int, data: object) -> None:
        pass

    def finish(self, tensor: str) -> None:
        pass


def write(path: Path, shape: tuple[int, int], expert: int) -> None:
    """The base (expert 0), or the base with heavy-tailed changes of about 5 % of its size."""
    count = shape[0] * shape[1]
    values = np.random.default_rng(0).standard_normal(count, dtype=np.float32) * np.float32(0.02)
    if expert:
        tail = np.random.default_rng([1, expert]).standard_normal(count, dtype=np.float32)
        values += tail * tail * tail * np.float32(0.0003)
    header = {"w": {"dtype": "BF16", "shape": shape, "data_offsets": [0, 2 * count]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + narrow(values).tobytes())


def timed(function: Callable[[], object]) -> float:
    began = time.thread_time()
    function()
    return time.thread_time() - began


def measure(method: str, folder: Path, rounds: int, size: int, *, generic: bool) -> dict[str, float] | None:
    """Median nanoseconds for each element, by kernels and by torch; None where kernels do not do the method."""
    count, values = METHODS.get(method, (3, {}))
    base = get(method.split()[0]).base != "ordinary"
    paths = [folder / f"e{i}.safetensors" for i in range(1, count + 1)]
    first = {"base": folder / "e0.safetensors"} if base else {}
    options = RunOptions(threads=1)
    plan = cuvee.merge(paths, method=method.split()[0], **first, **values).build()
    (tensor,) = (t for t in plan.tensors if t.meta.name == "w")
    fused = fuse(plan, options)

    def compiled() -> None:
        fused.prepare([tensor], lambda f, items: [f(item) for item in items])
        if not fused.tensor(tensor, Nowhere(), lambda event: None, lambda: False):
            raise SystemExit(f"{method} is not fused")

    def plain() -> None:
        sources = {key: opened.source for key, opened in plan.sources.items()}
        groups = {name: [node for _, node in members] for name, members in plan.groups().items()}
        evaluator = Evaluator(sources, groups, options, Guard(options, sources, lambda found: None))
        with torch.no_grad():
            for _, _, value in evaluator.blocks(tensor.node):
                value.to(tensor.meta.dtype.torch)

    fast = fused is not None and not generic and fused.takes(tensor)
    if not fast and not generic:
        return None
    runs: dict[str, list[float]] = {"kernels": [], "torch": []}
    for _ in range(rounds):
        if fast:
            runs["kernels"].append(timed(compiled))
        runs["torch"].append(timed(plain))
    return {key: 1e9 * median(seconds) / size for key, seconds in runs.items() if seconds}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=[*names(), "dare_linear l1"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--generic", action="store_true", help="the generic path alone, every method")
    parser.add_argument("--out", type=Path, default=None, help="JSON file of results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for expert in range(4):
            write(Path(folder) / f"e{expert}.safetensors", (given.rows, 2048), expert)
        print(f"{'method':20}{'kernels':>9}{'torch':>9}{'ratio':>8}")
        for method in given.methods:
            try:
                found = measure(method, Path(folder), given.rounds, given.rows * 2048, generic=given.generic)
            except cuvee.CuveeError as error:
                print(f"{method:20}{error}")
                continue
            if found is None:
                print(f"{method:20}{'-':>9}")
                continue
            results[method] = found
            fast = found.get("kernels")
            ratio = f"{found['torch'] / fast:8.1f}" if fast else f"{'-':>8}"
            print(f"{method:20}{fast or 0:9.2f}{found['torch']:9.2f}{ratio}", flush=True)
    if given.out:
        machine = {"cpus": os.cpu_count(), "processor": platform.machine(), "load": os.getloadavg()}
        given.out.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
