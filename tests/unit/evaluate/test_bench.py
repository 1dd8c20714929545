"""Grids, stored cells and leaderboards on the linear track."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from linear_track import HERE, Track, items

from cuvee.errors import EvaluationError, UsageError
from cuvee.evaluate.addition import add, duels, newcomer_of
from cuvee.evaluate.bench import Done, Ring, run, score_all
from cuvee.evaluate.cells import Cell, Grid, Store, space_of
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.leaderboard import sections
from cuvee.evaluate.pages import markdown
from cuvee.evaluate.paired import pairs
from cuvee.evaluate.referee import Referee
from cuvee.evaluate.report import sections as whole_report
from cuvee.evaluate.scorecard import Scorecard, TaskScore
from cuvee.evaluate.statistics import compare
from cuvee.evaluate.table import boards
from cuvee.evaluate.task import ACCURACY, Task

METHODS = (Contender("average"), Contender("task_arithmetic"), Contender("slerp"))
GRID = Grid("linear", METHODS, counts=(2, 1), budget=4)


def opened(name: str, seed: int) -> Track:
    assert name == "linear"
    return Track()


def test_a_grid_is_run_once_and_resumed(tmp_path: Path) -> None:
    first: list[Done] = []
    assert run(GRID, opened, Store(tmp_path), first.append) == 0
    assert {d.state for d in first if d.total} == {"scored"}
    # two experts: base, experts, three methods; one expert (two sets): base, experts, average, task_arithmetic
    assert sum(bool(done.total) for done in first) == 5 + 2 * 4
    next(iter((tmp_path / "cells").iterdir())).unlink()
    again: list[Done] = []
    run(GRID, opened, Store(tmp_path), again.append)
    assert sorted(d.state for d in again if d.total) == ["kept"] * 12 + ["scored"]


def test_a_method_that_fails_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    broken = Grid("linear", (Contender("ties", {"density": 7.0}), Contender("average")), budget=0)
    told: list[Done] = []
    assert run(broken, opened, Store(tmp_path), told.append) == 1
    assert [d.state for d in told] == ["scored", "scored", "failed", "scored"]
    assert "density" in told[2].problem


def test_the_board_ranks_and_groups_and_the_report_says_it(tmp_path: Path) -> None:
    run(GRID, opened, Store(tmp_path))
    pair, single = boards(Store(tmp_path).results())
    assert (pair.count, single.count) == (2, 1)
    assert [r.label for r in pair.references] == ["base", "experts"]
    assert pair.references[1].mean.mean == 1.0
    best = [row.normalised for row in pair.rows]
    assert best == sorted(best, reverse=True)
    assert {row.group for row in pair.rows} == set(range(1, len(pair.groups) + 1))
    assert next(r for r in single.rows if r.label == "average").normalised == 1.0
    text = markdown("Leaderboard", sections([pair, single]))
    assert "## linear, 2 experts" in text
    assert text.count("| task_arithmetic |") == 8  # scores, tasks, elsewhere, costs, for two experts and one


def planted(
    label: str, score: Any, *, seed: int = 0, tasks: tuple[str, ...] = ("a",), digest: str = "d"
) -> Any:
    """A cell with the same numbers for every task, or numbers by task."""
    by_task = score if isinstance(score, dict) else dict.fromkeys(tasks, score)
    scores = {n: TaskScore(ACCURACY, np.asarray(v, dtype=float), np.ones(len(v))) for n, v in by_task.items()}
    return Cell("t", digest, seed, tuple(by_task), label, label), Scorecard(label, scores)


def test_items_that_several_seeds_share_are_no_new_evidence() -> None:
    random = np.random.default_rng(0)
    one, other = (random.random(60) < p for p in (0.75, 0.6))
    single = [planted("x", one), planted("y", other), planted("experts", np.ones(60))]
    many = [planted(c.label, card.tasks["a"].scores, seed=s) for s in range(9) for c, card in single]
    assert pairs(many, "x", "y") == pairs(single, "x", "y")
    once, nine = boards(single)[0], boards(many)[0]
    assert [row.mean for row in nine.rows] == [row.mean for row in once.rows]
    assert nine.groups == once.groups


def plain(results: Any) -> Any:
    """x − y of raw scores, which nothing of a report compares."""
    x, y = (next(card for cell, card in results if cell.label == label) for label in "xy")
    names = ("weak", "strong")
    return compare([x.tasks[name].strata for name in names], [y.tasks[name].strata for name in names])


def test_groups_are_tested_by_what_ranks_them() -> None:
    """x is far better where experts are weak, y a little where they are strong: normalised, x is first."""
    weak, strong = np.zeros(400), np.zeros(400)
    weak[:40], strong[:400] = 1, 1
    results = [
        planted("experts", {"weak": weak, "strong": strong}),
        planted("x", {"weak": weak, "strong": (np.arange(400) >= 60).astype(float)}),
        planted("y", {"weak": np.zeros(400), "strong": strong}),
    ]
    board = boards(results)[0]
    assert [row.label for row in board.rows] == ["x", "y"]
    assert board.groups == (("x",), ("y",)) and pairs(results, "x", "y").difference.mean > 0
    assert plain(results).difference.mean < 0
    alike = [planted("experts", {"weak": weak, "strong": strong})]
    alike += [planted("x", {"weak": weak, "strong": (np.arange(400) >= 200).astype(float)})]
    alike += [planted("y", {"weak": (np.arange(400) < 20).astype(float), "strong": strong})]
    assert boards(alike)[0].groups == (("x", "y"),) or boards(alike)[0].groups == (("y", "x"),)
    assert plain(alike).p_value < 1e-4  # raw scores alone would tell them apart
    assert pairs(alike, "x", "y").p_value > 0.05


def test_methods_with_other_sets_are_said_to_be_incomparable() -> None:
    half = np.arange(20) % 2
    results = [planted("experts", np.ones(20), tasks=(n,)) for n in "ab"]
    results += [planted("x", half, tasks=("a",)), planted("y", half, tasks=("b",))]
    results += [planted("z", half, tasks=(n,)) for n in "ab"]
    board = boards(results)[0]
    assert board.groups == (tuple(row.label for row in board.rows),)
    assert "of other items: x (1 of 2), y (1 of 2)." in markdown("x", sections([board]))


def test_versions_of_a_track_are_kept_apart() -> None:
    both = [planted(m, np.ones(9), digest=d) for d in ("first000", "second00") for m in ("experts", "x")]
    assert [b.track for b in boards(both)] == ["t (first000)", "t (second00)"]
    seeds = [planted(m, np.ones(9), digest=str(s), seed=s) for s in (0, 1) for m in ("experts", "x")]
    assert [b.track for b in boards(seeds)] == ["t"]


def test_without_experts_rows_are_ordered_by_their_mean() -> None:
    results = [planted("x", np.zeros(9)), planted("y", np.ones(9)), planted("z", np.arange(9) % 2)]
    assert [row.label for row in boards(results)[0].rows] == ["y", "z", "x"]


@pytest.mark.parametrize("error", [KeyError("name"), AssertionError(), TypeError("two\nlines")])
def test_whatever_a_method_raises_the_others_go_on(error: Exception, tmp_path: Path) -> None:
    def broken(room: Any) -> Any:
        raise error

    told: list[Done] = []
    ring = Ring(Track(), Store(tmp_path))
    cells = [Cell("linear", "0", 0, ("a", "b"), m, m) for m in ("broken", "fine")]
    methods = [broken, lambda room: (room.base, {})]
    assert score_all(ring, list(zip(cells, methods, strict=True)), told.append) == 1
    assert [d.state for d in told] == ["failed", "scored"] and type(error).__name__ in told[0].problem


def test_comparisons_are_paired_and_need_shared_sets(tmp_path: Path) -> None:
    run(GRID, opened, Store(tmp_path))
    results = Store(tmp_path).results()
    assert pairs(results, "experts", "base").p_value < 0.01
    assert pairs(results, "average", "average").difference.mean == 0
    with pytest.raises(EvaluationError, match="not both scored"):
        pairs(results, "average", "ties")


def test_subsets_are_the_same_for_every_method_and_differ_by_seed() -> None:
    grid = Grid("x", (), counts=(2, 4), subsets=3)
    names = [f"t{i}" for i in range(8)]
    assert list(grid.sets(names, 0)) == list(grid.sets(names, 0))
    assert list(grid.sets(names, 0)) != list(grid.sets(names, 1))
    assert [len(s) for s in grid.sets(names, 0)] == [4, 4, 4, 2, 2, 2]
    with pytest.raises(EvaluationError, match="8 experts, 9"):
        list(Grid("x", (), counts=(9,)).sets(names, 0))


def test_addresses_cover_what_scores_depend_on() -> None:
    one = Cell("t", "d", 0, ("a",), "ties", "ties", {"density": 0.2}, "sobol", 8)
    others = [
        Cell("t", "e", 0, ("a",), "ties", "ties", {"density": 0.2}, "sobol", 8),
        Cell("t", "d", 1, ("a",), "ties", "ties", {"density": 0.2}, "sobol", 8),
        Cell("t", "d", 0, ("b",), "ties", "ties", {"density": 0.2}, "sobol", 8),
        Cell("t", "d", 0, ("a",), "ties", "ties", {"density": 0.3}, "sobol", 8),
        Cell("t", "d", 0, ("a",), "ties", "ties", {"density": 0.2}, "grid", 8),
        Cell("t", "d", 0, ("a",), "ties", "ties", {"density": 0.2}, "sobol", 16),
        Cell("t", "d", 0, ("a",), "ties", "ties", {"density": 0.2}, "sobol", 8, space={"lambda": [1, 2]}),
    ]
    assert len({one.address, *(c.address for c in others)}) == 8
    ranged = Contender("ties", space={"lambda": (1.0, 2.0)})
    assert (space_of(ranged, 8), space_of(ranged, 0)) == ({"lambda": [1.0, 2.0]}, None)


def test_a_damaged_cell_is_named(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "x.json").write_text("{}")
    with pytest.raises(EvaluationError, match=r"x\.json"):
        Store(tmp_path).results()


SPOILED: dict[str, Any] = {
    "tasks a list": lambda data: data["card"].update(tasks=[]),
    "no tasks": lambda data: data["card"].update(tasks={}),
    "too few scores": lambda data: data["card"]["tasks"]["a"].update(scores=[1.0]),
    "no scores": lambda data: data["card"]["tasks"]["a"].update(scores=[], weights=None, units=[]),
    "NaN": lambda data: data["card"]["tasks"]["a"]["scores"].__setitem__(0, float("nan")),
    "no settings": lambda data: data["card"].update(settings=None),
    "a word as seed": lambda data: data["cell"].update(seed="x"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_cell_whose_content_is_damaged_is_named(name: str, tmp_path: Path) -> None:
    run(Grid("linear", (Contender("average"),), budget=0), opened, Store(tmp_path))
    path = sorted((tmp_path / "cells").iterdir())[0]
    data = json.loads(path.read_text())
    SPOILED[name](data)
    path.write_text(json.dumps(data))
    with pytest.raises(EvaluationError, match=path.stem) as caught:
        Store(tmp_path).results()
    assert caught.value.diagnostics[0].code == "CV-B021"


def test_what_a_track_is_made_of_is_found_again_whatever_its_digest_is(tmp_path: Path) -> None:
    for digest in ("1/ab/0", "1/ab/1", "../../up", "0f"):
        Store(tmp_path).describe({"track": "names", "digest": digest}, 0)
    assert {one["digest"] for one in Store(tmp_path).tracks()} == {"1/ab/0", "1/ab/1", "../../up", "0f"}


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no results in"):
        Store(tmp_path / "nosuch").results()


def test_the_command_reports_and_compares_as_text_and_json(tmp_path: Path, cli: Any) -> None:
    run(GRID, opened, Store(tmp_path))
    reported = cli("bench", "report", str(tmp_path))
    assert reported.code == 0
    assert "| task_arithmetic |" in reported.out
    assert (tmp_path / "leaderboard.md").exists()
    compared = cli("bench", "compare", str(tmp_path), "experts", "base", "--json")
    assert compared.json["schema"] == "cuvee.bench.compare/1"
    assert compared.json["p_value"] < 0.01
    missing = cli("bench", "report", str(tmp_path / "nosuch"))
    assert (missing.code, "CV-B024" in missing.err) == (1, True)


def test_every_expert_is_scored_on_every_task_where_that_is_asked_for(tmp_path: Path) -> None:
    grid = Grid("linear", (Contender("average"),), counts=(2, 1), budget=0, transfer=True)
    told: list[Done] = []
    assert run(grid, lambda name, seed: Track(), Store(tmp_path), told.append) == 0
    results = Store(tmp_path).results()
    whole = {cell.label: card for cell, card in results if len(cell.tasks) == 2}
    assert whole["expert a"].tasks["a"].mean == whole["experts"].tasks["a"].mean == 1.0
    alone = Referee(Track()).score(Track().expert("a"), "a")
    assert {n: s.mean for n, s in whole["expert a"].tasks.items()} == {
        n: s.mean for n, s in alone.tasks.items()
    }
    board = boards(results)[0]
    assert [row.label for row in board.references] == ["base", "experts", "expert a", "expert b"]
    assert [row.label for row in board.rows] == ["average"]
    text = markdown("x", whole_report(results))
    assert "| – | expert a |" in text
    assert "expert a" not in text.split("## Growth")[1].split("## ")[0]
    assert add(newcomer_of("task_arithmetic"), lambda n, s: Track(), Store(tmp_path)) == 0
    labels = {cell.label for cell, _ in Store(tmp_path).results()}
    assert {d.other for d in duels(Store(tmp_path).results(), "task_arithmetic")} == {"average"}
    assert labels == {"base", "experts", "expert a", "expert b", "average", "task_arithmetic"}


class Bound(Track):
    """A track with one reference under a name of its own."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def references(self) -> Any:
        return {self.label: self.expert("a")}


def test_references_of_any_name_stand_apart_from_the_methods(tmp_path: Path) -> None:
    grid = Grid("linear", (Contender("average"),), budget=0)
    for name in ("multitask", "bound"):
        assert run(grid, lambda n, seed, name=name: Bound(name), Store(tmp_path / name)) == 0  # type: ignore[misc]
    shown = [boards(Store(tmp_path / name).results())[0] for name in ("multitask", "bound")]
    assert [[row.label for row in board.references] for board in shown] == [
        ["base", "experts", "multitask"],
        ["base", "experts", "reference bound"],
    ]
    assert [[row.label for row in board.rows] for board in shown] == [["average"]] * 2
    again = replace(grid, references=("bound",))
    told: list[Done] = []
    run(again, lambda n, seed: Bound("bound"), Store(tmp_path / "bound"), told.append)
    assert {done.state for done in told} == {"kept"}, "asked for by its name it is the same cell"


@pytest.mark.parametrize("name", ["experts", "base", "a bound", ""])
def test_a_reference_that_would_pass_for_another_row_is_refused(name: str, tmp_path: Path) -> None:
    grid = Grid("linear", (Contender("average"),), budget=0)
    with pytest.raises(EvaluationError, match=f"`{name}`") as caught:
        run(grid, lambda n, seed: Bound(name), Store(tmp_path))
    assert caught.value.diagnostics[0].code == "CV-B373"


def test_without_selection_items_nothing_is_tuned(tmp_path: Path) -> None:
    class Bare(Track):
        def __init__(self) -> None:
            super().__init__()
            bare = Task.of(
                "a",
                train=(),
                selection=(),
                test=items(self.truth["a"], 20, 12),
                metric=ACCURACY,
                head="none",
                provenance=HERE,
            )
            self.tasks = {**self.tasks, "a": bare}

    told: list[Done] = []
    grid = Grid("linear", (Contender("task_arithmetic"),), budget=2, untuned=True)
    assert run(grid, lambda name, seed: Bare(), Store(tmp_path), told.append) == 1
    problem = next(done.problem for done in told if done.state == "failed")
    assert "CV-B374" in problem and {d.cell.budget for d in told if d.state == "scored"} == {0}


def test_a_method_for_more_experts_is_said_to_be_left_out(tmp_path: Path, monkeypatch: Any, cli: Any) -> None:
    told: list[Done] = []
    methods = (Contender("average"), Contender("slerp"))
    assert (
        run(Grid("linear", methods, counts=(2, 1), budget=0), opened, Store(tmp_path / "a"), told.append) == 0
    )
    left = [(d.cell.label, len(d.cell.tasks), d.problem) for d in told if d.state == "left out"]
    assert left == [("slerp", 1, "it merges 2 experts")]
    assert {d.cell.label for d in told if len(d.cell.tasks) == 1} - {"slerp"} == {
        "base",
        "experts",
        "average",
    }
    # where it fits no set, the command fails: nothing of what was asked for was done
    monkeypatch.setattr("cuvee.evaluate.tracks.registry.open_track", opened)
    words = ["-m", "slerp", "--count", "1", "--budget", "0", "-o", str(tmp_path / "cli")]
    done = cli("bench", "run", "linear", *words)
    assert done.code == 1
    assert "slerp (1 expert, seed 0): left out, it merges 2 experts" in done.err


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_that_no_table_holds_are_refused(seed: int) -> None:
    with pytest.raises(UsageError) as caught:
        Grid("linear", (), seeds=(0, seed))
    assert caught.value.diagnostics[0].code == "CV-U397"


def test_a_damaged_cell_is_not_kept_as_finished(tmp_path: Path) -> None:
    store, grid = Store(tmp_path), Grid("linear", (Contender("average"),), budget=0)
    run(grid, opened, store)
    path = next(store.cells().iterdir())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(EvaluationError) as caught:
        run(grid, opened, store)
    assert caught.value.diagnostics[0].code == "CV-B021" and path.name in str(caught.value)
    (tmp_path / "tracks" / "other.json").write_text("{}")
    with pytest.raises(EvaluationError, match=r"other\.json") as caught:
        store.tracks()
    assert caught.value.diagnostics[0].code == "CV-B021"
