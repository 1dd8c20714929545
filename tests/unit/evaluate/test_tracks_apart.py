"""Several tracks in a folder, tasks that a track has not, checkpoints of one run, and orderings that mean nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from linear_track import Track as LinearTrack

from cuvee.errors import EvaluationError
from cuvee.evaluate import published
from cuvee.evaluate.addition import duels
from cuvee.evaluate.bench import run
from cuvee.evaluate.cells import Cell, Grid, Store
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.paired import pairs, shared_tracks
from cuvee.evaluate.scorecard import Scorecard, TaskScore
from cuvee.evaluate.table import boards
from cuvee.evaluate.task import ACCURACY
from cuvee.evaluate.track import ordered
from cuvee.evaluate.tracks.stressed import Stressed
from cuvee.evaluate.tracks.trajectory.track import TrajectoryTrack

METHODS = {"average": 0.5, "task_arithmetic": 0.6, "ties": 0.7, "dare": 0.4, "tsv_m": 0.8}


def on(track: str, shares: dict[str, float], *, digest: str = "d", protocol: int = 2) -> list[Any]:
    """A cell of one task for each label, each right on a share of eighty items."""
    return [
        (
            Cell(track, digest, 0, ("a",), label, label, protocol=protocol),
            Scorecard(
                label,
                {"a": TaskScore(ACCURACY, (np.arange(80) < 80 * share).astype(float), np.ones(80))},
            ),
        )
        for label, share in shares.items()
    ]


TEXT = on("text", {"experts": 1.0, "ties": 0.7, "average": 0.5})
VISION = on("vision", {"experts": 1.0, "ties": 0.4, "average": 0.5})


def test_methods_are_compared_on_one_track() -> None:
    assert pairs(TEXT, "ties", "average").difference.mean == pytest.approx(0.2)
    with pytest.raises(EvaluationError) as caught:
        pairs([*TEXT, *VISION], "ties", "average")
    assert caught.value.diagnostics[0].code == "CV-B397" and "`text`, `vision`" in str(caught.value)
    for name, alone in (("text", TEXT), ("vision", VISION)):
        assert pairs([*TEXT, *VISION], "ties", "average", track=name) == pairs(alone, "ties", "average")
    with pytest.raises(EvaluationError, match="of the track `language`") as caught:
        pairs([*TEXT, *VISION], "ties", "average", track="language")
    assert caught.value.diagnostics[0].code == "CV-B023"


def test_stress_older_protocols_and_tracks_of_one_method_are_no_further_tracks() -> None:
    more = [
        *on("text+junk", {"ties": 0.1, "average": 0.2}),
        *on("vision", {"ties": 0.1}),
        *on("text", {"ties": 0.2, "average": 0.9}, protocol=1),
    ]
    assert shared_tracks([*TEXT, *more], "ties", "average") == ["text"]
    assert pairs([*TEXT, *more], "ties", "average") == pairs(TEXT, "ties", "average")
    stressed = pairs([*TEXT, *more], "ties", "average", track="text+junk").difference.mean
    assert stressed == pytest.approx(-0.1)


def test_each_track_counts_by_its_own_newest_protocol() -> None:
    older = on("vision", {"experts": 1.0, "ties": 0.4, "average": 0.5}, protocol=1)
    assert shared_tracks([*TEXT, *older], "ties", "average") == ["text", "vision"]
    assert pairs([*TEXT, *older], "ties", "average", track="vision").difference.mean == pytest.approx(-0.1)


def test_two_versions_of_a_track_are_two() -> None:
    both = [*TEXT, *on("text", {"ties": 0.4, "average": 0.5}, digest="ee")]
    with pytest.raises(EvaluationError, match=r"text \(d\).*text \(ee\)"):
        pairs(both, "ties", "average", track="text")
    assert pairs(both, "ties", "average", track="text (ee)").difference.mean == pytest.approx(-0.1)


def test_a_newcomer_meets_the_others_on_each_track() -> None:
    found = duels([*TEXT, *VISION], "ties")
    assert [(d.track, d.other, d.comparison.difference.mean > 0) for d in found] == [
        ("text", "average", True),
        ("vision", "average", False),
    ]
    assert all(d.adjusted >= d.comparison.p_value for d in found)


def test_the_command_asks_for_the_track(tmp_path: Path, cli: Any) -> None:
    for cell, card in (*TEXT, *VISION):
        Store(tmp_path).put(cell, card)
    asked = ["bench", "compare", str(tmp_path), "ties", "average"]
    assert "CV-B397" in cli(*asked).err
    assert "+20.0" in cli(*asked, "--track", "text").out.replace("−", "-")
    found = json.loads(cli(*asked, "--track", "vision", "--json").out)
    assert found["track"] == "vision" and found["difference"]["mean"] == pytest.approx(-0.1)


def test_a_grid_of_a_task_that_is_not_there_is_refused_before_any_work(tmp_path: Path) -> None:
    for task in ("zz", "c"):  # unknown, and one without an expert
        grid = Grid("linear", (Contender("average"),), budget=0, tasks=("a", task))
        with pytest.raises(EvaluationError) as caught:
            run(grid, lambda name, seed: LinearTrack(), Store(tmp_path / "out"))
        assert caught.value.diagnostics[0].code == "CV-B006" and f"`{task}`" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_published_orderings_stand_beside_fine_tunes_of_one_base_alone() -> None:
    (board,) = boards(on("text", {"experts": 1.0, **METHODS}))
    assert published.section(board) is not None
    for track in ("initialisations-mlp", "trajectory-cosine", "trajectory-decayed (0123abcd)"):
        assert published.section(replace(board, track=track)) is None
    assert published.section(replace(board, track="language-short")) is not None


def test_of_the_checkpoints_of_a_run_the_last_are_taken(tmp_path: Path) -> None:
    names = [f"step_{n}" for n in range(6)]
    grid = Grid("run", (), counts=(2, 6, 3))
    assert list(grid.sets(names, 0, last=True)) == [tuple(names), tuple(names[3:]), tuple(names[4:])]
    assert len(list(grid.sets(names, 0))) == 1 + 3 + 3  # others are drawn as ever

    class Run(LinearTrack):
        ordered = True

    grid = Grid("linear", (Contender("average"),), counts=(1,), budget=0)
    run(grid, lambda name, seed: Run(), Store(tmp_path))
    assert {cell.tasks for cell, _ in Store(tmp_path).results()} == {("b",)}


def test_a_run_of_checkpoints_says_that_it_is_one_under_stress_too() -> None:
    assert ordered(TrajectoryTrack()) and not ordered(LinearTrack())
    named = SimpleNamespace(name="trajectory-cosine", digest="0", ordered=TrajectoryTrack().ordered)
    assert ordered(Stressed(named, "unequal"))  # type: ignore[arg-type]
