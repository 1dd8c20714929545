"""Promises 1, 2 and 6 with real processes: kill -9 in the middle, a reader all along, races for one output.

CUVEE_TEST_KILLS sets the number of kills (default 40).
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import slow_merge

from cuvee.bundle.manifest import verify_folder
from cuvee.sinks import journal as journals

SCRIPT = Path(slow_merge.__file__)
SOURCE = Path(journals.__file__).parents[2]
KILLS = int(os.environ.get("CUVEE_TEST_KILLS", "40"))


def start(out: Path, pause: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(out), str(pause)],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
        text=True,
    )


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


class Watcher(threading.Thread):
    """Reads the outputs all the time; whatever it sees of one must be complete."""

    def __init__(self, parent: Path) -> None:
        super().__init__(daemon=True)
        self.parent = parent
        self.stop = threading.Event()
        self.looks = self.models = 0
        self.faults: list[str] = []

    def run(self) -> None:
        while not self.stop.is_set():
            self.looks += 1
            for out in sorted(self.parent.glob("out*")):
                self.models += 1
                self.faults += [d.message for d in verify_folder(out)]
            time.sleep(0.003)


@pytest.mark.slow
def test_killed_at_any_time_and_run_again_gives_the_same_bytes(tmp_path: Path) -> None:
    chance = random.Random(11)
    slow_merge.merge(tmp_path / "straight", 0)
    expected = hashes(tmp_path / "straight")
    watcher = Watcher(tmp_path)
    watcher.start()
    kills = finished = resumed = 0
    while kills < KILLS or finished == 0:
        out = tmp_path / f"out{finished}"
        with start(out, 0.003) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(chance.uniform(0, 0.15))
            if kills < KILLS:
                child.send_signal(signal.SIGKILL)
        kills += child.returncode == -signal.SIGKILL
        resumed += (tmp_path / f".{out.name}.cuvee-part").exists()
        if child.returncode != -signal.SIGKILL or out.exists():
            with start(out, 0) as again:  # a run that died after its last rename has nothing left to do
                said = again.communicate()[0].split()
            assert (again.returncode, said[1:]) in [(0, ["done"]), (3, ["busy", "CV-E006"])]
            assert hashes(out) == expected
            finished += 1
    watcher.stop.set()
    watcher.join()
    assert watcher.faults == []
    assert watcher.looks > 100
    assert resumed > KILLS // 3
    assert [p.name for p in tmp_path.glob(".*") if p.name != f".out{finished}.cuvee-part"] == []


@pytest.mark.parametrize("attempt", range(20))
def test_two_runs_race_for_one_output(tmp_path: Path, attempt: int) -> None:
    out = tmp_path / "out"
    pids = [os.fork() for _ in range(1)]
    if pids[0] == 0:
        os._exit(race(out, attempt))
    mine = race(out, attempt + 1)
    theirs = os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1])
    assert sorted((mine, theirs)) == [0, 3]
    assert verify_folder(out) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def race(out: Path, seed: int) -> int:
    try:
        time.sleep(random.Random(seed).choice((0, 0, 0.001, 0.005)))
        slow_merge.merge(out, 0.0002)
    except slow_merge.OutputBusy:
        return 3
    except BaseException:  # noqa: BLE001 - a forked child must not run the parent's test session
        return 70
    return 0


def test_every_file_and_both_folders_are_synced_before_the_end(tmp_path: Path) -> None:
    """Promise 3 as the system sees it, where strace exists."""
    strace = "/usr/bin/strace"
    log = tmp_path / "log"
    try:
        subprocess.run([strace, "-V"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no strace")
    done = subprocess.run(
        [strace, "-f", "-y", "-o", str(log), "-e", "trace=fsync,rename,renameat,renameat2,write,openat",
         sys.executable, str(SCRIPT), str(tmp_path / "out"), "0"],
        env={**os.environ, "PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "done" not in done.stdout:
        pytest.skip(f"strace may not trace here: {done.stderr[-200:]}")
    lines = log.read_text().splitlines()
    rename = next(i for i, line in enumerate(lines) if "rename" in line and f'{tmp_path}/out"' in line)
    said = next(i for i, line in enumerate(lines) if "write(1" in line and "done" in line)
    synced = {line.partition("<")[2].partition(">")[0]: i for i, line in enumerate(lines) if "fsync(" in line}
    model = tmp_path / ".out.cuvee-part/model"
    for name in [*hashes(tmp_path / "out"), "", "sub"]:
        assert synced[str(model / name)] < rename, name
    assert rename < synced[str(tmp_path)] < said
