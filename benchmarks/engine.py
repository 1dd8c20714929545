"""The engine against the floor: every input byte read, every output byte written, fsync; all in one run.

    python benchmarks/engine.py --size 0.1b --out benchmarks/results/engine-0.1b.json

Each round measures for each method: the same command on a checkpoint of 1 MB, whose wall time is start-up and is
taken off; then twice the floor (plain large `preadv` into reused buffers, `pwrite` begun early and pages used again,
`fsync`, a thread for each core) and `cuvee merge` in a process of its own. Ratios are taken within a round, of the
faster run to the faster floor: a virtual machine may give free pages back to its host, and whoever needs them next
waits for each, so that either may take four times as long. For the same reason a file of the output's size is written
and removed before each measurement (before a cold one, memory of the size of all files is taken and given back), the
floor begins as long after that as a merge writes its first page, and a warm round begins once the floor is nearly as
fast as it ever was. Reported are medians over the rounds, with a warm page cache (`warm`: inputs are locked there where
that is allowed, and each round says whether) and, where this process may drop it (root, --cold also), with a cold one.

Checkpoints are synthetic Llamas in bfloat16, made here. With --mergekit, that `mergekit-yaml` merges the same files at
the end of the first --rival-rounds warm rounds, and `at most`: how many times faster a program would be that starts in
no time and takes the floor's. No block catalogue is asked or written (CUVEE_CATALOG=off, unless it is set).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import warm
from checkpoints import config, shapes

from cuvee.core import linux_calls

EXPERTS = ("one", "two", "three")
PIECE = 4 << 20
BEHIND = 8 * PIECE
FLOORS: dict[
    tuple[int, int], float
] = {}  # the fastest floor of `settle`, by number of files and bytes written
START = 0.3  # seconds that a merge takes before its first page
DROP = Path("/proc/sys/vm/drop_caches")
# The peak is told by the process: its `ru_maxrss` begins with the memory of the one that started it.
MERGE = """
import atexit, sys
from pathlib import Path
atexit.register(lambda: sys.stderr.write(Path("/proc/self/status").read_text()))
from cuvee.cli import main
sys.exit(main())
"""

# method → (models, base, parameters of all, parameters of each model)
METHODS: dict[str, tuple[int, bool, dict[str, Any], dict[str, Any]]] = {
    "passthrough": (1, False, {}, {}),
    "linear": (3, False, {}, {"weight": 0.4}),
    "task_arithmetic": (3, True, {}, {"weight": 0.4}),
    "ties": (3, True, {"normalize": True}, {"weight": 0.4, "density": 0.3}),
    "dare_linear": (3, True, {"rescale": False}, {"weight": 0.4, "density": 0.3}),
    "dare_ties": (3, True, {}, {"weight": 0.4, "density": 0.3}),
    "breadcrumbs": (3, True, {}, {"weight": 0.4, "density": 0.9, "gamma": 0.01}),
    "slerp": (1, True, {"t": 0.3}, {}),
    "nuslerp": (2, True, {}, {"weight": 0.4}),
    "multislerp": (3, True, {}, {"weight": 0.4}),
    "karcher": (3, False, {}, {}),
    "model_stock": (3, True, {}, {}),
    "nearswap": (1, True, {"t": 0.0005}, {}),
    "sce": (3, True, {"select_topk": 0.1}, {}),
    "ram": (3, True, {}, {}),
    "della": (3, True, {}, {"weight": 0.4, "density": 0.3, "epsilon": 0.15}),
}
# The same in Cuvée's own language: thresholds over the whole model.
NATIVE = {
    "ties_model": {"method": "ties", "density": 0.3, "weight": 0.4},
    "consensus": {"method": "consensus"},
    "magmax": {"method": "magmax"},
    "dare_l1": {"method": "dare_linear", "density": 0.3, "weight": 0.4, "rescale": "l1"},
    "della_l1": {"method": "della", "density": 0.3, "epsilon": 0.15, "weight": 0.4, "rescale": "l1"},
    "pcb": {"method": "pcb"},
    "emr": {"method": "emr"},
}


@dataclass(frozen=True)
class Measured:
    """One command: wall and CPU seconds, peak resident MB."""

    wall: float
    cpu: float
    rss: float


def narrow(values: np.ndarray) -> np.ndarray:
    """float32 → bits of bfloat16, to nearest even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def header(size: str) -> tuple[bytes, int]:
    """The head of a model's file, and how many bytes of weights follow."""
    tensors: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes(size).items():
        count = int(np.prod(shape))
        tensors[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + 2 * count]}
        at += 2 * count
    text = json.dumps(tensors).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text, at


def write_model(folder: Path, size: str, expert: int) -> None:
    """The base (expert 0), or the base with heavy-tailed changes of about 5 % of its size."""
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header(size)[0])
        for number, shape in enumerate(shapes(size).values()):
            draw, change = np.random.default_rng(number), np.random.default_rng([number, expert])
            for piece in pieces(int(np.prod(shape))):
                values = draw.standard_normal(piece, dtype=np.float32) * np.float32(0.02)
                if expert:
                    tail = change.standard_normal(piece, dtype=np.float32)
                    values += tail * tail * tail * np.float32(0.0003)
                file.write(narrow(values).tobytes())
    (folder / "config.json").write_text(json.dumps(config(size)))


def pieces(count: int, step: int = 1 << 20) -> Iterator[int]:
    while count > 0:
        yield min(step, count)
        count -= step


def recipe(folder: Path, method: str) -> tuple[Path, list[Path]]:
    """The recipe of a method in a folder of models, and the files that it reads."""
    path = folder / f"{method}.yaml"
    models = METHODS.get(method, (3, True))[0]
    names = EXPERTS[:models]
    if method in NATIVE:
        experts = {n: f"./{n}" for n in names}
        path.write_text(
            json.dumps({"version": 1, "base": "./base", "experts": experts, "merge": NATIVE[method]})
        )
        return path, [folder / n / "model.safetensors" for n in ("base", *names)]
    _, base, shared, own = METHODS[method]
    data: dict[str, Any] = {"merge_method": method, "parameters": shared}
    data["models"] = [{"model": f"./{n}", "parameters": own} for n in names]
    if base:
        data["base_model"] = "./base"
    path.write_text(json.dumps(data))  # JSON is YAML
    return path, [folder / n / "model.safetensors" for n in ((("base",) if base else ()) + names)]


def command(folder: Path, method: str, out: Path) -> Measured:
    """One `cuvee merge` in a process of its own."""
    path, _ = recipe(folder, method)
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-c", MERGE, "merge", str(path), "-o", str(out), "--quiet", "--offline"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    told = child.stderr.read()
    _, status, used = os.wait4(child.pid, 0)
    wall = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{method} failed: {told}")
    shutil.rmtree(out)
    return Measured(wall, used.ru_utime + used.ru_stime, float(told.split("VmHWM:")[1].split()[0]) / 1024)


def floor(files: list[Path], out: Path, nbytes: int, threads: int | None = None) -> Measured:
    """Read the files and write one of `nbytes`, in pieces of 4 MiB, by `threads` (one for each core), then fsync.

    Reads are asked for ahead of their turn, the device begins with each piece early, and what it is done with is given
    back.
    """
    out.unlink(missing_ok=True)
    before = os.times()
    began = time.perf_counter()
    target = os.open(out, os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(target, 0, nbytes)
    sources = [os.open(path, os.O_RDONLY) for path in files]
    work = [(at, min(PIECE, nbytes - at)) for at in range(0, nbytes, PIECE)]
    lock = threading.Lock()

    def worker() -> None:
        buffer = memoryview(bytearray(PIECE))
        while True:
            with lock:
                if not work:
                    return
                at, count = work.pop(0)
            for source in sources:
                if hasattr(os, "posix_fadvise"):  # without it a device waits between pieces
                    os.posix_fadvise(source, at + 2 * PIECE, PIECE, os.POSIX_FADV_WILLNEED)
                os.preadv(source, [buffer[:count]], at)
            os.pwrite(target, buffer[:count], at)
            # As a merge does: begun early, and pages used again, since fresh ones may be dear.
            linux_calls.begin_writing(target, at, count)
            if at >= BEHIND and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(target, at - BEHIND, count, os.POSIX_FADV_DONTNEED)

    workers = [threading.Thread(target=worker) for _ in range(threads or os.cpu_count() or 1)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    os.fsync(target)
    wall = time.perf_counter() - began
    for number in (target, *sources):
        os.close(number)
    out.unlink()
    after = os.times()
    return Measured(wall, after.user + after.system - before.user - before.system, 0.0)


def chill(files: list[Path], cold: bool) -> bool:
    """Bring the page cache into the wanted state, and the machine to hold free pages for one output.

    Whether the files are locked in the cache.
    """
    os.sync()
    locked = not cold and warm.keep(files)
    if cold:
        warm.release()
        DROP.write_text("3")
    # last, as free pages go back to the host within a second
    floor([], files[0].parent / "pages.bin", files[0].stat().st_size)
    return locked


def waited(files: list[Path], folder: Path, threads: int | None = None) -> Measured:
    """The floor with warm caches, in the state that a merge finds, and begun when that writes its first page."""
    chill(files, False)
    time.sleep(START)
    return floor(files, folder / "floor.bin", files[0].stat().st_size, threads)


def settle(files: list[Path]) -> None:
    """Repeat the floor until it is nearly as fast as ever for as many bytes here, six times at most.

    Behind a process that freed gigabytes, the host of a virtual machine takes them back for some seconds, and all that
    needs pages is slow.
    """
    kind = (len(files), files[0].stat().st_size)
    for _ in range(6):
        found = waited(files, files[0].parent).wall
        known = FLOORS.get(kind)
        FLOORS[kind] = found if known is None else min(found, known)
        if known is not None and found < 1.4 * known:
            return


def rival(program: Path, folder: Path, method: str, out: Path) -> Measured:
    """One run of `mergekit-yaml` on the same recipe and files, followed by a sync of what it wrote."""
    path, _ = recipe(folder, method)
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    child = subprocess.Popen(
        [str(program), str(path), str(out), "--no-copy-tokenizer", "--allow-crimes"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
    )
    _, status, used = os.wait4(child.pid, 0)
    for file in out.glob("*") if out.exists() else ():
        number = os.open(file, os.O_RDONLY)
        os.fsync(number)
        os.close(number)
    wall = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{program} failed at {method}")
    shutil.rmtree(out)
    return Measured(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def commit() -> str:
    """What is measured: the commit, with a + where the package was changed since."""
    here = Path(__file__).resolve().parents[1]

    def said(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=False
        ).stdout.strip()

    return said("rev-parse", "--short", "HEAD") + ("+" if said("status", "--porcelain", "--", "src") else "")


def one_round(method: str, folder: Path, tiny: Path, cold: bool, program: Path | None) -> dict[str, Any]:
    """Floor, run, floor, run, and with `program` MergeKit's run."""
    _, files = recipe(folder, method)
    nbytes, out = files[0].stat().st_size, folder / "out"
    found: dict[str, Any] = {"floors": [], "runs": []}
    command(tiny, method, out)  # brings the program back into the page cache
    found["start"] = asdict(command(tiny, method, out))

    def ready() -> None:
        found["locked"] = chill(files, cold)
        if cold:
            command(tiny, method, out)  # brings the program back
            np.ones(nbytes * (1 + len(files)), np.uint8)  # pages for all that will be read and written

    for _ in range(2):
        ready()
        time.sleep(START)
        found["floors"].append(asdict(floor(files, folder / "floor.bin", nbytes)))
        ready()
        found["runs"].append(asdict(command(folder, method, out)))
    if program is not None:
        chill(files, cold)
        found["rival"] = asdict(rival(program, folder, method, out))
    return found


def faster(measured: list[dict[str, float]]) -> dict[str, float]:
    return min(measured, key=lambda one: one["wall"])


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds: of each the faster run beside the faster floor, and the mean run beside the rival."""
    floors = [faster(each["floors"]) for each in rounds]
    runs = [faster(each["runs"]) for each in rounds]
    walls = [run["wall"] - each["start"]["wall"] for run, each in zip(runs, rounds, strict=True)]
    ratios = [wall / one["wall"] for wall, one in zip(walls, floors, strict=True)]
    beside = [
        (each["rival"]["wall"], mean(run["wall"] for run in each["runs"]))
        for each in rounds
        if "rival" in each
    ]
    bottom = median(one["wall"] for one in floors)
    return {
        "wall": median(walls),
        "floor": bottom,
        "ratio": median(ratios),
        "spread": [min(ratios), max(ratios)],
        "cpu": median(run["cpu"] - each["start"]["cpu"] for run, each in zip(runs, rounds, strict=True)),
        "floor_cpu": median(one["cpu"] for one in floors),
        "start": median(each["start"]["wall"] for each in rounds),
        "rss_mb": median(max(run["rss"] for run in each["runs"]) for each in rounds),
        "times_faster": median(other / own for other, own in beside) if beside else None,
        # what a program would reach that starts in no time and runs at the floor: that of all rounds, since rivals run
        # in few of them, and a slow floor there would make little of what can be had
        "at_most": median(other for other, _ in beside) / bottom if beside else None,
    }


def measure(
    method: str, folder: Path, tiny: Path, rounds: int, cold: bool, rivals: list[Path]
) -> dict[str, Any]:
    """A method's rounds and what they amount to; the first rounds have a rival each."""
    if cold or method in NATIVE:  # which MergeKit does not read
        rivals = []
    programs = [*rivals, *[None] * rounds][:rounds]
    found, files = [], recipe(folder, method)[1]
    for program in programs:
        if not cold:
            settle(files)
        found.append(one_round(method, folder, tiny, cold, program))
    return {"commit": commit(), "load": os.getloadavg(), **summary(found), "rounds": found}


def save(path: Path, size: str, results: dict[str, Any]) -> None:
    """What is known so far."""
    machine = {"cpus": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()}
    path.write_text(json.dumps({"size": size, "machine": machine, "results": results}, indent=1) + "\n")


def shown(method: str, cold: bool, found: dict[str, Any]) -> str:
    cells = "".join(f"{found[key]:8.2f}" for key in ("floor", "wall", "ratio", "cpu", "start"))
    cells += f"{found['rss_mb']:8.0f}{found['times_faster'] or 0:8.1f}{found['at_most'] or 0:8.1f}"
    return f"{method:18}{'cold' if cold else 'warm':7}{cells}" + "  {:.2f} … {:.2f}".format(*found["spread"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("0.1b", "0.5b", "1.5b"), default="0.1b")
    parser.add_argument("--methods", nargs="+", default=[*METHODS, *NATIVE])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--cold", choices=("also", "only"), default=None, help="measure with dropped caches (root)"
    )
    parser.add_argument(
        "--work", type=Path, default=None, help="folder of checkpoints, kept; default: temporary"
    )
    parser.add_argument("--mergekit", type=Path, default=None, help="a `mergekit-yaml` to measure against")
    parser.add_argument(
        "--rival-rounds", type=int, default=None, help="warm rounds it takes part in; default: all"
    )
    parser.add_argument("--out", type=Path, default=None, help="JSON file of results")
    given = parser.parse_args()
    os.environ.setdefault("CUVEE_CATALOG", "off")
    asked = given.rounds if given.rival_rounds is None else given.rival_rounds
    rivals = [given.mergekit] * asked if given.mergekit else []
    work = given.work or Path(tempfile.mkdtemp(prefix="cuvee-bench-"))
    for size in ("1mb", given.size):
        for number, name in enumerate(("base", *EXPERTS)):
            if not (work / size / name / "config.json").exists():
                write_model(work / size / name, size, number)
    states = {None: [False], "also": [False, True], "only": [True]}[given.cold]
    if True in states and not os.access(DROP, os.W_OK):
        sys.exit(f"{DROP} cannot be written")
    known = given.out and given.out.exists() and json.loads(given.out.read_text())
    results: dict[str, Any] = known["results"] if known else {}
    heads = ("floor", "wall", "ratio", "cpu", "start", "RSS MB", "faster", "at most", "spread")
    print(f"{'method':18}{'cache':7}" + "".join(f"{head:>8}" for head in heads))
    for method in given.methods:
        for cold in states:
            found = measure(method, work / given.size, work / "1mb", given.rounds, cold, rivals)
            results.setdefault(method, {})["cold" if cold else "warm"] = found
            print(shown(method, cold, found), flush=True)
            if given.out:
                save(given.out, given.size, results)
    warm.release()
    if given.work is None:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
