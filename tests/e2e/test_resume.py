"""Promise 2 through the real command: `kill -9` at any time, then the same bytes; other inputs are never mixed in.

CUVEE_TEST_MERGE_KILLS sets the number of kills (default 25).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import cuvee

SOURCE = Path(cuvee.__file__).parents[1]
KILLS = int(os.environ.get("CUVEE_TEST_MERGE_KILLS", "25"))
RECIPE = """\
version: 1
base: ./base
experts: {math: {source: ./math, weight: 0.7}, code: ./code}
merge: {method: dare_ties, density: 0.5}
output: {shard_size: 4MB}
"""


def checkpoint(
    folder: Path, seed: int, start: dict[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    tensors = {f"layers.{i}.w": torch.randn(400, 500) for i in range(40)}
    if start is not None:
        tensors = {name: start[name] + 0.1 * noise for name, noise in tensors.items()}
    folder.mkdir(exist_ok=True)
    save_file({n: t.bfloat16() for n, t in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    return tensors


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    base = checkpoint(folder / "base", 0)
    checkpoint(folder / "math", 1, base)
    checkpoint(folder / "code", 2, base)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def start(folder: Path, out: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-c",
        "from cuvee.cli import main; main()",
        "merge",
        "recipe.yaml",
        "-o",
        out,
        "-q",
        "--threads",
        "2",
    ]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "CUVEE_KERNELS": "off"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finished(folder: Path, out: str) -> tuple[int, str]:
    with start(folder, out) as child:
        said = child.communicate()[1].decode()
    return child.returncode, said


def killed_with_work_done(folder: Path, out: str, number: int = signal.SIGKILL) -> None:
    """A run that is killed after it finished some tensors, and before it finished all."""
    journal = folder / f".{out}.cuvee-part" / "journal.jsonl"
    for _ in range(10):
        with start(folder, out) as child:
            while child.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 3):
                time.sleep(0.002)
            child.send_signal(number)
            child.communicate()
        if not (folder / out).exists():
            return
        shutil.rmtree(folder / out)
    pytest.fail("the run always finished before it could be killed")


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.slow
def test_killed_at_random_times_the_bytes_are_those_of_one_run(models: Path) -> None:
    began = time.monotonic()
    assert finished(models, "out") == (0, "")
    whole = time.monotonic() - began
    expected = hashes(models / "out")
    shutil.rmtree(models / "out")
    chance = random.Random(5)
    kills = in_the_middle = 0
    while kills < KILLS:
        with start(models, "out") as child:
            time.sleep(chance.uniform(0.3, 1.0) * whole)
            child.kill()
            child.communicate()
        kills += 1
        in_the_middle += (models / ".out.cuvee-part" / "model").exists()
        if (models / "out").exists():
            assert hashes(models / "out") == expected
            shutil.rmtree(models / "out")
            shutil.rmtree(models / ".out.cuvee-part", ignore_errors=True)
    assert finished(models, "out") == (0, "")
    assert hashes(models / "out") == expected
    assert in_the_middle > KILLS // 5
    assert not (models / ".out.cuvee-part").exists()
    shutil.rmtree(models / "out")


def between_samples(data: bytes) -> bytes:
    """The file with a bit flipped in the middle between any two of the 64 places at which a stamp looks."""
    step = (len(data) - 4096) // 63
    places = [step * number + step // 2 for number in range(63)]
    changed = bytearray(data)
    for place in places:
        changed[place] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    "how",
    [
        "another file of the same header",
        "the same file, size and time",
        "a few values of the same file between its samples, at the same time",
    ],
)
def test_what_is_left_of_other_inputs_is_not_resumed(how: str, models: Path) -> None:
    """Two fine-tunes have equal sizes and headers: their plans are the same, their bytes must not be mixed."""
    out = f"swap{len(how)}"
    killed_with_work_done(models, out)
    expert = models / "math" / "model.safetensors"
    before, times = expert.read_bytes(), expert.stat()
    checkpoint(models / "other", 7)
    other = (models / "other" / "model.safetensors").read_bytes()
    assert len(other) == len(before)
    if how.startswith("a few"):
        other = between_samples(before)
    if how.startswith("another"):
        expert.unlink()
    expert.write_bytes(other)
    if not how.startswith("another"):
        os.utime(expert, ns=(times.st_atime_ns, times.st_mtime_ns))
    try:
        code, said = finished(models, out)
        assert code == 1
        assert "CV-E008" in said
        assert "--no-resume" in said
        assert not (models / out).exists()
    finally:
        expert.write_bytes(before)
        shutil.rmtree(models / f".{out}.cuvee-part")


def test_a_signal_leaves_what_can_be_resumed(models: Path) -> None:
    killed_with_work_done(models, "polite", signal.SIGTERM)
    journal = models / ".polite.cuvee-part" / "journal.jsonl"
    assert journal.read_bytes().count(b"\n") > 3
    assert finished(models, "polite") == (0, "")
    resumed = hashes(models / "polite")
    shutil.rmtree(models / "polite")
    assert finished(models, "polite") == (0, "")
    assert hashes(models / "polite") == resumed
