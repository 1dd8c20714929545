"""Peak memory against the size of the model and the number of experts: the curve that must be flat. JSON.

    python benchmarks/footprint.py --out benchmarks/results/footprint.json

Checkpoints are Llama-shaped and bfloat16: of random values up to 0.5 B parameters, holes of zeros above, which take no
room on the disk, are read like any file and give every threshold the most ties there can be. `one` is a model of a
single tensor of 2 GB. Outputs are real files; some 15 GB are needed for the largest. Prints peak resident MB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from checkpoints import SIZES, config, shapes
from engine import EXPERTS, METHODS, NATIVE, command, write_model
from growth import models as linked
from growth import with_experts

SIZES |= {"7b": (4096, 11008, 32, 32000), "one": (2048, 2048, 0, 500_000)}
REAL = ("1mb", "0.1b", "0.5b")
MOST = 400.0  # MB, the promise


def sparse(folder: Path, size: str) -> None:
    """A checkpoint of which only the header is on the disk."""
    folder.mkdir(parents=True)
    header: dict[str, Any] = {}
    at = 0
    for name, shape in shapes(size).items():
        nbytes = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    path = folder / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + at)
    (folder / "config.json").write_text(json.dumps(config(size)))


def models(work: Path, size: str, experts: int) -> Path:
    """A folder of a base and experts, real or sparse."""
    for number, name in enumerate(("base", *EXPERTS)):
        target = work / size / name
        if not (target / "config.json").exists():
            write_model(target, size, number) if size in REAL else sparse(target, size)
    return linked(work, size, experts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=["0.5b", "1.5b", "7b", "one"])
    parser.add_argument("--experts", nargs="+", type=int, default=[3, 16])
    parser.add_argument("--methods", nargs="+", default=[*METHODS, *NATIVE])
    parser.add_argument("--work", type=Path, default=None, help="folder of checkpoints, kept")
    parser.add_argument("--out", type=Path, default=None, help="JSON file of results; added to what is there")
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp(prefix="cuvee-footprint-"))
    known = json.loads(given.out.read_text())["peak_mb"] if given.out and given.out.exists() else {}
    results: dict[str, dict[str, float]] = known
    columns = [f"{size} × {count}" for size in given.sizes for count in given.experts]
    print(f"{'method':18}" + "".join(f"{column:>12}" for column in columns), flush=True)
    for method in given.methods:
        fixed = METHODS.get(method, (3,))[0] < 3 or method in NATIVE
        for size in given.sizes:
            for count in given.experts:
                folder = models(work, size, count)
                if fixed:
                    if count != given.experts[0]:
                        continue
                    found = command(folder, method, folder / "out")
                else:
                    found = with_experts(folder, method, count)
                results.setdefault(method, {})[f"{size} × {count}"] = round(found.rss, 1)
        row = results[method]
        print(f"{method:18}" + "".join(f"{row.get(c, float('nan')):12.0f}" for c in columns), flush=True)
        if given.out:
            given.out.write_text(json.dumps({"peak_mb": results}, indent=1) + "\n")
    if given.work is None:
        shutil.rmtree(work)
    worst = max(value for row in results.values() for value in row.values())
    print(f"most: {worst:.0f} MB, promised {MOST:.0f}")
    sys.exit(worst > MOST)


if __name__ == "__main__":
    main()
