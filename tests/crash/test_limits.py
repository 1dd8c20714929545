"""Promise 4 on real limits: a file-size quota, a folder one may not write to, a full file system."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slow_merge

from cuvee.bundle.manifest import verify_folder
from cuvee.core.disk import REAL, write_file
from cuvee.errors import OutOfSpace, RunError


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process, whose limits and user may be changed; 0 when nothing was raised."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - a forked child must not run the parent's test session
            traceback.print_exc()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def public(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder that another user can reach."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_limit_on_file_sizes(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        with pytest.raises(OutOfSpace) as caught:
            slow_merge.merge(out, 0)
        (found,) = caught.value.diagnostics
        assert found.code == "CV-E001"
        assert "limit allows" in found.message
        assert "needed" in found.message
        assert not out.exists()

    assert in_child(limited) == 0
    assert list(tmp_path.iterdir()) == []
    slow_merge.merge(out, 0)
    assert verify_folder(out) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="a user other than root needs no change of user")
def test_a_folder_that_may_not_be_written_to_as_another_user(public: Path) -> None:
    refused(public, lambda: os.seteuid(65534))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(public: Path) -> None:
    refused(public, lambda: None)


def refused(public: Path, become_other: Callable[[], object]) -> None:
    parent = public / "readonly"
    parent.mkdir(mode=0o555)

    def attempt() -> None:
        become_other()
        for out in (parent / "out", parent / "deep/out"):
            with pytest.raises(RunError) as caught:
                slow_merge.merge(out, 0)
            (found,) = caught.value.diagnostics
            assert found.code == "CV-E004"
            assert str(parent) in found.message

    assert in_child(attempt) == 0
    assert list(parent.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    mount = tmp_path / "small"
    mount.mkdir()
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(mount)]
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system cannot be mounted here")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_file_system(small_disk: Path) -> None:
    out, ballast = small_disk / "out", small_disk / "ballast"
    write_file(ballast, bytes(3_900_000))
    with pytest.raises(OutOfSpace, match=r"does not fit on its disk: .* needed, .* free"):
        slow_merge.merge(out, 0)
    assert [p.name for p in small_disk.iterdir()] == ["ballast"]
    ballast.unlink()
    session = slow_merge.FolderSink(out).begin(slow_merge.LAYOUT, "plan", resume=True, overwrite=False)
    write_file(ballast, bytes(REAL.free(small_disk) - 40_000))  # room for the journal, not for side files
    with session, pytest.raises(OutOfSpace) as caught:
        for meta in slow_merge.METAS:
            session.write(meta.name, 0, bytes(meta.nbytes))
            session.finish(meta.name)
        session.commit({"tokenizer.json": bytes(100_000)}, lambda files: b"{}")
    assert "tokenizer.json" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert not out.exists()
    ballast.unlink()
    with slow_merge.FolderSink(out).begin(slow_merge.LAYOUT, "plan", resume=True, overwrite=False) as session:
        assert len(session.done) == len(slow_merge.METAS)
        session.commit({"tokenizer.json": bytes(100_000)}, lambda files: b"{}")
    assert (out / "tokenizer.json").stat().st_size == 100_000
