"""Written pieces go to the device early, and their pages are used again where fresh ones are dear."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cuvee.core import linux_calls, write_behind
from cuvee.core.disk import REAL, RealDisk
from cuvee.core.write_behind import DEAR, KEPT, PIECE, WINDOW, WriteBehind

needs_advice = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no posix_fadvise here")


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(linux_calls, "sync_file_range_call", lambda: lambda *given: asked.append(given[1:]))
    return asked


@pytest.fixture
def given_back(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(
        write_behind.os, "posix_fadvise", lambda number, start, count, advice: asked.append((start, count))
    )
    return asked


def test_finished_pieces_of_a_file_are_sent_to_the_device_early(tmp_path, begun) -> None:
    handle = REAL.create(tmp_path / "x", 3 * PIECE)
    for start in range(0, 5 * PIECE // 2, PIECE // 2):
        REAL.pwrite(handle, b"x" * (PIECE // 2), start)
    REAL.pwrite(handle, b"y" * 10, 0)
    REAL.close(handle)
    assert [given[:2] for given in begun] == [(0, PIECE), (PIECE, PIECE)]


def test_writing_needs_no_early_start(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(linux_calls, "sync_file_range_call", lambda: None)
    data = os.urandom(PIECE + 7)
    handle = REAL.create(tmp_path / "x", len(data))
    REAL.pwrite(handle, data, 0)
    REAL.close(handle)
    assert (tmp_path / "x").read_bytes() == data


@needs_advice
@pytest.mark.parametrize(("pace", "dear"), [(DEAR / 3, False), (DEAR * 3, True)])
def test_pages_are_given_back_only_where_fresh_ones_are_dear(begun, given_back, pace, dear) -> None:
    behind = WriteBehind()
    for at in range(0, 16 * PIECE, PIECE):
        behind.written(7, at, PIECE, pace * PIECE)
    assert behind.dear is dear
    assert given_back == [(at, PIECE) for at in range(0, (16 - KEPT) * PIECE, PIECE)] * dear


def test_short_writes_and_a_part_of_a_window_tell_nothing() -> None:
    behind = WriteBehind()
    for _ in range(WINDOW // 4096 + 1):
        behind.written(7, 0, 4096, 1e-4)
    behind.written(7, 0, WINDOW - PIECE, 100.0)
    assert not behind.dear


@needs_advice
def test_a_write_over_many_pieces_gives_back_what_lies_behind_its_last_ones(begun, given_back) -> None:
    behind = WriteBehind()
    behind.dear = True
    behind.written(7, 3 * PIECE, 10 * PIECE, 0.0)
    assert given_back == [(0, (13 - KEPT) * PIECE)]


@needs_advice
def test_given_back_bytes_are_still_in_the_file(tmp_path: Path) -> None:
    disk = RealDisk()
    disk._behind.dear = True
    data = os.urandom(PIECE)
    handle = disk.create(tmp_path / "x", 20 * PIECE)
    for at in range(20):
        disk.pwrite(handle, data, at * PIECE)
    disk.sync(handle)
    disk.close(handle)
    assert (tmp_path / "x").read_bytes() == data * 20
