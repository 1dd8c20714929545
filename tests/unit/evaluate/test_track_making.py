"""What a first run of a track says and does before its cells: models are made when they are scored, and told of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cuvee.evaluate.bench import run
from cuvee.evaluate.cells import Grid, Store
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.task import Provenance
from cuvee.evaluate.tracks import store
from cuvee.evaluate.tracks.initialisations.tasks import Labelled
from cuvee.evaluate.tracks.initialisations.track import InitialisationsTrack, Training
from cuvee.evaluate.tracks.language.texts import Document
from cuvee.evaluate.tracks.trajectory.track import Run, TrajectoryTrack


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def _pictures() -> Labelled:
    random = np.random.default_rng(0)
    pairs = [(random.integers(0, 256, (16, 16)).astype(np.uint8), i % 10) for i in range(300)]
    return Labelled(pairs[:200], pairs[200:], Provenance("made here"))


def _track(name: str = "initialisations-mlp", seed: int = 0) -> InitialisationsTrack:
    return InitialisationsTrack(seed, training=Training(samples=64, batch=32), sets={"set": _pictures})


def test_models_are_made_in_the_order_of_the_cells_and_told_of(tmp_path: Path) -> None:
    heard: list[store.Making] = []
    grid = Grid("initialisations-mlp", (Contender("average"),), budget=0)
    with store.told(heard.append):
        assert run(grid, _track, Store(tmp_path)) == 0
    names = [f"initialisations-mlp-{n}" for n in ("set_a", "set_b", "set_low", "set_high", "multitask")]
    assert [
        one.name for one in heard if one.seconds is None
    ] == names  # the bound last, not before everything
    assert [one.name for one in heard if one.seconds is not None] == names
    assert {one.kind for one in heard} == {"experts"}
    with store.told(heard.append):
        assert _track().expert("set_a") and len(heard) == 2 * len(names)  # from the cache, without a word


def test_knowing_the_references_trains_none(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def making(self: Any, name: str, *more: Any) -> dict[str, torch.Tensor]:
        made.append(name)
        return {}

    monkeypatch.setattr(InitialisationsTrack, "_trained", making)
    found = _track().references()
    assert list(found) == ["multitask"] and len(found) == 1 and "base" not in found and not made
    assert found["multitask"] == {} and made == ["multitask"]
    with pytest.raises(KeyError):
        found["last"]


def test_the_command_merges_the_experts_of_the_tasks_it_is_given(
    tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cuvee.evaluate.tracks.registry.open_track", _track)
    asked = ["bench", "run", "initialisations-mlp", "-m", "average", "--budget", "0", "--no-references"]
    done = cli(*asked, "--task", "set_b", "--task", "set_a", "-o", str(tmp_path / "out"))
    assert done.code == 0
    assert {cell.tasks for cell, _ in Store(tmp_path / "out").results()} == {("set_a", "set_b")}
    assert "making initialisations-mlp-set_a (experts)\n" in done.err
    assert "made initialisations-mlp-set_b (experts) in " in done.err and "set_low" not in done.err
    wrong = cli(*asked, "--task", "set_c", "-o", str(tmp_path / "other"))
    assert wrong.code != 0 and "CV-B006" in wrong.err and "set_high" in wrong.err
    assert not (tmp_path / "other").exists()


def test_every_command_that_trains_says_so(tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuvee.evaluate.tracks.registry.open_track", _track)
    out, name = str(tmp_path / "out"), "initialisations-mlp"
    pair = ("--task", "set_a", "--task", "set_b")
    run_first = ("run", name, "-m", "average", "--budget", "0", "--no-references", *pair, "-o", out)
    study = (
        "study",
        "mergeability",
        "--track",
        name,
        "-n",
        "2",
        "--subsets",
        "1",
        "-o",
        str(tmp_path / "study"),
    )
    commands = [("bench", *run_first), ("bench", "add", out, "task_arithmetic"), ("bench", *study)]
    for number, command in enumerate([*commands, ("advise", "--track", name, *pair)]):
        monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / f"cache {number}"))
        assert "making initialisations-mlp-set_a (experts)\n" in cli(*command).err, command
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "quiet"))
    assert "making" not in cli(*commands[2][:-1], str(tmp_path / "again"), "--quiet").err


def _documents() -> Iterator[Document]:
    for number in range(60):
        lines = [f"def f{i}(x{number}):\n    return x{number} + {i}\n" for i in range(2 + number % 12)]
        yield Document("".join(lines), str(number))


@pytest.mark.transformers
def test_no_document_of_a_run_is_on_two_sides_or_in_two_shares() -> None:
    from cuvee.evaluate import phases

    track = TrajectoryTrack(run=Run(steps=8, checkpoints=3, window=64), documents=_documents)
    trained, tasks = track._made
    with phases.scoring():
        parts = [{item.group for item in items} for t in tasks.values() for items in (t.selection, t.test)]
    parts.append({item.group for item in trained})
    assert all(parts) and sum(map(len, parts)) == len(set().union(*parts)) > 50
