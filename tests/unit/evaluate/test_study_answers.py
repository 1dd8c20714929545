"""What studies answer: shares kept of each expert, the way from base to experts, growth, tests against the base."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cuvee.charts import Chart, Table
from cuvee.evaluate.cells import Cell
from cuvee.evaluate.pages import Section
from cuvee.evaluate.scorecard import Scorecard, TaskScore
from cuvee.evaluate.studies import answers
from cuvee.evaluate.table import boards
from cuvee.evaluate.task import ACCURACY, BITS_PER_BYTE, EXACT_MATCH, Metric

ITEMS = 100


def share(right: int, metric: Metric = ACCURACY, **more: Any) -> TaskScore:
    return TaskScore(metric, (np.arange(ITEMS) < right).astype(float), np.ones(ITEMS), **more)


def bits(value: float) -> TaskScore:
    return TaskScore(BITS_PER_BYTE, np.full(ITEMS, value), np.ones(ITEMS))


def cell(label: str, tasks: dict[str, TaskScore]) -> tuple[Cell, Scorecard]:
    held = tuple(name for name, score in tasks.items() if not score.unseen)
    return Cell("t", "d", 0, held, label, label), Scorecard(label, tasks)


def results(unseen: tuple[int, int] = (30, 80)) -> list[Any]:
    """Base, experts and two methods on one and on two tasks; `unseen`: the base's and the methods' right answers."""
    scores = {"base": (40, 4.0), "experts": (80, 2.0), "x": (60, 2.5), "y": (30, 3.2), "multitask": (70, 2.1)}
    out = []
    for label, (right, loss) in scores.items():
        elsewhere = {}
        if label != "experts":
            met = unseen[0] if label == "base" else unseen[1]
            elsewhere = {
                "u": share(met, unseen=True),
                "v": share(20, EXACT_MATCH, unseen=True),
            }
        out.append(cell(label, {"a": share(right), "b": bits(loss), **elsewhere}))
        out.append(cell(label, {"a": share(right), **elsewhere}))
    return out


def table(section: Section | None) -> Table:
    assert section is not None
    return next(part for part in section.parts if isinstance(part, Table))


def test_what_is_kept_of_each_expert_is_its_share_whichever_way_is_better() -> None:
    chart: Any = answers.kept(boards(results())).parts[0]
    assert isinstance(chart, Chart)
    kept = {row[0]: row[1:] for row in chart.table.rows}
    assert kept["x"] == pytest.approx([75.0, 80.0]) and kept["base"] == pytest.approx([50.0, 50.0])
    assert "experts" not in kept and kept["multitask"] == pytest.approx([87.5, 100 * 2.0 / 2.1])


def test_the_way_from_base_to_experts() -> None:
    rows = {row[1]: row for row in table(answers.tradeoff(boards(results()))).rows}
    x = (0.75 + 0.8) / 2
    assert [rows[label][3] for label in ("base", "experts")] == ["0.0", "100.0"]
    assert rows["x"][3] == f"{100 * (x - 0.5) / 0.5:.1f}"
    assert rows["y"][3].startswith("0.0") or float(rows["y"][3]) == pytest.approx(0.0, abs=0.05)


def test_growth_names_what_changes_between_the_fewest_and_the_most_experts() -> None:
    rows = {row[0]: row[1:] for row in table(answers.growth(boards(results()))).rows}
    assert rows["x"] == ["75.0", "77.5", "+2.5"]
    assert answers.growth(boards(results()[::2])) is None


def test_unseen_tasks_are_tested_against_the_base_metric_by_metric() -> None:
    found = table(answers.beyond_base(boards(results()), results()))
    assert len(found.rows) == 2 * 2 * 3  # numbers of experts, metrics, methods with joint training
    better = [row for row in found.rows if row[2] == "u"]
    same = [row for row in found.rows if row[2] == "v"]
    assert {row[3].split(" ")[0] for row in better} == {"+50.00"} and {row[4] for row in found.rows} == {
        "points"
    }
    assert {row[5] for row in better} == {"< 0.0001"} and {row[5] for row in same} == {"1.0000"}
    said = str(answers.beyond_base(boards(results()), results()).parts[0])
    assert "Of 12 lines 6 are better than the base at the 95 % level, 0 worse." in said
    worse = str(answers.beyond_base(boards(results((80, 30))), results((80, 30))).parts[0])
    assert "Of 12 lines 0 are better than the base at the 95 % level, 6 worse." in worse


def test_without_unseen_tasks_it_is_said() -> None:
    plain = [(c, Scorecard(s.name, {n: t for n, t in s.tasks.items() if not t.unseen})) for c, s in results()]
    assert "not answered" in str(answers.beyond_base(boards(plain), plain).parts[0])
