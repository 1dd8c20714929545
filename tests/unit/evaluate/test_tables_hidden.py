"""Where test scores stand in a bench's folder no method can look; ways round the guard without namespaces."""

from __future__ import annotations

import multiprocessing.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_track import Track

from cuvee.core import linux_namespaces
from cuvee.errors import EvaluationError
from cuvee.evaluate.addition import Newcomer, add
from cuvee.evaluate.bench import run
from cuvee.evaluate.cells import Grid, Store
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.referee import Referee
from cuvee.evaluate.selection import Selection

TABLES = (
    "results.json",
    "results.parquet",
    "leaderboard.md",
    "study-scale.html",
    "scores/a.json",
    "failed/a.json",
)


def opened(name: str, seed: int) -> Track:
    return Track()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "bench")
    run(Grid("linear", (Contender("average"),), budget=0), opened, store)
    for name in ("scores", "failed"):
        (store.folder / name).mkdir()
    for name in TABLES:
        (store.folder / name).write_text("the best has lambda 2.64")
    return store


@pytest.mark.parametrize("namespaces", [True, False])
@pytest.mark.parametrize("name", TABLES)
def test_tables_that_stand_beside_the_cells_cannot_be_read(
    name: str, namespaces: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    if namespaces and not linux_namespaces.available():
        pytest.skip("this system grants no namespaces")
    monkeypatch.setattr(linux_namespaces, "available", lambda: namespaces)

    def cheat(room: Selection) -> Any:
        return room.base, {"read": (store.folder / name).read_text()}

    told: list[Any] = []
    assert add(Newcomer("cheat", cheat), opened, store, told.append) == 1
    assert "CV-B372" in told[0].problem


@pytest.mark.parametrize("name", [name for name in TABLES if "/" not in name])
def test_another_program_finds_them_empty(name: str, store: Store) -> None:
    if not linux_namespaces.available():
        pytest.skip("this system grants no namespaces")
    place = store.folder / name

    def cheat(room: Selection) -> Any:
        return room.base, {"read": os.popen(f"cat {place}").read()}

    told: list[Any] = []
    assert add(Newcomer("cheat", cheat), opened, store, told.append) == 0
    assert [card.settings for cell, card in store.results() if cell.label == "cheat"] == [{"read": ""}]
    assert place.read_text().startswith("the best"), "the file itself is as it was"


def by_another_name(folder: Path) -> Any:
    folder.rename(folder.with_name("other"))
    return [path.read_text() for path in folder.with_name("other").rglob("*.json")]


def by_a_neighbours_descriptor(folder: Path) -> Any:
    (folder.parent / "near").mkdir(exist_ok=True)
    near = os.open(folder.parent / "near", os.O_RDONLY)
    return os.read(os.open(f"../{folder.name}/results.json", os.O_RDONLY, dir_fd=near), 100)


def by_a_start_without_event(folder: Path) -> Any:
    read, write = os.pipe()
    code = f"import os; os.write({write}, open({str(folder / 'results.json')!r}, 'rb').read())"
    words = [os.fsencode(word) for word in (sys.executable, "-c", code)]
    multiprocessing.util.spawnv_passfds(os.fsencode(sys.executable), words, [write])  # type: ignore[attr-defined]
    os.close(write)
    return os.read(read, 100)


WAYS = (by_another_name, by_a_neighbours_descriptor, by_a_start_without_event)


@pytest.mark.parametrize("way", WAYS)
def test_without_namespaces_ways_round_the_guard_are_shut(
    way: Callable[[Path], Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linux_namespaces, "available", lambda: False)
    referee = Referee(Track(), hidden=store.tellings())
    with pytest.raises(EvaluationError) as caught:
        referee.choose(lambda room: (room.base, {"read": len(way(store.folder))}))
    assert caught.value.diagnostics[0].code == "CV-B372"


@pytest.mark.parametrize("way", WAYS)
def test_without_a_process_of_its_own_these_ways_do_lead_there(
    way: Callable[[Path], Any], store: Store
) -> None:
    chosen = Referee(Track(), isolated=False).choose(
        lambda room: (room.base, {"read": len(way(store.folder))})
    )
    assert chosen.settings["read"] > 0


def test_files_beside_them_can_be_written_and_removed(store: Store) -> None:
    def honest(room: Selection) -> Any:
        place = store.folder.parent / "own"
        place.mkdir()
        (place / "note").write_text("x")
        (place / "note").rename(place / "other")
        (place / "other").unlink()
        place.rmdir()
        return {"weight": torch.ones(8)}, {}

    told: list[Any] = []
    assert add(Newcomer("honest", honest), opened, store, told.append) == 0, told
