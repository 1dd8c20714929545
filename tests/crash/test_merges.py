"""Whole merges through the engine: kill -9 at any time, two at once, a full and a read-only disk, little memory.

CUVEE_KILLS sets the number of kills (default 20; 200 and 2000 by hand and on demand).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import cuvee
from cuvee.bundle.manifest import verify_folder
from cuvee.core.disk import REAL, write_file
from cuvee.engine.events import Event, Progress
from cuvee.engine.options import RunOptions
from cuvee.errors import OutOfSpace, OutputBusy, RunError

KILLS = int(os.environ.get("CUVEE_KILLS", "20"))
SOURCE = Path(cuvee.__file__).parents[1]
BUDGET = 8 << 20
PROGRAM = 80 << 20  # bytes of the interpreter, its modules and tables of counts, without torch


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    paths = []
    for seed, name in enumerate(("base", "one", "two")):
        torch.manual_seed(seed)
        tensors = {f"layers.{i}.w": torch.randn(40 + i, 997).bfloat16() for i in range(12)}
        paths.append(folder / f"{name}.safetensors")
        save_file(tensors, paths[-1])
    return paths


def blend(models: list[Path], method: str = "ties") -> cuvee.Blend:
    return cuvee.merge(models[1:], base=models[0], method=method, density=0.3)


def merge(models: list[Path], out: Path, pause: float = 0.0) -> None:
    """A merge with a pause after each block."""

    def listen(event: Event) -> None:
        if isinstance(event, Progress):
            time.sleep(pause)

    blend(models).save(out, run=RunOptions(threads=2, block=4096), listener=listen)


def forked(work: Callable[[], None]) -> int:
    """The pid of a child that does the work: exit code 0, 3 when the output was refused, else 70."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            work()
            code = 0
        except OutputBusy:
            code = 3
        except BaseException:  # noqa: BLE001 - a forked child must not run the parent's test session
            pass
        os._exit(code)
    return pid


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def hashes(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file()
    }


def weights(out: Path) -> dict[str, str]:
    return {name: digest for name, digest in hashes(out).items() if name.endswith(".safetensors")}


def staged(out: Path, pid: int) -> None:
    """Return when this child holds the lock of the staged output, or has ended."""
    lock = out.with_name(f".{out.name}.cuvee-part") / "lock"
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if lock.exists() and f'{{"pid": {pid},' in lock.read_text():
            return
        time.sleep(0.001)


def test_killed_merges_are_resumed_to_the_same_bytes(models: list[Path], tmp_path: Path) -> None:
    chance = random.Random(5)
    merge(models, tmp_path / "straight")
    expected = weights(tmp_path / "straight")
    kills = finished = resumed = 0
    out = tmp_path / "out"
    while kills < KILLS:
        pid = forked(functools.partial(merge, models, out, 0.001))
        if kills % 4 and not out.exists():  # on a busy machine all would die before anything was staged
            staged(out, pid)
            time.sleep(chance.uniform(0, 0.06))
        else:
            time.sleep(chance.uniform(0, 0.25))
        os.kill(pid, signal.SIGKILL)
        if code_of(pid) == -signal.SIGKILL:
            kills += 1
        if out.exists():  # complete at whatever moment it appeared
            assert verify_folder(out) == []
            assert code_of(forked(functools.partial(merge, models, out))) in (0, 3)
            assert weights(out) == expected
            finished += 1
            out = tmp_path / f"out{finished}"
        resumed += out.with_name(f".{out.name}.cuvee-part").exists()
    assert code_of(forked(lambda: merge(models, out))) == 0
    assert weights(out) == expected
    assert resumed > KILLS // 4


@pytest.mark.parametrize("attempt", range(5))
def test_two_merges_at_once(models: list[Path], tmp_path: Path, attempt: int) -> None:
    out = tmp_path / "out"
    pids = [forked(lambda: merge(models, out, 0.0005)) for _ in range(2)]
    assert sorted(code_of(pid) for pid in pids) == [0, 3]
    assert verify_folder(out) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@dataclass(frozen=True)
class Mounted:
    """A small file system of its own."""

    folder: Path

    def remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.folder)], check=True, capture_output=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Mounted]:
    """A file system of 4 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system cannot be mounted here")
    yield Mounted(folder)
    subprocess.run(["umount", str(folder)], check=True)


def test_a_merge_onto_a_full_file_system(models: list[Path], small_disk: Mounted, tmp_path: Path) -> None:
    before = hashes(models[0].parent)
    out, ballast = small_disk.folder / "out", small_disk.folder / "ballast"
    write_file(ballast, bytes(3_600_000))
    with pytest.raises(OutOfSpace, match=r"needed, .* free"):
        merge(models, out)
    assert [path.name for path in small_disk.folder.iterdir()] == ["ballast"]
    ballast.unlink()

    filled = False

    def fill(event: Event) -> None:
        nonlocal filled
        if isinstance(event, Progress) and not filled:
            filled = True
            write_file(ballast, bytes(REAL.free(small_disk.folder)))

    with pytest.raises(OutOfSpace):
        blend(models).save(out, run=RunOptions(threads=2, block=4096), listener=fill)
    assert not out.exists()
    ballast.unlink()
    merge(models, out)
    merge(models, tmp_path / "straight")
    assert weights(out) == weights(tmp_path / "straight")
    assert hashes(models[0].parent) == before


def test_a_merge_onto_a_disk_that_may_only_be_read(models: list[Path], small_disk: Mounted) -> None:
    small_disk.remount("ro")
    with pytest.raises(RunError) as caught:
        merge(models, small_disk.folder / "out")
    assert [d.code for d in caught.value.diagnostics] == ["CV-E003"]
    small_disk.remount("rw")
    assert list(small_disk.folder.iterdir()) == []
    merge(models, small_disk.folder / "out")
    assert verify_folder(small_disk.folder / "out") == []


def sparse(path: Path, count: int) -> Path:
    """A checkpoint of one bfloat16 tensor of zeros, of which the disk holds the header only."""
    header = json.dumps({"w": {"dtype": "BF16", "shape": [count], "data_offsets": [0, 2 * count]}}).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + 2 * count)
    return path


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """One tensor of twenty budgets in each of three models, in an address space of a few: promise 13."""
    paths = [sparse(tmp_path / f"{name}.safetensors", 10 * BUDGET) for name in ("base", "one", "two")]
    recipe = {
        "version": 1,
        "base": f"./{paths[0].name}",
        "experts": {p.stem: f"./{p.name}" for p in paths[1:]},
    }
    recipe["merge"] = {"method": "ties", "density": 0.3}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    code = """import re, sys
from cuvee.cli import main
try:
    main()
finally:
    print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])"""
    done = subprocess.run(
        [sys.executable, "-c", code, "merge", "recipe.yaml", "-o", "out.safetensors", "--quiet",
         "--memory", str(BUDGET), "--threads", "2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "MALLOC_ARENA_MAX": "2"},
        stdout=subprocess.PIPE,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20)),
    )  # fmt: skip
    assert (tmp_path / "out.safetensors").stat().st_size > 20 * BUDGET
    assert int(done.stdout.split()[-1]) * 1024 < BUDGET + PROGRAM
