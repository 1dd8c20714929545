"""Every method of the catalogue on a sharded checkpoint of several gigabytes, within the default memory budget.

    python benchmarks/catalogue.py --out benchmarks/results/catalogue

A synthetic Llama in bfloat16 (base and 3 experts, each in several shards; adapters of rank 16 for the methods that want
them) is merged by each method with the default settings, in a process of its own, without decompositions from earlier
runs. Bytes are the process's own counters (`/proc/self/io`) less what the same method takes on a checkpoint of 1 MB
beyond its prediction; memory is the resident maximum less that of the same method on the checkpoint of 1 MB.

The bound: the default budget and 64 MiB, and for methods that see tensors whole eight float32 copies of the largest.
Exits with 1 when a method breaks it. Methods of matrices run on a smaller size, the slowest on a smaller one still, so
that all of them end within half an hour on two quiet cores; `--size large` runs what you name on the largest. What
iterates over a matrix takes minutes for each there: `--steps` makes iterations fewer; memory does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoints import SIZES, prepare

EXPERTS = 3
PACKAGES = {"emr", "onebit", "reversible_merging", "tall_masks", "tsv_c"}
ADAPTERS = ("core_space", "do_merging", "knots", "lora_", "robustmerge")  # first parts of names
SLOWER = {"doge_ta", "drm_h", "drm_v", "lore", "optmerge", "swudi", "wudi"}
CONSTANT, COPIES = 64 << 20, 8


# -- one merge, in a process of its own ---------------------------------------------------------------------------


def merge_once(method: str, folder: Path, out: Path, steps: int | None) -> dict[str, Any]:
    """Plan, merge, and say what was predicted and what it took."""
    import cuvee
    from cuvee.api.package import save_as_package
    from cuvee.methods.privacy.secret import fingerprint
    from cuvee.methods.registry import get
    from cuvee.testing.sample_values import sample_values

    found = get(method)
    count = found.inputs[1] or EXPERTS
    experts = [str(folder / str(i)) for i in range(1, count + 1)]
    if method.startswith(ADAPTERS):
        experts = [f"{folder / '0'} + {folder / f'adapter{i}'}" for i in range(1, count + 1)]
    values = sample_values(found, count)
    if "key" in values:
        values["key"] = fingerprint(os.environ["CUVEE_LOCK_KEY"])
    if steps is not None:
        values["steps"] = steps
    base = str(folder / "0") if found.base != "ordinary" else None
    if method in PACKAGES:
        values = {name: value for name, value in values.items() if name != "restore"}
        said = predicted(package(experts, base, method, values))
        before = counters()
        done: Any = save_as_package(experts, out, base=base, method=method, overwrite=True, **values)
        said["written"] = done.content["bytes"]["total"]
    else:
        blend = cuvee.merge(experts, base=base, method=method, **values)
        said = predicted(blend)
        before = counters()
        done = blend.save(out, overwrite=True, resume=False)
    after, used = counters(), resource.getrusage(resource.RUSAGE_SELF)
    # not `ru_maxrss`, which begins with the memory of the process that started this one
    return {
        "said": said,
        "read": after["rchar"] - before["rchar"],
        "written": after["wchar"] - before["wchar"],
        "peak": int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024,
        "seconds": done.finished.seconds,
        "cpu": used.ru_utime + used.ru_stime,
    }


def package(experts: list[str], base: str | None, method: str, values: dict[str, Any]) -> Any:
    """What `save_as_package` plans."""
    import cuvee
    from cuvee.api.python_recipe import recipe_from
    from cuvee.recipe.model import PackageOutput
    from cuvee.recipe.packaging import packaged, packaged_method

    recipe = recipe_from(experts, base, packaged_method(method), values, {"out_dtype": None})
    return cuvee.Blend(packaged(replace(recipe, output=replace(recipe.output, package=PackageOutput()))))


def predicted(blend: Any) -> dict[str, int]:
    """What the plan says, and the number of elements of the largest tensor that is made whole."""
    from cuvee.api.outlook import outlook
    from cuvee.methods.registry import stage
    from cuvee.plan.nodes import Apply, Enter, walk

    plan = blend.build()
    ahead = outlook(plan).prediction
    whole = 0
    for tensor in plan.tensors:
        nodes = list(walk(tensor.node))
        applied = [n for n in nodes if isinstance(n, Apply)]
        if any(isinstance(n, Enter) for n in nodes) or any(
            stage(n.stage).access_for(dict(n.values)) == "tensor" for n in applied
        ):
            whole = max(whole, tensor.meta.numel)
    plan.close()
    return {
        "read": ahead.bytes_read,
        "written": ahead.bytes_written,
        "peak": ahead.peak_memory,
        "whole": whole,
    }


def counters() -> dict[str, int]:
    lines = (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return {name: int(value) for name, value in lines}


def size_of(method: str) -> str:
    """The size a method is run on where none is chosen."""
    from cuvee.methods.registry import get, stage

    if method in SLOWER:
        return "small"
    stages = [stage(step.stage) for step in get(method).steps]
    whole = any(one.lazy or one.access == "tensor" or one.role == "space" for one in stages)
    return "medium" if whole else "large"


# -- all of them --------------------------------------------------------------------------------------------------


def apart(method: str, folder: Path, steps: int | None) -> dict[str, Any]:
    """One merge in a process of its own; its output is removed."""
    out = folder / f"out-{os.getpid()}"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, __file__, "--one", method, str(folder), str(out)]
    command += [] if steps is None else ["--steps", str(steps)]
    told = {**os.environ, "CUVEE_DECOMPOSITIONS": "off", "CUVEE_LOCK_KEY": "0" * 64}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=told)
    shutil.rmtree(out, ignore_errors=True)
    if done.returncode:
        return {"failed": done.stderr.strip() or "without a word"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(method: str, work: Path, size: str, steps: int | None = None) -> dict[str, Any]:
    tiny, run = apart(method, work / "tiny", steps), apart(method, work / size, steps)
    if failed := run.get("failed") or tiny.get("failed"):
        return {"method": method, "size": size, "failed": failed, "within": False}
    bound = (128 << 20) + CONSTANT + COPIES * 4 * run["said"]["whole"]
    peak = run["peak"] - tiny["peak"]
    row = {"method": method, "size": size, "seconds": run["seconds"], "cpu": run["cpu"], "peak": peak}
    row |= {} if steps is None else {"steps": steps}
    for name in ("read", "written"):
        row[name] = run[name] - (tiny[name] - tiny["said"][name])
        row[f"{name}_said"] = run["said"][name]
    return {
        **row,
        "peak_said": run["said"]["peak"],
        "peak_whole": run["peak"],
        "bound": bound,
        "within": peak <= bound,
    }


HEAD = (
    "method",
    "size",
    "wall s",
    "CPU s",
    "memory MB",
    "bound MB",
    "read GB",
    "/ said",
    "written GB",
    "/ said",
)


def cells(row: dict[str, Any]) -> list[str]:
    if "failed" in row:
        return [row["method"], row["size"], f" failed: {row['failed'].splitlines()[-1]}"]
    name = f"{row['method']} ({row['steps']} steps)" if "steps" in row else row["method"]
    shown = [name, row["size"], f"{row['seconds']:.1f}", f"{row['cpu']:.1f}"]
    shown += [f"{row['peak'] / 1e6:.0f}" + ("" if row["within"] else " !"), f"{row['bound'] / 1e6:.0f}"]
    for name in ("read", "written"):
        shown += [f"{row[name] / 1e9:.3f}", f"{row[name] / max(1, row[f'{name}_said']):.4f}"]
    return shown


def write(out: Path, rows: list[dict[str, Any]], note: str) -> None:
    machine = {"cpus": os.cpu_count(), "processor": platform.machine(), "when": time.strftime("%Y-%m-%d")}
    data = {"machine": machine, "note": note, "sizes": SIZES, "experts": EXPERTS, "results": rows}
    out.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    lines = [f"| {' | '.join(line)} |" for line in (HEAD, ["---"] * len(HEAD), *map(cells, rows))]
    text = (__doc__ or "").split("\n\n", 2)[2].strip() + (f"\n\n{note}" if note else "")
    out.with_suffix(".md").write_text("# The catalogue\n\n" + text + "\n\n" + "\n".join(lines) + "\n")


def main() -> int:
    from cuvee.methods.registry import names

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=list(names()))
    parser.add_argument(
        "--size", choices=("tiny", "small", "medium", "large"), default=None, help="the same for all"
    )
    parser.add_argument("--work", type=Path, default=None, help="folder of checkpoints, kept")
    parser.add_argument(
        "--out", type=Path, default=None, help="results, without the ending; merged with what is there"
    )
    parser.add_argument(
        "--note", default="", help="a sentence above the table, such as what else was running"
    )
    parser.add_argument("--steps", type=int, default=None, help="iterations, of methods that have them")
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "FOLDER", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(merge_once(given.one[0], Path(given.one[1]), Path(given.one[2]), given.steps)))
        return 0
    chosen = {method: given.size or size_of(method) for method in given.methods}
    work = given.work or Path(tempfile.mkdtemp(prefix="cuvee-catalogue-"))
    prepare(work, {"tiny", *chosen.values()}, EXPERTS)
    rows, note = {}, given.note
    if given.out and given.out.with_suffix(".json").exists():
        known = json.loads(given.out.with_suffix(".json").read_text())
        rows, note = {r["method"]: r for r in known["results"]}, note or known.get("note", "")
    print("".join(f"{head:>12}" for head in HEAD))
    for method, size in chosen.items():
        rows[method] = measure(method, work, size, given.steps)
        print("".join(f"{cell:>12}" for cell in cells(rows[method])), flush=True)
        if given.out:
            write(given.out, [rows[name] for name in sorted(rows)], note)
    if given.work is None:
        shutil.rmtree(work)
    return 0 if all(rows[method]["within"] for method in chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
