"""What `cuvee plan` says a merge will take, against what it took: bytes, peak memory, time beside the floor.

    python benchmarks/predict.py --size 0.5b --out benchmarks/results/predict.json

For each method a checkpoint (base + 3 experts, bfloat16) is planned and merged in a process of its own. Bytes read and
written are the process's own counters (`/proc/self/io`), less what planning and the lock read (headers, samples) and
less those of the same command on a checkpoint of 1 MB (modules); what remains are journals, under 0.02 %. Where the
values decide how much is read, it must lie between the two bounds of the plan. Peak memory is the resident maximum.
Time is told in multiples of the floor of `engine.py`, probed in the same round: each is floor, merge, floor, merge, and
the faster ones count. The prediction is what the plan says at the floor's rate, the time taken is the run's without
that of 1 MB, and the median over the rounds of said over taken is judged.

Ends with 1 where bytes are wrong, memory is off by more than 20 %, or time by more than 30 %. Time means something
only on a machine without other work; `--without-time` judges the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from engine import EXPERTS, METHODS, NATIVE, chill, commit, recipe, settle, waited, write_model

from cuvee.plan.cost import Prediction, taken

CODE = """
import json, sys, time
from dataclasses import asdict
import cuvee
from cuvee.api.lock import lock_of
from cuvee.api.outlook import outlook
from pathlib import Path
def counters():
    return dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
def since(before):
    after = counters()
    return {k: int(after[k]) - int(before[k]) for k in ("rchar", "wchar")}
blend = cuvee.load(sys.argv[1])
blend.build().close()
before = counters()
plan = blend.build()
lock_of(plan)  # a run samples its inputs, to know them again
aside = since(before)
ahead = outlook(plan).prediction
plan.close()
before = counters()
began = time.perf_counter()
blend.save(sys.argv[2], overwrite=True, resume=False)  # with the plan and what is synced in the end
seconds = time.perf_counter() - began
taken = since(before)
# not `ru_maxrss`, which begins with the memory of the process that started this one
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
peak = int(status["VmHWM"].split()[0]) * 1024
print(json.dumps({"said": asdict(ahead), "read": taken["rchar"] - aside["rchar"], "written": taken["wchar"],
    "peak": peak, "seconds": seconds}))
"""
BYTES, MEMORY, TIME = 2e-4, 0.2, 0.3  # how far from 1 said over taken may be
HEADS = ("read", "written", "peak", "seconds")


def once(folder: Path, method: str) -> dict[str, Any]:
    """One plan and one merge in a process of its own."""
    path, _ = recipe(folder, method)
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    text = subprocess.run(
        [sys.executable, "-c", CODE, str(path), str(out)], check=True, capture_output=True, text=True
    ).stdout
    shutil.rmtree(out, ignore_errors=True)
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found


def timed(folder: Path, method: str, rounds: int) -> tuple[list[dict[str, Any]], list[tuple[float, float]]]:
    """The faster of two runs in each round, and their floors."""
    _, files = recipe(folder, method)

    def run() -> dict[str, Any]:
        chill(files, False)
        return once(folder, method)

    runs, floors = [], []
    for _ in range(rounds):
        settle(files)
        (first, one), (second, other) = ((waited(files, folder).wall, run()) for _ in range(2))
        runs.append(min(one, other, key=lambda found: found["seconds"]))
        floors.append((first, second))
    return runs, floors


def measure(folder: Path, tiny: Path, method: str, rounds: int) -> dict[str, Any]:
    """What was said and taken; no time without rounds."""
    small = once(tiny, method)
    runs, floors = timed(folder, method, rounds) if rounds else ([once(folder, method)], [])
    run, said = runs[-1], Prediction(**runs[-1]["said"])
    read = run["read"] - (small["read"] - small["said"]["bytes_read"])
    written = run["written"] - (small["written"] - small["said"]["bytes_written"])
    found = {
        "commit": commit(),
        "read": min(max(read, said.bytes_read), said.bytes_read_at_most or said.bytes_read) / read,
        "written": said.bytes_written / written,
        "peak": said.peak_memory / median(r["peak"] for r in runs),
        "runs": runs,
        "floors": floors,
    }
    if not floors:
        return found
    walls = [each["seconds"] - small["seconds"] for each in runs]
    ahead = [taken(said, min(pair)) for pair in floors]
    return found | {
        "said_floors": median(one / min(pair) for one, pair in zip(ahead, floors, strict=True)),
        "taken_floors": median(wall / min(pair) for wall, pair in zip(walls, floors, strict=True)),
        "seconds": median(one / wall for one, wall in zip(ahead, walls, strict=True)),
    }


def wrong(found: dict[str, Any]) -> list[str]:
    """Which predictions are further off than is promised."""
    limits = dict(zip(HEADS, (BYTES, BYTES, MEMORY, TIME), strict=True))
    return [head for head, most in limits.items() if head in found and abs(found[head] - 1) > most]


def shown(method: str, found: dict[str, Any]) -> str:
    said, peaks = found["runs"][-1]["said"]["peak_memory"], [run["peak"] for run in found["runs"]]
    cells = f"{method:16}{found['read']:9.4f}{found['written']:9.4f}"
    cells += f"{said / 1e6:9.0f} /{median(peaks) / 1e6:6.0f} MB"
    cells += f"{found['peak']:7.2f}"
    if "seconds" in found:
        cells += f"{found['said_floors']:9.2f} /{found['taken_floors']:6.2f} ×{found['seconds']:7.2f}"
    return cells + "".join(f"  {head}!" for head in wrong(found))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="0.5b")
    parser.add_argument("--methods", nargs="+", default=[*METHODS, *NATIVE], choices=[*METHODS, *NATIVE])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-time", action="store_true", help="one run of each, no floor")
    parser.add_argument("--work", type=Path, default=None, help="folder of checkpoints, kept")
    parser.add_argument("--out", type=Path, default=None, help="JSON file of results")
    given = parser.parse_args()
    os.environ.setdefault("CUVEE_CATALOG", "off")
    work = given.work or Path(tempfile.mkdtemp(prefix="cuvee-predict-"))
    for size in ("1mb", given.size):
        for number, name in enumerate(("base", *EXPERTS)):
            if not (work / size / name / "config.json").exists():
                write_model(work / size / name, size, number)
    results: dict[str, Any] = {}
    print(f"{'said / taken':16}{'read':>9}{'written':>9}{'peak memory':>18}{'':7}{'times the floor':>18}")
    for method in given.methods:
        rounds = 0 if given.without_time else given.rounds
        results[method] = measure(work / given.size, work / "1mb", method, rounds)
        print(shown(method, results[method]), flush=True)
        if given.out:
            machine = {"cpus": os.cpu_count(), "load": os.getloadavg(), "when": time.strftime("%Y-%m-%d")}
            data = {"size": given.size, "rounds": rounds, "machine": machine, "results": results}
            given.out.write_text(json.dumps(data, indent=1) + "\n")
    if given.work is None:
        shutil.rmtree(work)
    sys.exit(any(map(wrong, results.values())))


if __name__ == "__main__":
    main()
