"""Sections of a report: spread over sets and seeds, size of the base, experts on selection beside test."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from linear_track import Track, items

from cuvee.evaluate import checks, sizes, variation
from cuvee.evaluate.bench import run
from cuvee.evaluate.cells import Cell, Grid, Store
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.pages import markdown
from cuvee.evaluate.report import report
from cuvee.evaluate.scorecard import Scorecard, TaskScore
from cuvee.evaluate.table import boards
from cuvee.evaluate.task import ACCURACY, BITS_PER_BYTE, Metric, Task

AVERAGE = (Contender("average"),)


def card(label: str, score: float, tasks: tuple[str, ...] = ("a",), **settings: Any) -> Scorecard:
    given = {n: TaskScore(ACCURACY, np.full(10, score), np.ones(10)) for n in tasks}
    return Scorecard(label, given, settings=settings)


def test_the_spread_over_seeds_is_that_of_the_cells() -> None:
    scores = {0: 0.5, 1: 0.6, 2: 0.8}
    results = [
        (Cell("t", str(seed), seed, ("a",), label, label), card(label, value))
        for seed, score in scores.items()
        for label, value in (("experts", 1.0), ("average", score))
    ]
    board = boards(results)[0]
    text = markdown("x", [found]) if (found := variation.section(board, results)) else ""
    deviation = 100 * np.std([0.5, 0.6, 0.8], ddof=1)
    assert f"| average | 3 | 63.3 | {deviation:.1f} | 50.0 | 80.0 |" in text
    assert "| 2 | 80 |" in text
    one = [r for r in results if r[0].seed == 0]
    assert variation.section(boards(one)[0], one) is None


def test_sets_below_all_experts_are_shown_one_by_one(tmp_path: Path) -> None:
    run(Grid("linear", AVERAGE, counts=(1,), seeds=(0,), budget=0), lambda n, s: Track(), Store(tmp_path))
    text = report(tmp_path).markdown()
    part = text.split("## Sets and seeds: linear, 1 experts")[1]
    assert "| average | 2 |" in part and "| 0, 1 |" in part and "| 0, 2 |" in part


def test_bases_of_two_sizes_stand_beside_each_other(tmp_path: Path) -> None:
    class Small(Track):
        name, digest = "small", "s"

    class Large(Track):
        name, digest = "large", "l"

        def __init__(self) -> None:
            super().__init__()
            self.base = {**self.base, "unused": torch.zeros(2_000_000)}

        def expert(self, task: str) -> Any:
            return {**super().expert(task), "unused": torch.zeros(2_000_000)}

    for made in (Small, Large):
        run(Grid(made.name, AVERAGE, budget=0), lambda n, s, made=made: made(), Store(tmp_path))  # type: ignore[misc]
        if made is Small:
            assert "Size of the base" not in report(tmp_path).markdown()
    part = report(tmp_path).markdown().split("## Size of the base")[1]
    assert re.search(r"\| 8 \(small, 2 experts\) \|", part)
    assert part.index("8 (small") < part.index("2 M (large, 2 experts)")
    assert sizes.section([], []) is None


def test_experts_are_scored_on_selection_too_and_honest_ones_pass(tmp_path: Path) -> None:
    run(Grid("linear", AVERAGE, budget=0), lambda n, s: Track(), Store(tmp_path))
    part = report(tmp_path).markdown().split("## Experts, selection beside test: linear")[1]
    assert "| 0 | a | 100.0 | 100.0 | 0.0 | +0.0 |" in part and "look for a leak" not in part


def test_an_expert_that_has_seen_test_items_is_told(tmp_path: Path) -> None:
    class Leaky(Track):
        """The selection items of `a` are of another rule than its test items, which the expert knows."""

        def __init__(self) -> None:
            super().__init__()
            other = torch.randn(8, generator=torch.Generator().manual_seed(77))
            honest = self.tasks["a"]
            self.tasks["a"] = Task.of(
                "a",
                train=honest.train,
                selection=items(other, 40, 11),
                test=items(self.truth["a"], 200, 12),
                metric=ACCURACY,
                head="none",
                provenance=honest.provenance,
            )

    run(Grid("linear", AVERAGE, budget=0), lambda n, s: Leaky(), Store(tmp_path))
    part = report(tmp_path).markdown().split("## Experts, selection beside test: linear")[1]
    assert [line.split("|")[2].strip() for line in part.splitlines() if "look for a leak" in line] == ["a"]


@pytest.mark.parametrize(("metric", "sign"), [(ACCURACY, 1), (BITS_PER_BYTE, -1)])
def test_the_difference_is_in_standard_errors(metric: Metric, sign: int) -> None:
    draw = np.random.default_rng(0)
    test, weights = draw.random(400), draw.random(400) + 0.5
    score = TaskScore(metric, test, weights)
    mean, variance = checks.summary(score)
    means = [
        np.average(test[pick], weights=weights[pick])
        for pick in (draw.integers(0, 400, 400) for _ in range(3000))
    ]
    assert mean == pytest.approx(np.average(test, weights=weights))
    assert variance == pytest.approx(np.var(means), rel=0.15)  # of the bootstrap
    known = {"a": [mean - sign * 0.1, variance]}
    cell = Cell("t", "d", 0, ("a",), "experts", "experts")
    results = [(cell, Scorecard("experts", {"a": score}, settings={"selection": known}))]
    found = checks.section(boards(results)[0], results)
    assert found is not None
    expected = 0.1 / np.sqrt(2 * variance)
    assert f"| {expected:+.1f} | look for a leak |" in markdown("x", [found])
