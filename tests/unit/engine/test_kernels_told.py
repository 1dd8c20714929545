"""Compiled kernels are there where a compiler is; where it makes none, every run says so, once, and goes on."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import cuvee
from cuvee.core import native
from cuvee.engine.events import Event, Finding
from cuvee.engine.kernels import build, library
from cuvee.engine.kernels import state as state_of

Fake = Callable[[str], Path]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """A compiler that does what a shell script says, in a cache without libraries."""
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CUVEE_KERNELS", raising=False)
    monkeypatch.setattr(library, "prebuilt", lambda: None)
    compiler = tmp_path / "bin/cc"
    compiler.parent.mkdir()

    def made(script: str) -> Path:
        compiler.write_text(f"#!/bin/sh\n{script}\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("PATH", f"{compiler.parent}:/usr/bin:/bin")
        return compiler

    library._load.cache_clear()
    yield made
    monkeypatch.undo()
    library._load.cache_clear()


def test_where_a_compiler_is_kernels_are_usable() -> None:
    """All other tests of kernels are skipped without them, so that nothing else would show that they are lost."""
    if native.off() or not any(map(shutil.which, native.COMPILERS)):
        pytest.skip("no compiler here, or kernels are switched off")
    found = state_of()
    assert found.usable and not found.failed, found.reason


def saved(folder: Path, name: str) -> tuple[torch.Tensor, list[Finding]]:
    events: list[Event] = []
    models = []
    for number in range(2):
        models.append(folder / f"{number}.safetensors")
        save_file({"w": torch.full((8, 8), 1.0 + number).bfloat16()}, models[-1])
    blend = cuvee.merge(models, method="linear")
    blend.save(folder / name, overwrite=True, resume=False, listener=events.append)
    found = [event for event in events if isinstance(event, Finding)]
    return load_file(folder / name)["w"], found


def test_a_compiler_that_fails_is_told_once_in_each_run(fake: Fake, tmp_path: Path) -> None:
    compiler = fake("exit 1")
    for name in ("one.safetensors", "two.safetensors"):
        merged, told = saved(tmp_path, name)
        assert [one.code for one in told] == ["CV-E390"]
        assert str(compiler) in told[0].message and "many times slower" in told[0].message
        assert torch.equal(merged, torch.full((8, 8), 1.5).bfloat16())
    assert state_of().failed and "failed with all flags" in state_of().reason


def test_nothing_is_told_without_a_compiler_nor_where_kernels_are_off(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake("exit 1")
    monkeypatch.setenv("CUVEE_KERNELS", "off")
    assert saved(tmp_path, "off.safetensors")[1] == []
    monkeypatch.delenv("CUVEE_KERNELS")
    monkeypatch.setenv("PATH", "")
    assert saved(tmp_path, "none.safetensors")[1] == []
    assert not state_of().failed and "no C compiler" in state_of().reason


def test_a_compiler_that_takes_too_long_is_ended_with_what_it_started(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(f"sleep 300 &\necho $! > {tmp_path}/child\nwait")
    monkeypatch.setattr(native, "SECONDS", 1.0)
    reasons: list[str] = []
    assert build.built(reasons.append) is None
    assert len(reasons) == 1 and "took more than" in reasons[0]
    pid, end = int((tmp_path / "child").read_text()), time.monotonic() + 10
    while running(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not running(pid)


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="the system keeps no limit for another process")
def test_a_compiler_is_bounded_by_its_processor_time(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("while :; do :; done")
    monkeypatch.setattr(native, "PROCESSOR", 1)
    reasons: list[str] = []
    assert build.built(reasons.append) is None
    assert len(reasons) == 1 and "ended by signal" in reasons[0]


def test_in_a_cache_of_another_user_libraries_lie_in_a_folder_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path))
    assert native.home() == tmp_path / "kernels"
    (tmp_path / "kernels").mkdir()
    assert native.home() == tmp_path / "kernels"
    uid = (tmp_path / "kernels").stat().st_uid + 4711
    monkeypatch.setattr(os, "getuid", lambda: uid)
    expected = "kernels" if uid == 4711 else f"kernels-{uid}"  # what root made is trusted
    assert native.home() == tmp_path / expected
