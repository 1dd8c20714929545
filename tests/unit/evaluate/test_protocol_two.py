"""What cells of protocol 2 keep: groups of items, choosing by shares of the experts' scores, ranges, no mixing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from linear_track import HERE, WEIGHT, Linear, Track, items

from cuvee.errors import EvaluationError
from cuvee.evaluate.addition import add, newcomer_of
from cuvee.evaluate.bench import run
from cuvee.evaluate.cells import PROTOCOL, Cell, Grid, Store
from cuvee.evaluate.checks import summary
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.ledger import Ledger
from cuvee.evaluate.pages import markdown
from cuvee.evaluate.paired import pairs
from cuvee.evaluate.referee import Referee
from cuvee.evaluate.report import sections
from cuvee.evaluate.scorecard import Scorecard, TaskScore
from cuvee.evaluate.selection import Selection
from cuvee.evaluate.space import dimensions
from cuvee.evaluate.table import boards
from cuvee.evaluate.task import ACCURACY, BITS_PER_BYTE, Item, Metric, Provenance, Task, groups_of
from cuvee.methods import registry


class Grouped(Track):
    """Test items of the task `a` come in groups of twenty, those of `b` singly."""

    def __init__(self, metric: Metric = ACCURACY) -> None:
        super().__init__(metric)
        weight = self.truth["a"]
        test = [replace(item, group=f"person {n // 20}") for n, item in enumerate(items(weight, 200, 12))]
        parts = {"train": items(weight, 20, 10), "selection": items(weight, 40, 11), "test": test}
        self.tasks["a"] = Task.of("a", **parts, metric=metric, head="none", provenance=HERE)


class Losing(Linear):
    """Answers with a loss between nearly 0 and 1; of the second task a hundred times as much."""

    def answer(self, task: Task, asked: Any, ledger: Ledger) -> Any:
        right = super().answer(task, asked, ledger)
        return (1.1 - right) * (100.0 if task.name == "b" else 1.0)


def half(room: Selection) -> tuple[Any, dict[str, Any]]:
    values = [room.evaluate(room.experts[0]), room.evaluate(room.experts[1]), room.evaluate({})]
    return room.experts[0], {"values": values}


def test_what_methods_choose_by_is_what_is_reported_on_other_items() -> None:
    referee = Referee(Track(), ["a", "b"], budget=3)
    choice = referee.choose(half)
    track = referee.track
    by_hand = []
    for weights in (track.truth["a"], track.truth["b"], torch.zeros(8)):
        right = [
            np.mean(
                [int(torch.from_numpy(i.input) @ weights > 0) == i.target for i in track.tasks[n].selection]
            )
            for n in "ab"
        ]
        by_hand.append(float(np.mean(right)))  # the experts are always right
    assert [value for _, value in choice.log] == pytest.approx(by_hand)
    assert choice.spent.evaluations == 3 and choice.spent.examples == 3 * 80, (
        "the experts' scores cost nothing"
    )


def test_no_task_outweighs_another_by_its_scale() -> None:
    """Lower is better, and the second task's losses are a hundred times the first's: both count alike."""

    class Loud(Track):
        def examinee(self) -> Linear:
            return Losing()

    referee = Referee(Loud(BITS_PER_BYTE), ["a", "b"], budget=3)
    values = [value for _, value in referee.choose(half).log]
    known = {n: np.array([1.1 - r for r in _right(referee.track, n)]) for n in "ab"}
    assert values[0] == pytest.approx((1 + 0.1 / known["b"].mean()) / 2)
    assert 0 < values[2] < min(values[:2]) <= 1


def _right(track: Any, name: str) -> list[int]:
    """Which selection items the first task's expert answers."""
    weight = track.truth["a"]
    return [int(int(torch.from_numpy(i.input) @ weight > 0) == i.target) for i in track.tasks[name].selection]


def test_without_the_experts_scores_choosing_goes_by_plain_ones() -> None:
    track = Track()
    room = Selection(track, ["a", "b"], track.examinee(), 2)
    found = room.evaluate({WEIGHT: track.truth["a"]})
    assert found == pytest.approx((1 + np.mean(_right(track, "b"))) / 2)
    known = Selection(track, ["a", "b"], track.examinee(), 2, {"a": 0.5, "b": 0.0})
    assert known.evaluate({WEIGHT: track.truth["a"]}) == pytest.approx((2 + np.mean(_right(track, "b"))) / 2)


def test_a_perfect_loss_is_the_best_there_is() -> None:
    class Perfect(Linear):
        def answer(self, task: Task, asked: Any, ledger: Ledger) -> Any:
            return np.zeros(len(asked))

    track = Track(BITS_PER_BYTE)
    assert Selection(track, ["a"], Perfect(), 1, {"a": 0.5}).evaluate({}) == 100.0, (
        "finite: other tasks still count"
    )
    assert Selection(track, ["a"], Perfect(), 1, {"a": 0.0}).evaluate({}) == 0.0


class Likely(Linear):
    """Answers with log-likelihoods: higher is better, and nothing is above zero."""

    def answer(self, task: Task, asked: Any, ledger: Ledger) -> Any:
        return super().answer(task, asked, ledger) - 2.0


def test_scores_below_zero_are_chosen_by_as_they_are() -> None:
    """Of two negative scores the quotient is the greater the worse the candidate."""
    track = Track()
    room = Selection(track, ["a"], Likely(), 2, {"a": -2.0})
    worse = room.evaluate({WEIGHT: -track.truth["a"]})
    better = room.evaluate({WEIGHT: track.truth["a"]})
    assert (worse, better) == (-2.0, -1.0) and room.best is not None
    assert torch.equal(room.best[0][WEIGHT], track.truth["a"])
    card = Referee(track, ["a"]).score(track.base, "x")
    assert math.isnan(card.tasks["a"].share(-2.0)) and math.isnan(card.tasks["a"].share(0.0))


def test_groups_of_items_come_with_the_scores_and_survive_json() -> None:
    card = Referee(Grouped(), ["a", "b"]).score({WEIGHT: torch.ones(8)}, "x")
    back = Scorecard.from_json(json.loads(json.dumps(card.as_json())))
    for name, groups in (("a", 10), ("b", 200)):
        units = card.tasks[name].units
        assert units is not None and len(set(units.tolist())) == groups
        assert np.array_equal(units, back.tasks[name].units)  # type: ignore[arg-type]
    assert card.interval(["a"]).mean == card.tasks["a"].mean


def test_a_group_is_the_same_in_every_task_of_its_source() -> None:
    def units(name: str, source: str, *given: Item) -> list[int]:
        parts = {"train": (), "selection": (), "test": ()}
        task = Task.of(name, **parts, metric=ACCURACY, head="none", provenance=Provenance(source))
        return task.units(given)

    one, other, single = Item("x", 0, "p"), Item("y", 0, "p"), Item("x", 0)
    assert units("a", "s", one) == units("b", "s", other) != units("a", "t", one)
    assert units("a", "s", single) == units("b", "t", single) != units("a", "s", one)
    assert len({*units("a", "s", Item("x", 0, "1"), Item("x", 0, "2"), single)}) == 3
    assert units("a", "s", Item("x", 0, "")) == units("a", "s", single), "an empty group is none"
    assert groups_of([Item("x", 0, ""), Item("y", 0, ""), one]) == 3
    assert max(units("a", "s", *(Item(f"{n}", 0) for n in range(99)))) in range(2**40, 2**48)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    methods = (Contender("average"), Contender("task_arithmetic"))
    run(Grid("linear", methods, budget=3), lambda n, s: Grouped(), Store(tmp_path))
    return Store(tmp_path)


def test_the_board_and_the_comparison_say_what_was_drawn(store: Store, cli: Any) -> None:
    (board,) = boards(store.results())
    assert {n: (e.groups, e.items) for n, e in board.evidence.items()} == {
        "a": (10, 200),
        "b": (200, 200),
        "c": (200, 200),
    }
    text = markdown("x", sections(store.results()))
    assert "groups of items that belong together (a 10 of 200 items); single items in b, c." in text
    found = pairs(store.results(), "average", "task_arithmetic")
    assert (found.units, found.items) == (210, 400)
    done = cli("bench", "compare", str(store.folder), "average", "task_arithmetic")
    assert "over 210 groups of 400 items, p = " in done.out


def test_what_tracks_are_made_of_names_the_groups(store: Store) -> None:
    (track,) = store.tracks()
    assert {n: task["groups"] for n, task in track["tasks"].items()} == {
        "a": [20, 40, 10],
        "b": [20, 40, 200],
        "c": [20, 40, 200],
    }


def test_a_leak_is_looked_for_in_standard_errors_of_groups() -> None:
    """Ten answers to one picture are one piece of evidence: the variance is ten times that of single items."""
    random = np.random.default_rng(0)
    scores, ones = np.repeat(random.random(40), 10), np.ones(400)
    grouped, single = (
        summary(TaskScore(ACCURACY, scores, ones, units=units))
        for units in (np.repeat(np.arange(40), 10), None)
    )
    assert grouped[0] == single[0] and grouped[1] == pytest.approx(10 * single[1])


def test_groups_widen_the_interval_and_leave_the_scores(store: Store) -> None:
    """Where the items of a group are alike, twenty of them say no more than one."""
    (base,) = (card for cell, card in store.results() if cell.label == "base")
    groups = np.unique(base.tasks["a"].units, return_inverse=True)[1]  # type: ignore[arg-type]
    alike = replace(base.tasks["a"], scores=(groups % 3 == 0).astype(float))
    widths = []
    for score in (alike, replace(alike, units=None)):
        card = Scorecard("x", {"a": score})
        found = card.interval(["a"])
        assert found.mean == card.tasks["a"].mean == pytest.approx(0.4)
        widths.append(found.high - found.low)
    assert widths[0] > 2 * widths[1]


def older(store: Store, label: str) -> tuple[Cell, Scorecard]:
    """A cell as it was before there were protocols."""
    cell, card = next(one for one in store.results() if one[0].label == label)
    return replace(cell, protocol=1), card


def test_cells_of_an_older_protocol_keep_their_address_and_are_never_joined(store: Store) -> None:
    cell, card = older(store, "average")
    new = replace(cell, protocol=PROTOCOL)
    assert cell.address != new.address and store.has(new) and not store.has(cell)
    store.put(cell, card)
    path = store.folder / "cells" / f"{cell.address}.json"
    data = json.loads(path.read_text())
    del data["cell"]["protocol"]
    path.write_text(json.dumps(data))  # as older versions wrote it
    results = store.results()
    assert [c.protocol for c, _ in results].count(1) == 1
    assert [b.track for b in boards(results)] == ["linear", "linear (protocol 1)"]
    assert all(row.cells == 1 for board in boards(results) for row in board.rows)
    before = pairs(results, "average", "task_arithmetic")
    cell, card = older(store, "task_arithmetic")
    worse = {n: replace(s, scores=0 * s.scores, units=None) for n, s in card.tasks.items()}
    store.put(cell, replace(card, tasks=worse))
    assert pairs(store.results(), "average", "task_arithmetic") == before
    only = [one for one in store.results() if one[0].protocol == 1]
    assert pairs(only, "average", "task_arithmetic").difference.mean > before.difference.mean


def test_a_newcomer_does_not_join_a_table_of_an_older_protocol(store: Store, tmp_path: Path) -> None:
    old = Store(tmp_path / "old")
    for label in ("average", "task_arithmetic", "experts"):
        old.put(*older(store, label))
    with pytest.raises(EvaluationError, match="made by protocol 1") as caught:
        add(newcomer_of("slerp"), lambda n, s: Grouped(), old)
    assert caught.value.diagnostics[0].code == "CV-B310"
    old.put(*next(one for one in store.results() if one[0].label == "average"))
    assert add(newcomer_of("slerp"), lambda n, s: Grouped(), old) == 0
    assert [c.protocol for c, _ in old.results() if c.method == "slerp"] == [PROTOCOL]


@pytest.mark.parametrize("experts", [1, 2, 8, 16])
@pytest.mark.parametrize("method", registry.names())
def test_every_coefficient_is_searched_sixteenfold_around_its_centre(method: str, experts: int) -> None:
    known = registry.parameters_for(registry.get(method))
    for one in dimensions(method, experts=experts):
        if one.log:
            default = known[one.name].default or 1.0
            centre = math.sqrt(one.low * one.high)
            assert one.high / one.low == pytest.approx(16)
            assert centre in (pytest.approx(default), pytest.approx(default / math.sqrt(experts)))
            assert one.low <= default * 1.0001 and default <= one.high * 1.0001, "the default lies inside"


@pytest.mark.parametrize(
    ("method", "summed"),
    [
        ("task_arithmetic", True),
        ("dare_linear", True),
        ("breadcrumbs", True),
        ("lora_svd", True),
        ("consensus", True),
        ("cabs", True),
        ("lora_factorwise_linear", True),
        ("lora_factorwise_ties", False),
        ("dare_ties", False),
        ("ties", False),
        ("iso_c", False),
        ("tsv_m", False),
        ("pcb", False),
    ],
)
def test_only_what_adds_experts_up_is_searched_lower_with_more_of_them(method: str, summed: bool) -> None:
    few, many = (dimensions(method, experts=n)[0] for n in (1, 9))
    assert few.low / many.low == pytest.approx(3 if summed else 1)


@pytest.mark.parametrize(
    ("method", "settings", "summed"),
    [
        ("task_arithmetic", {"normalize": True}, False),
        ("task_arithmetic", {"normalize": False}, True),
        ("dare_ties", {"merge": "sum"}, True),
        ("ties", {"merge": "max"}, False),
    ],
)
def test_settings_say_whether_experts_are_added_up(
    method: str, settings: dict[str, Any], summed: bool
) -> None:
    found = Contender(method, settings).tuned(16)[0]
    assert (found.low, found.high) == (pytest.approx((0.0625, 1.0)) if summed else (0.25, 4.0))


def test_a_contender_searches_the_range_for_the_experts_it_is_given() -> None:
    choice = Referee(Track(), ["a", "b"], budget=40).choose(Contender("task_arithmetic"))
    tried = [point["lambda"] for point, _ in choice.log if "lambda" in point]
    assert 0.25 / math.sqrt(2) <= min(tried) < 0.25 and 2.5 < max(tried) <= 4 / math.sqrt(2)
