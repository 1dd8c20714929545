"""The order of tensors, reading ahead, and the account of time: what they must not miss, and must not change."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import cuvee
from cuvee.core.tensors import Extent
from cuvee.engine.events import Committed, Event, Finished, Profile
from cuvee.engine.fused import ahead
from cuvee.engine.fused.ahead import PIECE, Ahead, pieces
from cuvee.engine.options import RunOptions
from cuvee.engine.schedule import scheduled
from cuvee.engine.spent import PHASES, Account, Spent, by_method, total
from cuvee.errors import SourceError


@pytest.fixture
def blend(tmp_path: Path) -> cuvee.Blend:
    """Tensors of very different sizes, the largest last by name."""
    sizes = {"a": 100, "b": 3000, "c": 200_000, "d": 90_000, "z": 400_000}
    for seed, name in enumerate(("base", "one", "two")):
        torch.manual_seed(seed)
        tensors = {key: torch.randn(count) for key, count in sizes.items()}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    experts = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    return cuvee.merge(experts, base=tmp_path / "base.safetensors", method="ties", density=0.3)


def test_large_tensors_come_first_and_others_as_they_lie(blend: cuvee.Blend) -> None:
    plan = blend.build()
    sources = {key: opened.source for key, opened in plan.sources.items()}
    order = [t.meta.name for t in scheduled(reversed(plan.tensors), sources, 2)]
    assert order[:3] == ["z", "c", "d"]
    assert sorted(order) == ["a", "b", "c", "d", "z"]
    at = {name: sources[next(iter(sources))].extent(name).offset for name in order}  # type: ignore[union-attr]
    assert [at[name] for name in order[3:]] == sorted(at[name] for name in order[3:])
    alone = [t.meta.name for t in scheduled(reversed(plan.tensors), sources, 1)]
    assert [at[name] for name in alone] == sorted(at.values())
    plan.close()


def test_pieces_cover_every_byte_once_and_take_turns() -> None:
    a, b = Extent(Path("a"), 17, 2 * PIECE + 5), Extent(Path("b"), 3, PIECE - 1)
    found = list(pieces([a, b]))
    assert [piece.path.name for piece in found] == ["a", "b", "a", "a"]
    for whole in (a, b):
        mine = [piece for piece in found if piece.path == whole.path]
        assert [piece.offset for piece in mine] == [whole.offset + i * PIECE for i in range(len(mine))]
        assert sum(piece.nbytes for piece in mine) == whole.nbytes


def test_no_more_is_asked_for_than_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.touch()
    os.truncate(path, 40 * PIECE)
    asked: list[int] = []
    moved = threading.Event()

    def advise(number: int, offset: int, nbytes: int, advice: int) -> None:
        asked.append(nbytes)
        moved.set()

    monkeypatch.setattr(ahead.os, "posix_fadvise", advise)
    monkeypatch.setattr(ahead, "cached", lambda number, offset: False)
    with Ahead([[Extent(path, 0, 40 * PIECE)]], 5 * PIECE) as reader:
        settle(moved)
        assert sum(asked) == 6 * PIECE  # the window, and the piece that passed it
        reader.consumed(10 * PIECE)
        settle(moved)
        assert sum(asked) == 12 * PIECE  # four pieces were read before they could be asked for
        reader.consumed(15 * PIECE)
        settle(moved)
        reader.consumed(15 * PIECE)
        settle(moved)
    assert sum(asked) <= 40 * PIECE


def settle(moved: threading.Event) -> None:
    while moved.wait(0.05):
        moved.clear()


def test_what_is_cached_or_gone_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(PIECE))
    asked: list[int] = []
    monkeypatch.setattr(
        ahead.os, "posix_fadvise", lambda number, offset, nbytes, advice: asked.append(offset)
    )
    monkeypatch.setattr(ahead, "cached", lambda number, offset: True)
    for extent in (Extent(path, 0, PIECE), Extent(tmp_path / "gone", 0, PIECE)):
        reader = Ahead([[extent]], 0)
        with reader:
            reader._thread.join()
    assert asked == []


def test_a_damaged_source_is_left_to_those_who_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def batches() -> Iterator[list[Extent]]:
        yield []
        raise SourceError("CV-S201", "does not decode")

    with Ahead(batches(), 0) as reader:
        reader._thread.join()
    assert not told


def test_time_is_charged_to_phases_that_add_up(blend: cuvee.Blend, tmp_path: Path) -> None:
    for kernels in (True, False):
        seen: list[Event] = []
        options = RunOptions(threads=2, profile=True, kernels=kernels)
        blend.save(tmp_path / f"{kernels}.safetensors", run=options, listener=seen.append)
        (profile,) = (event for event in seen if isinstance(event, Profile))
        assert {row.tensor for row in profile.rows} == {"a", "b", "c", "d", "z"}
        assert {row.method for row in profile.rows} == {"trim → elect → scale"}
        spent = total(profile.rows)
        assert spent.writing > 0
        assert spent.combining > 0
        assert (spent.reading > 0) == kernels
        assert spent.busy + profile.waiting == pytest.approx(2 * profile.seconds, rel=0.05)
        assert by_method(profile.rows)["trim → elect → scale"].busy == pytest.approx(spent.busy)
        assert [type(event) for event in seen[-3:]] == [Profile, Finished, Committed]
    silent: list[Event] = []
    blend.save(tmp_path / "silent.safetensors", run=RunOptions(), listener=silent.append)
    assert not any(isinstance(event, (Profile, Committed)) for event in silent)


def test_an_account_adds_up_over_threads() -> None:
    account = Account()

    def work() -> None:
        for _ in range(50):
            with account.charging("x", "m", 4) as watch:
                for phase in PHASES:
                    watch.lap(phase)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    row = account.rows["x"]
    assert (row.method, row.nbytes) == ("m", 4)
    assert 0 < row.spent.busy < 1
    assert total([]) == Spent()
