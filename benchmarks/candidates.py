"""Candidates merged in memory: seconds for each, beside reading the held models once and writing the output.

    python benchmarks/candidates.py --out benchmarks/results/candidates.json

Tensors shaped as SmolLM2-135M, a base and K experts, are held (`cuvee.hold`) and merged with new weights, and with a
new `lambda`, into the same output tensors. Each candidate is followed by the floor, in as many threads: every expert is
copied piece by piece into memory that stays in cache, and the base (or the first expert) to where the output goes.
Reported are medians, ratios taken pair by pair, CPU time, which other work on the machine disturbs least, bytes
gathered for later candidates as a share of the experts', and the machine's load. Nothing is written to disk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch

import cuvee
from cuvee.engine.options import RunOptions

HIDDEN, INNER, LAYERS, VOCABULARY, KEYS = 576, 1536, 30, 49152, 192
PIECE = 1 << 18  # elements that are copied at once
Tensors = dict[str, torch.Tensor]


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        found |= {f"{at}self_attn.{n}_proj.weight": (HIDDEN, HIDDEN) for n in "qo"}
        found |= {f"{at}self_attn.{n}_proj.weight": (KEYS, HIDDEN) for n in "kv"}
        found |= {f"{at}mlp.{n}_proj.weight": (INNER, HIDDEN) for n in ("gate", "up")}
        found |= {f"{at}mlp.down_proj.weight": (HIDDEN, INNER)}
        found |= {f"{at}{n}_layernorm.weight": (HIDDEN,) for n in ("input", "post_attention")}
    return found | {"model.norm.weight": (HIDDEN,)}


def models(count: int, dtype: torch.dtype) -> tuple[Tensors, list[Tensors]]:
    draw = torch.Generator().manual_seed(0)
    base = {n: (torch.randn(s, generator=draw) * 0.02).to(dtype) for n, s in shapes().items()}
    changed = [
        {n: (t + torch.randn(t.shape, generator=draw) ** 3 * 3e-4).to(dtype) for n, t in base.items()}
        for _ in range(count)
    ]
    return base, changed


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def floor_of(experts: list[Tensors], base: Tensors | None, threads: int) -> Callable[[], None]:
    """Reads all that is held once, and writes as much as the output takes."""
    sources = [list(one.values()) for one in experts]
    written = list(base.values()) if base is not None else sources[0]
    read = [tensor for one in (sources if base is not None else sources[1:]) for tensor in one]
    results = [torch.empty_like(tensor) for tensor in written]
    pieces = [torch.empty(PIECE, dtype=read[0].dtype) for _ in range(threads)]

    def share(number: int) -> None:
        for tensor in read[number::threads]:
            for part in tensor.reshape(-1).split(PIECE):
                pieces[number][: part.numel()].copy_(part)
        for result, tensor in list(zip(results, written, strict=True))[number::threads]:
            result.copy_(tensor)

    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(share, range(threads)))

    return run


def changes(kind: str, count: int) -> dict[str, Any]:
    if kind == "lambda":
        return {"lambda": random.random()}
    return {"weight": [random.random() for _ in range(count)]}


def measured(
    method: str, kind: str, base: Tensors, experts: list[Tensors], rounds: int, threads: int
) -> dict[str, Any]:
    """One method and one kind of change."""
    values = {"density": 0.2} if method == "ties" else {}
    held_bytes = sum(tensor.nbytes for expert in experts for tensor in expert.values())
    given = None if method == "linear" else base
    floor = floor_of(experts, given, threads)
    found: list[tuple[float, float]] = []
    floors: list[tuple[float, float]] = []
    with cuvee.hold(experts, base=given, method=method, run=RunOptions(threads=threads), **values) as held:
        out = held.merge()
        for _ in range(2):  # what is kept is made when it is asked for a second time
            held.merge(out=out, **changes(kind, len(experts)))
        for _ in range(rounds):
            asked = changes(kind, len(experts))
            found.append(timed(lambda asked=asked: held.merge(out=out, **asked)))  # type: ignore[misc]
            floors.append(timed(floor))
        entries = [e.value for key, e in held._memo._entries.items() if key[0] == "entries"]
    return {
        "gathered": sum(one.nbytes for several in entries for one in several) / held_bytes,
        "wall": median(wall for wall, _ in found),
        "best": min(wall for wall, _ in found),
        "cpu": median(cpu for _, cpu in found),
        "floor": median(wall for wall, _ in floors),
        "floor_cpu": median(cpu for _, cpu in floors),
        "ratio": median(a / b for (a, _), (b, _) in zip(found, floors, strict=True)),
        "cpu_ratio": median(a / b for (_, a), (_, b) in zip(found, floors, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--types", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--out", type=Path, default=None, help="JSON file of results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    heads = ("wall", "best", "cpu", "floor", "floor_cpu", "ratio", "cpu_ratio", "gathered")
    print(f"{'type':10}{'method':18}{'changed':9}" + "".join(f"{head:>10}" for head in heads))
    results: list[dict[str, Any]] = []
    for name in given.types:
        base, experts = models(given.experts, getattr(torch, name))
        cases = [("linear", "weight"), ("task_arithmetic", "weight"), ("ties", "weight"), ("ties", "lambda")]
        for method, kind in cases:
            found = measured(method, kind, base, experts, given.rounds, given.threads)
            results.append({"type": name, "method": method, "changed": kind, **found})
            print(f"{name:10}{method:18}{kind:9}" + "".join(f"{found[h]:10.3f}" for h in heads), flush=True)
    if given.out:
        machine = {"cpus": os.cpu_count(), "processor": platform.machine(), "load": os.getloadavg()}
        parameters = sum(t.numel() for t in base.values())
        data = {"machine": machine, "parameters": parameters, "experts": given.experts, "results": results}
        given.out.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
