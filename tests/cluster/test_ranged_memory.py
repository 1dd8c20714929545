"""The memory that ranged files share: never another file's bytes, never stuck, never more than it says."""

from __future__ import annotations

import gc
import itertools
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from cuvee.core.limits import MIB
from cuvee.core.tensors import Extent
from cuvee.sources import remote_ranges
from cuvee.sources.remote_ranges import RangedBytes


def ranged(data: bytes, cuts: list[int] | None = None) -> RangedBytes:
    """A file of these bytes, whose tensors end at the cuts."""
    file = RangedBytes(Path("f"), len(data), lambda offset, count: data[offset : offset + count])
    ends = [0, *(cuts or ()), len(data)]
    file.expect([Extent(file.path, a, b - a) for a, b in itertools.pairwise(ends)])
    return file


def test_a_file_never_has_the_bytes_of_one_that_is_gone() -> None:
    for seed in range(30):  # the next one is likely to lie where the last one lay
        data = random.Random(seed).randbytes(3 * MIB)
        file = ranged(data)
        assert file.bytes_at(5, 100) == data[5:105]
        del file
        gc.collect()


def test_an_answer_that_fails_at_once_is_raised_and_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_ranges._MEMORY, "_pool", Prompt())
    working: list[bool] = []

    def fetch(offset: int, count: int) -> bytes:
        if not working:
            raise ValueError("gone")
        return bytes(count)

    file = RangedBytes(Path("f"), 9 * MIB, fetch)
    file.expect([Extent(file.path, 0, 9 * MIB)])
    found: list[Any] = []

    def read() -> None:
        try:
            found.append(file.bytes_at(0, 10))
        except ValueError as error:
            found.append(str(error))

    for _ in range(2):
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(5)
        working.append(True)
    assert found == ["gone", bytes(10)]


class Prompt:
    """A pool that has done the work when it is given it."""

    def submit(self, function: Any, *arguments: Any) -> Any:
        future: Any = remote_ranges.Future()
        try:
            future.set_result(function(*arguments))
        except ValueError as error:
            future.set_exception(error)
        return future


@pytest.mark.parametrize("held", [1, 9, 24])
def test_every_byte_is_right_though_pages_are_forgotten(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_ranges, "_HELD", held * MIB)
    chance = random.Random(held)
    files = []
    for seed in range(3):
        data = random.Random(seed).randbytes(40 * MIB + chance.randrange(MIB))
        files.append((ranged(data, sorted(chance.sample(range(len(data)), 12))), data))
    failed: list[str] = []

    def work(seed: int) -> None:
        own = random.Random(seed)
        for _ in range(400):
            file, data = own.choice(files)
            offset = own.randrange(len(data))
            count = min(own.choice([1, 100, MIB, 5 * MIB]), len(data) - offset)
            try:
                if file.bytes_at(offset, count) != data[offset : offset + count]:
                    failed.append("other bytes")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a failure
                failed.append(repr(error))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_large_read_does_not_ask_for_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_ranges, "_HELD", 16 * MIB)
    most, alive = 0, 0
    lock = threading.Lock()

    class Piece(bytes):
        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= len(self)

    def fetch(offset: int, count: int) -> bytes:
        nonlocal most, alive
        with lock:
            alive += count
            most = max(most, alive)
        return Piece(count)

    file = RangedBytes(Path("f"), 200 * MIB, fetch)
    file.expect([Extent(file.path, 0, 200 * MIB)])
    file.fill(memoryview(bytearray(200 * MIB)), 0)
    assert most <= 40 * MIB
