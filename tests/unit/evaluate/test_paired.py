"""Differences between methods have one scale: shares of the experts' scores, whatever the tasks' metrics."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from linear_track import Track

from cuvee.errors import EvaluationError
from cuvee.evaluate.bench import Done, run
from cuvee.evaluate.cells import Cell, Grid, Store
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.leaderboard import difference, measured
from cuvee.evaluate.pages import markdown
from cuvee.evaluate.paired import SHARE, pairs
from cuvee.evaluate.report import sections
from cuvee.evaluate.scorecard import Scorecard, TaskScore
from cuvee.evaluate.table import boards
from cuvee.evaluate.task import ACCURACY, BITS_PER_BYTE, EXACT_MATCH, Metric

ITEMS = 50
ONES = np.ones(ITEMS)
BITS = {"experts": 2.0, "x": 2.5, "y": 4.0, "base": 5.0}
RIGHT = {"experts": 25, "x": 20, "y": 10, "base": 5}


def card(label: str, *, mixed: bool = True) -> Scorecard:
    """Exact match of the first items, and bits per byte beside it."""
    ones = np.ones(ITEMS)
    tasks = {"asked": TaskScore(EXACT_MATCH, (np.arange(ITEMS) < RIGHT[label]).astype(float), ones)}
    if mixed:
        tasks["read"] = TaskScore(BITS_PER_BYTE, BITS[label] * ones, ones)
    return Scorecard(label, tasks)


def results(*labels: str, mixed: bool = True) -> list[tuple[Cell, Scorecard]]:
    made = {label: card(label, mixed=mixed) for label in labels}
    return [(Cell("t", "d", 0, tuple(c.tasks), label, label), c) for label, c in made.items()]


def test_a_difference_over_two_metrics_is_of_shares_of_the_experts_scores() -> None:
    found = pairs(results("experts", "x", "y"), "x", "y")
    exact, bits = (20 - 10) / 25, 2.0 / 2.5 - 2.0 / 4.0  # by hand: each as a share of its expert's
    assert found.difference.mean == pytest.approx((exact + bits) / 2)
    assert (found.unit, measured(found)) == (SHARE, "points of the normalised score")
    assert difference(found).startswith(f"{100 * (exact + bits) / 2:+.2f} (")


def test_a_name_alone_is_the_tuned_method_where_both_were_scored() -> None:
    """As the guide has it: `bench compare FOLDER tsv_m ties`, after a run that scores defaults too."""
    made = results("experts", "x", "y")
    tuned = (replace(made[1][0], budget=4, search="sobol"), card("y"))
    both = [*made, tuned]
    assert pairs(both, "x", "y") == pairs(both, "x (budget 4)", "y")
    more = [*both, (replace(tuned[0], budget=8), card("x"))]
    with pytest.raises(EvaluationError, match="not both scored"):
        pairs(more, "x", "y")


def test_a_difference_is_that_of_the_normalised_scores_even_far_from_the_expert() -> None:
    """An expert whose loss is nearly zero makes no task count a thousand times as much as another."""
    random = np.random.default_rng(0)
    weights = random.random(ITEMS) + 0.5

    def made(label: str, loss: float, right: float) -> tuple[Cell, Scorecard]:
        bits = TaskScore(BITS_PER_BYTE, loss * random.uniform(0.5, 1.5, ITEMS), weights)
        exact = TaskScore(EXACT_MATCH, (random.random(ITEMS) < right).astype(float), weights)
        tasks = {"a": bits, "b": exact}
        return Cell("t", "d", 0, ("a", "b"), label, label), Scorecard(label, tasks)

    found = [made("experts", 0.001, 0.9), made("x", 0.5, 0.8), made("y", 0.2, 0.3)]
    shown = {row.label: row.normalised for row in boards(found)[0].rows}
    test = pairs(found, "x", "y")
    assert test.difference.mean == pytest.approx(shown["x"] - shown["y"]) and test.difference.mean > 0.2
    assert test.difference.low < test.difference.mean < test.difference.high < 1.0


def test_an_expert_that_is_never_right_gives_no_share() -> None:
    zeros, half = np.zeros(ITEMS), (np.arange(ITEMS) % 2).astype(float)
    cards = {"experts": zeros, "x": half, "y": zeros}
    found = [
        (
            Cell("t", "d", 0, ("a",), label, label),
            Scorecard(label, {"a": TaskScore(ACCURACY, s, np.ones(ITEMS))}),
        )
        for label, s in cards.items()
    ]
    rows = boards(found)[0].rows
    assert all(math.isnan(row.normalised) for row in rows) and rows[0].label == "x"
    assert pairs(found, "x", "y").difference.mean == 0.5


@pytest.mark.parametrize(
    ("metric", "better", "worse"), [(EXACT_MATCH, -2.0, -3.0), (BITS_PER_BYTE, -3.0, -2.0)]
)
def test_where_experts_are_not_above_zero_plain_scores_are_compared(
    metric: Metric, better: float, worse: float
) -> None:
    values = {"experts": -1.0, "x": better, "y": worse}
    found = [
        (Cell("t", "d", 0, ("a",), label, label), Scorecard(label, {"a": TaskScore(metric, v * ONES, ONES)}))
        for label, v in values.items()
    ]
    assert pairs(found, "x", "y").difference.mean == 1.0
    assert all(math.isnan(row.normalised) for row in boards(found)[0].rows)


def test_a_method_that_is_never_right_has_a_share_of_zero() -> None:
    values = {"experts": 0.5, "x": 0.25, "y": 0.0}
    found = [
        (Cell("t", "d", 0, ("a",), n, n), Scorecard(n, {"a": TaskScore(EXACT_MATCH, v * ONES, ONES)}))
        for n, v in values.items()
    ]
    assert pairs(found, "x", "y").difference.mean == 0.5


def test_without_experts_only_tasks_of_one_metric_are_compared() -> None:
    plain = pairs(results("x", "y", mixed=False), "x", "y")
    assert plain.difference.mean == pytest.approx(10 / ITEMS)
    assert (plain.unit, measured(plain)) == ("%", "points")
    with pytest.raises(EvaluationError, match="several metrics") as caught:
        pairs(results("x", "y"), "x", "y")
    assert caught.value.diagnostics[0].code == "CV-B396"
    untuned = [(replace(c, label="x", budget=0), s) for c, s in results("x")]
    tuned = [(replace(c, label="x", method="x", budget=4), s) for c, s in results("x")]
    assert "Untuned defaults" not in markdown("x", sections([*untuned, *tuned]))
    assert "Untuned defaults" in markdown("x", sections([*untuned, *tuned, *results("experts")]))
    assert boards(results("x", "y"))[0].groups == (("x", "y"),), "nothing tells them apart"
    assert boards(results("experts", "x", "y"))[0].groups == (("x",), ("y",))


def test_columns_are_written_in_their_own_units() -> None:
    """Tasks with experts in bits per byte, unseen ones in per cent: neither is shown in the other's unit."""
    ones = np.ones(ITEMS)

    def made(label: str, bits: float, right: int) -> tuple[Cell, Scorecard]:
        unseen = TaskScore(ACCURACY, (np.arange(ITEMS) < right).astype(float), ones, unseen=True)
        tasks = {"a": TaskScore(BITS_PER_BYTE, bits * ones, ones), "u": unseen}
        return Cell("t", "d", 0, ("a",), label, label), Scorecard(label, tasks)

    found = [made("base", 4.0, 10), made("experts", 2.0, 20), made("x", 2.5, 15), made("y", 3.5, 12)]
    row = next(r for r in markdown("x", sections(found)).splitlines() if r.startswith("| 1 | x |"))
    assert row == "| 1 | x | 2.500 (2.500–2.500) | 80.0 | a 2.500 | 30.0 | +10.0 | – |"
    board = boards(found)[0]
    assert [board.unit(c) for c in ("mean", "unseen", "forgetting", "shifted")] == ["bits/byte", "%", "%", ""]


def test_progress_gives_no_mean_over_two_metrics(tmp_path: Path) -> None:
    class Two(Track):
        """One of its tasks has another metric."""

        def __init__(self) -> None:
            super().__init__()
            self.tasks["b"] = _with(self.tasks["b"], Metric("share", unit="%"))

    told: list[Done] = []
    for track in (Track, Two):
        grid = Grid("linear", (Contender("average"),), budget=0)
        run(grid, lambda name, seed, track=track: track(), Store(tmp_path / track.__name__), told.append)  # type: ignore[misc]
    assert [math.isnan(done.mean) for done in told] == [False] * 3 + [True] * 3
    assert {done.unit for done in told} == {"%"}


def _with(task: Any, metric: Metric) -> Any:
    return replace(task, metric=metric)
