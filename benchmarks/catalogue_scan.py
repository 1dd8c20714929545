"""What a catalogue costs: the scan of base and experts beside plainly reading and hashing the same bytes.

    python benchmarks/catalogue_scan.py

A base and three experts of 24 million weights (or `--weights`) lie in the page cache, once for each kind: changes with
heavy tails in bfloat16, float16 and float32; light ones in bfloat16, most of which leave a weight as it was. In
every round, on one thread, all is read and hashed as a catalogue hashes (`read + hash`), and then scanned. Prints CPU
nanoseconds for each weight of each model, medians over rounds, and the median of the rounds' ratios, which holds beside
other work, too. With `--against FOLDER` the scan of another checkout (its `src`) is run in the same rounds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

KINDS = {"bfloat16": 3e-4, "bfloat16, light": 1e-5, "float16": 3e-4, "float32": 3e-4}
TENSORS, EXPERTS = 6, 3


def write(folder: Path, kind: str, weights: int) -> None:
    """Base (`0`) and experts of one kind."""
    import torch
    from safetensors.torch import save_file

    dtype = getattr(torch, kind.partition(",")[0])
    for model in range(EXPERTS + 1):
        draw, change = torch.Generator().manual_seed(0), torch.Generator().manual_seed(model)
        tensors = {}
        for number in range(TENSORS):
            tensor = torch.randn(weights // TENSORS, generator=draw).mul_(0.02)
            if model:
                tensor += torch.randn(weights // TENSORS, generator=change).pow(3).mul_(KINDS[kind])
            tensors[f"model.layers.{number}.weight"] = tensor.to(dtype)
        (folder / str(model)).mkdir(parents=True)
        save_file(tensors, folder / str(model) / "model.safetensors")


def once(folder: Path, weights: int, rounds: int) -> None:
    """In a process of its own: for each line that comes in, CPU nanoseconds a weight of hashing and of scanning."""
    from cuvee.sources.catalogue_scan import Desk, _hashed, scan
    from cuvee.sources.open import open_source

    models = [open_source(str(folder / str(place)), anchor=folder) for place in range(EXPERTS + 1)]
    desk = Desk(models)
    scale = 1e9 / (weights // TENSORS * TENSORS * (EXPERTS + 1))
    for _ in range(rounds):
        sys.stdin.readline()
        began = time.process_time()
        for place, model in enumerate(models):
            for name in model.tensors:
                _hashed(desk, place, name)
        hashed = time.process_time()
        scan(models[0], models[1:], 1)
        print((hashed - began) * scale, (time.process_time() - hashed) * scale, flush=True)


def measure(folder: Path, sides: list[Path], weights: int, rounds: int) -> list[list[tuple[float, float]]]:
    """Of the package in every one of these folders what each round took, taken in turn; the first warms up."""
    command = [sys.executable, __file__, "--once", str(folder)]
    command += ["--weights", str(weights), "--rounds", str(rounds + 1)]
    found: list[list[tuple[float, float]]] = [[] for _ in sides]
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(
                    command, stdin=pipe, stdout=pipe, text=True, env={**os.environ, "PYTHONPATH": str(side)}
                )
            )
            for side in sides
        ]
        for _ in range(rounds + 1):
            for rows, process in zip(found, running, strict=True):
                process.stdin.write("\n")
                process.stdin.flush()
                hashing, scanning = map(float, process.stdout.readline().split())
                rows.append((hashing, scanning))
    return [rows[1:] for rows in found]


def row(kind: str, rounds: list[list[tuple[float, float]]]) -> list[str]:
    """What was measured of a kind, as it is shown."""
    middle = statistics.median
    hashing, scanning = (middle(pair[place] for pair in rounds[0]) for place in (0, 1))
    cells = [kind, f"{hashing:.2f}", f"{scanning:.2f}", f"{middle(two / one for one, two in rounds[0]):.2f}"]
    for other in rounds[1:]:
        cells += [f"{middle(two for _, two in other):.2f}"]
        cells += [f"{middle(b / a for (_, a), (_, b) in zip(rounds[0], other, strict=True)):.2f}"]
    return cells


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=int, default=24_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--against", type=Path, help="the `src` of another checkout")
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        once(given.once, given.weights, given.rounds)
        return 0
    own = Path(__file__).resolve().parent.parent / "src"
    sides = [own] if given.against is None else [own, given.against.resolve()]
    head = ["kind", "read + hash", "scan", "ratio"] + (["scan, other", "times this"] if given.against else [])
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    for kind in given.kinds:
        folder = Path(tempfile.mkdtemp(prefix="cuvee-scan-"))
        try:
            write(folder, kind, given.weights)
            print(
                "| " + " | ".join(row(kind, measure(folder, sides, given.weights, given.rounds))) + " |",
                flush=True,
            )
        finally:
            shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
