"""The leaderboard as a page holds what the one in Markdown holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from linear_track import Track

from cuvee.evaluate.bench import run
from cuvee.evaluate.cells import Cell, Grid, Store
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.leaderboard import sections
from cuvee.evaluate.pages import markdown
from cuvee.evaluate.scorecard import Scorecard, TaskScore
from cuvee.evaluate.table import boards
from cuvee.evaluate.task import ACCURACY

METHODS = (Contender("average"), Contender("task_arithmetic"))


def test_the_report_writes_both_forms_with_the_same_cells(tmp_path: Path, cli: Any) -> None:
    run(Grid("linear", METHODS, counts=(2, 1), budget=2), lambda name, seed: Track(), Store(tmp_path))
    assert cli("bench", "report", str(tmp_path)).code == 0
    text = (tmp_path / "leaderboard.html").read_text()
    document = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))
    assert not re.search(r"https?:|<script|url\(", text)
    # bars and tasks, for two experts and one; growth of held-in and of unseen scores; tuning and its sensitivity
    assert len(list(document.iter("figure"))) == len(list(document.iter("svg"))) >= 7
    assert {"results.json", "results.parquet"} <= {path.name for path in tmp_path.iterdir()}
    rows = [re.sub(r"[*]", "", line) for line in (tmp_path / "leaderboard.md").read_text().splitlines()]
    page = {" | ".join("".join(cell.itertext()) for cell in row) for row in document.iter("tr")}
    for line in rows:
        if re.match(r"\| (\d|–|group) ", line):
            assert line.strip("| ") in page


def test_who_answers_as_the_base_is_named(tmp_path: Path) -> None:
    """A method of certain layers finds none in another kind of network; its score is the base's, not its own."""
    methods = (Contender("task_arithmetic", {"lambda": 0.0}), Contender("task_arithmetic"))
    run(Grid("linear", methods, budget=0), lambda name, seed: Track(), Store(tmp_path))
    found = boards(Store(tmp_path).results())
    assert {row.label: row.idle for row in found[0].rows} == {
        "task_arithmetic": False,
        "task_arithmetic(lambda=0.0)": True,
    }
    text = markdown("x", sections(found))
    (said,) = re.findall("as the base does.*", text)
    assert said.endswith(": task_arithmetic(lambda=0.0).")


def test_the_worst_of_the_experts_is_the_lowest_score() -> None:
    """All their shares are 1."""
    scores = {
        name: TaskScore(ACCURACY, np.arange(10) < right, np.ones(10)) for name, right in (("a", 9), ("b", 7))
    }
    found = boards([(Cell("t", "d", 0, ("a", "b"), "experts", "experts"), Scorecard("experts", scores))])
    assert found[0].references[0].worst == ("b", 0.7)


def scored(name: str, right: int, **more: Any) -> dict[str, TaskScore]:
    return {name: TaskScore(ACCURACY, np.arange(10) < right, np.ones(10), **more)}


def test_tasks_stand_in_the_tracks_order_whatever_was_scored_first() -> None:
    """Sets keep the order of the track; cells come in the order of their addresses, tasks of a card by name."""
    from cuvee.evaluate.leaderboard import _by_task

    sets = [("c", "a"), ("z", "c"), ("z", "a"), ("z", "c", "a")]
    results = []
    for tasks in sets:
        scores = {name: one for n in sorted(tasks) for name, one in scored(n, 5).items()}
        scores |= scored("b_shift", 4, unseen=True, shift_of="c") | scored(
            "d_shift", 4, unseen=True, shift_of="z"
        )
        scores |= scored("alone", 3, unseen=True)
        results.append((Cell("t", "d", 0, tasks, "average", "average"), Scorecard("average", scores)))
    for order in (results, results[::-1]):
        found = boards(order)
        assert [list(board.metrics) for board in found] == [
            ["z", "c", "a", "alone", "d_shift", "b_shift"]
        ] * 2
        chart = _by_task("x", "y", {"m": {"a": 1.0, "z": 0.5}}, found[0])
        assert list(chart.table.header[1:]) == ["z", "a"]


def test_sets_that_agree_on_no_order_are_shown_all_the_same() -> None:
    results = [
        (
            Cell("t", "d", 0, tasks, "average", "average"),
            Scorecard("average", scored("a", 5) | scored("b", 4)),
        )
        for tasks in (("a", "b"), ("b", "a"))
    ]
    assert sorted(boards(results)[0].metrics) == ["a", "b"]


def test_names_of_tasks_are_no_html() -> None:
    name = "<b>bold\\<img src=x>"
    card = Scorecard("average", scored(name, 5))
    text = markdown(name, sections(boards([(Cell("<i>t", "d", 0, (name,), "average", "average"), card)])))
    assert "&lt;b>bold" in text and "&lt;i>t" in text and not re.search(r"<[a-z]", text)


def test_a_p_value_is_never_zero() -> None:
    from cuvee.evaluate.leaderboard import probability

    shown = [probability(p) for p in (1e-300, 0.00009, 0.0001, 0.04567, 1.0, float("nan"))]
    assert shown == ["< 0.0001", "< 0.0001", "0.0001", "0.0457", "1.0000", "–"]
