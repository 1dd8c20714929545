"""One more method against a stored table: the same sets, budgets and items, and only those."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_track import Track

from cuvee.errors import EvaluationError, UsageError
from cuvee.evaluate.addition import Newcomer, add, duels, newcomer_of
from cuvee.evaluate.bench import Done, run
from cuvee.evaluate.cells import Grid, Store
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.selection import Selection

METHODS = (Contender("average"), Contender("slerp"))


def opened(name: str, seed: int) -> Track:
    return Track()


def summed(room: Selection) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The sum of the experts: a method of one's own."""
    merged = {name: sum(m[name] for m in room.experts) for name in room.base}
    room.evaluate(merged) if room.budget else None
    return merged, {}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    run(Grid("linear", METHODS, counts=(2, 1), budget=3, untuned=True), opened, store)
    return store


def test_a_newcomer_is_scored_where_the_others_were_and_only_there(store: Store) -> None:
    before = store.results()
    told: list[Done] = []
    assert add(newcomer_of("task_arithmetic"), opened, store, told.append) == 0
    places = {(c.seed, c.tasks, c.budget) for c, _ in before if c.method in ("average", "slerp")}
    ours = [c for c, _ in store.results() if c.method == "task_arithmetic"]
    assert sorted((c.seed, c.tasks, c.budget) for c in ours) == sorted(places)
    assert len(store.results()) == len(before) + len(ours) == len(before) + len(told)
    again: list[Done] = []
    add(newcomer_of("task_arithmetic"), opened, store, again.append)
    assert {d.state for d in again} == {"kept"}


def test_a_newcomer_gets_the_cells_that_a_full_run_would_have_made(store: Store, tmp_path: Path) -> None:
    add(newcomer_of("task_arithmetic"), opened, store)
    whole = Store(tmp_path / "whole")
    grid = Grid("linear", (*METHODS, Contender("task_arithmetic")), counts=(2, 1), budget=3, untuned=True)
    run(grid, opened, whole)
    assert {c.address for c, _ in store.results()} == {c.address for c, _ in whole.results()}


def test_a_function_joins_under_its_own_name_and_its_duels_are_paired(store: Store) -> None:
    add(Newcomer("summed", summed), opened, store)
    found = duels(store.results(), "summed")
    assert {d.newcomer for d in found} == {"summed (untuned)", "summed (budget 3)"}
    for label in ("summed (untuned)", "summed (budget 3)"):
        mine = [d for d in found if d.newcomer == label]
        assert {d.other for d in mine} == {
            f"{m} {b}" for m in ("average", "slerp") for b in ("(untuned)", "(budget 3)")
        }
        assert all(d.adjusted >= d.comparison.p_value for d in mine)
    # signs of a sum are those of an average, so every item has the same answer
    same = next(d for d in found if d.newcomer == "summed (untuned)" and d.other == "average (untuned)")
    assert (same.comparison.difference.mean, same.adjusted, same.apart) == (0.0, 1.0, False)


def test_the_function_of_the_guide_joins_a_table_with_untuned_rows(store: Store) -> None:
    """It asks for an evaluation where the table's untuned rows had none."""

    def half_way(room: Selection) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        models = [room.base, *room.experts]
        merged = {name: sum(m[name] for m in models) / len(models) for name in room.base}
        room.evaluate(merged)
        return merged, {}

    told: list[Done] = []
    assert add(Newcomer("half_way", half_way), opened, store, told.append) == 0
    assert {d.cell.budget for d in told} == {0, 3} and {d.state for d in told} == {"scored"}


def test_a_track_that_has_changed_is_refused(store: Store) -> None:
    class Changed(Track):
        digest = "1"

    with pytest.raises(EvaluationError, match="the table was made on `0`") as caught:
        add(newcomer_of("task_arithmetic"), lambda name, seed: Changed(), store)
    assert caught.value.diagnostics[0].code == "CV-B310"


def test_names_of_functions_are_imported_and_mistakes_are_told() -> None:
    assert newcomer_of(f"{__name__}:summed").method.found() is summed  # type: ignore[attr-defined]
    for name in ("nosuch_module:x", f"{__name__}:nosuch", f"{__name__}:METHODS"):
        with pytest.raises(UsageError) as caught:
            newcomer_of(name)
        assert caught.value.diagnostics[0].code == "CV-U310"


def ties(room: Selection) -> Any:
    """A function that is called like a method of the registry."""
    return summed(room)


multitask = ties


def test_a_function_cannot_pass_for_a_method_or_a_reference() -> None:
    for name in ("ties", "multitask"):
        with pytest.raises(UsageError, match=f"`{name}`") as caught:
            newcomer_of(f"{__name__}:{name}")
        assert caught.value.diagnostics[0].code == "CV-U395"


def test_functions_called_like_the_words_before_a_task_are_ranked(store: Store) -> None:
    """`expert a` and `reference b` are references; `expert (budget 3)` is a method."""
    for name in ("expert", "reference"):
        add(Newcomer(name, summed), opened, store)
        assert {d.newcomer for d in duels(store.results(), name)} == {
            f"{name} (untuned)",
            f"{name} (budget 3)",
        }
        assert f"{name} (budget 3)" in {d.other for d in duels(store.results(), "average")}


def test_another_function_of_the_same_name_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    other = types.ModuleType("other_module")
    other.summed = lambda room: (room.base, {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "other_module", other)
    add(newcomer_of(f"{__name__}:summed"), opened, store)
    before = store.results()
    with pytest.raises(UsageError, match="stands in the table already") as caught:
        add(newcomer_of("other_module:summed"), opened, store)
    assert caught.value.diagnostics[0].code == "CV-U395"
    assert len(store.results()) == len(before)
    told: list[Done] = []
    assert add(newcomer_of(f"{__name__}:summed"), opened, store, told.append) == 0
    assert {d.state for d in told} == {"kept"}


def test_weights_that_are_not_the_bases_are_named(store: Store) -> None:
    wrong = {
        "shape": {"weight": torch.ones(3)},
        "no such": {"weight": torch.ones(8), "other": torch.ones(1)},
        "complex": {"weight": torch.ones(8, dtype=torch.complex64)},
    }
    for said, weights in wrong.items():
        told: list[Done] = []
        assert add(Newcomer(said, lambda room, w=weights: (w, {})), opened, store, told.append) > 0  # type: ignore[misc]
        assert said in told[0].problem and "CV-B012" in told[0].problem


def test_the_command_adds_and_prints_duels(store: Store, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuvee.evaluate.tracks.registry.open_track", opened)
    done = cli("bench", "add", str(store.folder), f"{__name__}:summed")
    assert done.code == 0
    assert "not told apart" in done.out
    assert "2 experts, seed 0): scored" in done.err
    as_json = cli("bench", "add", str(store.folder), "task_arithmetic", "-q")
    assert (as_json.code, as_json.err) == (0, "")


def test_what_failed_is_told_by_reports_and_comparisons_until_it_is_finished(
    store: Store, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cuvee.evaluate.tracks.registry.open_track", opened)
    works = [False]

    def fickle(room: Selection) -> Any:
        if not works[0]:
            raise ValueError("no | such thing")
        return summed(room)

    monkeypatch.setitem(globals(), "fickle", fickle)
    name = f"{__name__}:fickle"
    done = cli("bench", "add", str(store.folder), name)
    assert done.code == 1 and "no cell of `fickle` can be compared" in done.err and not done.out
    compared = cli("bench", "compare", str(store.folder), "fickle (budget 3)", "slerp (budget 3)")
    assert "CV-B023" in compared.err and "`fickle` failed: CV-B370" in compared.err
    assert "failed" not in cli("bench", "compare", str(store.folder), "nosuch", "slerp (budget 3)").err
    assert "no | such thing" in cli("bench", "report", str(store.folder)).out.replace("\\|", "|")
    failed = json.loads((store.folder / "results.json").read_text())["failed"]
    assert len(failed) == 6 and {one["cell"]["label"] for one in failed} == {"fickle"}
    assert not {one["address"] for one in failed} & {cell.address for cell, _ in store.results()}
    damaged = store.folder / "failed" / f"{failed[0]['address']}.json"
    whole = damaged.read_bytes()
    for content in (b"", b"[]", b"{}", b'{"cell": 3}', whole.replace(b'"problem"', b'"other"')):
        damaged.write_bytes(content)
        assert f"`{damaged}` is not" in " ".join(cli("bench", "report", str(store.folder)).err.split())
    damaged.write_bytes(whole)
    works[0] = True
    assert cli("bench", "add", str(store.folder), name).code == 0
    assert "## Failed" not in cli("bench", "report", str(store.folder)).out
    assert not json.loads((store.folder / "results.json").read_text())["failed"]


def test_a_folder_of_failures_alone_says_so(tmp_path: Path) -> None:
    def fails(name: str, seed: int) -> Track:
        track = Track()
        track.expert = lambda task: 1 / 0  # type: ignore[method-assign, assignment, return-value]
        return track

    place = Store(tmp_path)
    assert run(Grid("linear", METHODS[:1], budget=0, references=()), fails, place) == 1
    with pytest.raises(EvaluationError, match="all cells failed"):
        place.results()
