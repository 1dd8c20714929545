"""Written pieces go to the device early, and their pages are used again where fresh ones are dear."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cuvee.core import linux_calls, write_behind
from cuvee.core.disk import REAL, RealDisk
from cuvee.core.write_behind import DEAR, KEPT, PIECE, WINDOW, WINDOWS, WriteBehind
from cuvee.engine.fused.ahead import cached

needs_advice = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no posix_fadvise here")


Asked = list[tuple[int, ...]]


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """(file, first byte, bytes, flags) of all that the device was asked to begin with."""
    asked: Asked = []
    monkeypatch.setattr(linux_calls, "sync_file_range_call", lambda: lambda *given: asked.append(given))
    return asked


@pytest.fixture
def given_back(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """(file, first byte, bytes, advice) of all that was given back."""
    asked: Asked = []
    monkeypatch.setattr(write_behind.os, "posix_fadvise", lambda *given: asked.append(given))
    return asked


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, float]]:
    """Seconds of the processor that a byte takes, as the clock has it from now on."""
    told = {"each": 0.0, "now": 0.0}
    real = os.pwrite

    def pwrite(number: int, data: memoryview, offset: int) -> int:
        told["now"] += told["each"] * len(data)
        return real(number, data, offset)

    monkeypatch.setattr(write_behind.time, "thread_time", lambda: told["now"])
    monkeypatch.setattr(os, "pwrite", pwrite)
    yield told


def test_finished_pieces_of_a_file_are_sent_to_the_device_early(tmp_path, begun) -> None:
    handle = REAL.create(tmp_path / "x", 3 * PIECE)
    for start in range(0, 5 * PIECE // 2, PIECE // 2):
        REAL.pwrite(handle, b"x" * (PIECE // 2), start)
    REAL.pwrite(handle, b"y" * 10, 0)
    REAL.close(handle)
    assert begun == [(handle.number, 0, PIECE, 2), (handle.number, PIECE, PIECE, 2)]


def test_writing_needs_no_early_start(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(linux_calls, "sync_file_range_call", lambda: None)
    data = os.urandom(PIECE + 7)
    handle = REAL.create(tmp_path / "x", len(data))
    REAL.pwrite(handle, data, 0)
    REAL.close(handle)
    assert (tmp_path / "x").read_bytes() == data


@needs_advice
def test_pages_are_given_back_only_where_fresh_ones_are_dear(tmp_path, begun, given_back, pace) -> None:
    disk = RealDisk()
    handle = disk.create(tmp_path / "x", 12 * PIECE)
    for each, last in ((DEAR / 3, 0), (DEAR * 3, (12 - KEPT) * PIECE)):
        pace["each"] = each
        for at in range(0, 12 * PIECE, PIECE):
            disk.pwrite(handle, bytes(PIECE), at)
        assert [given[1] + given[2] for given in given_back[-1:]] == ([last] if last else [])
    assert {(given[0], given[3]) for given in given_back} == {(handle.number, os.POSIX_FADV_DONTNEED)}
    disk.close(handle)
    disk.close(disk.create(tmp_path / "y", 0))
    assert not disk._behind.dear  # each file is asked anew


def test_one_dear_window_among_others_is_not_believed(tmp_path, begun, pace) -> None:
    disk = RealDisk()
    handle = disk.create(tmp_path / "x", WINDOW)
    for turn in range(4 * WINDOWS):
        pace["each"] = DEAR / 3 if turn % WINDOWS == 0 else 5 * DEAR
        disk.pwrite(handle, bytes(WINDOW), 0)
    assert not disk._behind.dear
    disk.pwrite(handle, bytes(WINDOW), 0)
    assert disk._behind.dear


def test_short_writes_tell_nothing_of_pages(tmp_path, begun, pace) -> None:
    disk = RealDisk()
    handle = disk.create(tmp_path / "x", 4096)
    pace["each"] = 100 * DEAR
    for _ in range(2 * WINDOWS * WINDOW // 4096):
        disk.pwrite(handle, bytes(4096), 0)
    assert not disk._behind.dear


@needs_advice
def test_pieces_that_were_late_are_tried_once_more(begun, given_back) -> None:
    behind = WriteBehind()
    behind.dear = True
    behind.written(7, (2 * KEPT + 3) * PIECE, 4 * PIECE)
    assert [given[1:3] for given in given_back] == [(3 * PIECE, (KEPT + 4) * PIECE)]


@needs_advice
def test_a_file_is_forgotten_as_a_whole(tmp_path, given_back) -> None:
    handle = REAL.create(tmp_path / "x", 10)
    REAL.forget(handle)
    REAL.close(handle)
    assert given_back == [(handle.number, 0, 0, os.POSIX_FADV_DONTNEED)]


@needs_advice
def test_refused_advice_is_no_error(begun, monkeypatch) -> None:
    asked: Asked = []

    def refused(*given: int) -> None:
        asked.append(given)
        raise OSError(29, "Illegal seek")

    monkeypatch.setattr(write_behind.os, "posix_fadvise", refused)
    behind = WriteBehind()
    behind.dear = True
    behind.written(7, 0, 2 * KEPT * PIECE)
    assert len(asked) == 1


@needs_advice
@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="cannot tell what is cached")
def test_given_back_bytes_are_still_in_the_file(tmp_path: Path) -> None:
    disk = RealDisk()
    handle = disk.create(tmp_path / "x", 20 * PIECE)
    disk._behind.dear = True
    pieces = [bytes([number]) * PIECE for number in range(20)]
    for number, piece in enumerate(pieces):
        disk.pwrite(handle, piece, number * PIECE)
        os.fdatasync(handle.number)
    gone = not cached(handle.number, PIECE)
    disk.sync(handle)
    disk.close(handle)
    assert (tmp_path / "x").read_bytes() == b"".join(pieces)
    assert gone or _in_memory(tmp_path)


def _in_memory(folder: Path) -> bool:
    lines = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    found = max((len(line[1]), line[2]) for line in lines if folder.is_relative_to(line[1]))
    return found[1] in ("tmpfs", "ramfs", "overlay")
