"""Reports: growth with experts, tuning curves, untuned beside tuned; results as JSON and Parquet; time that is left."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from linear_track import Track, items

from cuvee.charts import Chart
from cuvee.errors import EvaluationError
from cuvee.evaluate import bench, phases
from cuvee.evaluate.bench import Done, run
from cuvee.evaluate.cells import Cell, Grid, Store
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.export import as_json, as_parquet, rows
from cuvee.evaluate.pages import Section, html, markdown
from cuvee.evaluate.paired import common_mean
from cuvee.evaluate.referee import Referee
from cuvee.evaluate.report import curve, report, sections
from cuvee.evaluate.scorecard import Scorecard, TaskScore
from cuvee.evaluate.table import _gain, _interval, boards
from cuvee.evaluate.task import ACCURACY, BITS_PER_BYTE, Metric, Provenance, Task

METHODS = (Contender("average"), Contender("task_arithmetic"), Contender("ties"))
GRID = Grid("linear", METHODS, counts=(2, 1), budget=4, untuned=True)


class Shifted(Track):
    """The linear track with its first task under noise."""

    def __init__(self) -> None:
        super().__init__()
        noisy = self.truth["a"] + 0.5 * torch.randn(8, generator=torch.Generator().manual_seed(9))
        self.tasks["a noisy"] = Task.of(
            "a noisy",
            train=(),
            selection=(),
            test=items(noisy, 100, 20),
            metric=ACCURACY,
            head="none",
            provenance=Provenance("made here"),
            shift_of="a",
        )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("bench"))
    assert run(GRID, lambda name, seed: Shifted(), store) == 0
    return store


@pytest.fixture(scope="module")
def found(store: Store) -> list[Section]:
    return sections(store.results())


def part(found: list[Section], title: str) -> Section:
    return next(s for s in found if s.title.startswith(title))


def test_shifts_are_scored_where_their_task_is_and_never_tuned_on(store: Store) -> None:
    for cell, card in store.results():
        assert ("a noisy" in card.tasks) == ("a" in cell.tasks)
        assert card.shifted() == (["a noisy"] if "a" in cell.tasks else [])
        assert "a noisy" not in card.held_in() and "a noisy" not in card.foreign()
    both = boards(store.results())[0]
    experts = next(r for r in both.references if r.label == "experts")
    track = Shifted()
    examinee = track.examinee()
    examinee.load(track.expert("a"))
    with phases.scoring():
        noisy = list(track.tasks["a noisy"].test)
    right = [int(torch.from_numpy(i.input) @ track.truth["a"] > 0) == i.target for i in noisy]
    assert experts.shifted == pytest.approx(np.mean(right))


def test_shifted_tasks_cannot_be_merged_for() -> None:
    with pytest.raises(EvaluationError, match="no expert for `a noisy`"):
        Referee(Shifted(), ["a noisy"])


def test_growth_shows_each_method_at_each_count(store: Store, found: list[Section]) -> None:
    section = part(found, "Growth")
    charts = [p for p in section.parts if isinstance(p, Chart)]
    assert [c.title.split(" by")[0] for c in charts] == ["Normalised score", "Unseen tasks", "Shifted data"]
    table = charts[0].table
    single, pair = boards(store.results())[::-1]
    column = list(table.header).index("ties (budget 4)")
    want = [next(r.normalised for r in b.rows if r.label == "ties (budget 4)") for b in (single, pair)]
    assert [row[column] for row in table.rows] == pytest.approx([100 * w for w in want])


def test_sensitivity_shows_every_value_that_was_tried_the_default_too(
    store: Store, found: list[Section]
) -> None:
    charts = [p for p in part(found, "What tuning buys").parts if isinstance(p, Chart)]
    chart = next(c for c in charts if c.title == "task_arithmetic (budget 4): sensitivity to lambda")
    assert len(chart.table.rows) == 4 and "1" in [row[0] for row in chart.table.rows]


def test_unseen_and_shifted_tasks_stand_one_by_one(found: list[Section]) -> None:
    charts = [p for s in found for p in s.parts if isinstance(p, Chart) and p.title.startswith("Unseen and")]
    assert list(charts[0].table.header) == ["method", "c", "a noisy"]
    by_row = {row[0]: row[1:] for row in charts[0].table.rows}
    assert math.isnan(by_row["experts"][0]) and all(0 < x < 100 for x in by_row["ties (untuned)"])


def test_tuning_curves_are_the_best_so_far(store: Store, found: list[Section]) -> None:
    assert curve([0.2, 0.1, 0.5, 0.3]) == [0.2, 0.2, 0.5, 0.5]
    section = part(found, "What tuning buys")
    chart = section.parts[0]
    assert isinstance(chart, Chart)
    column = list(chart.table.header).index("ties (budget 4)")
    shown = [row[column] for row in chart.table.rows]
    log = next(
        card.log
        for cell, card in store.results()
        if cell.label == "ties" and cell.budget and len(cell.tasks) == 2
    )
    assert shown == pytest.approx([100 * v for v in curve([v for _, v in log])])
    assert len(shown) == 4


def test_untuned_stands_beside_tuned_with_a_test(store: Store, found: list[Section]) -> None:
    section = part(found, "Untuned defaults")
    table: Any = section.parts[1]
    assert {row[0] for row in table.rows} == {
        f"{m} (budget 4)" for m in ("average", "task_arithmetic", "ties")
    }
    same = next(row for row in table.rows if row[0].startswith("average"))
    assert same[1] == same[2] and same[3].startswith("+0.00")  # an average has nothing to tune


def test_costs_are_counted_and_shown(store: Store, found: list[Section]) -> None:
    tuned = next(
        card
        for cell, card in store.results()
        if cell.label == "ties" and cell.budget and len(cell.tasks) == 2
    )
    assert (tuned.spent.evaluations, tuned.spent.merges, tuned.spent.examples) == (4, 4, 4 * 2 * 40)
    assert tuned.spent.bytes_read == 3 * 8 * 4  # base and two experts of eight float32
    assert tuned.spent.peak_bytes > 0
    text = markdown("x", found)
    assert "| method | evaluations | merges | examples | forward | backward | TFLOP | bytes |" in text


def test_lower_is_better_turns_forgetting_and_mixed_units_have_no_mean() -> None:
    ones = np.ones(4)
    low = TaskScore(BITS_PER_BYTE, 1.0 * ones, ones, unseen=True)
    high = TaskScore(BITS_PER_BYTE, 2.0 * ones, ones, unseen=True)
    assert _gain(Scorecard("m", {"u": low}), Scorecard("b", {"u": high}), ["u"]) == 1.0
    held = dataclasses.replace(low, unseen=False)
    mixed = Scorecard("m", {"a": held, "b": TaskScore(ACCURACY, ones, ones)})
    assert math.isnan(common_mean(mixed, ["a", "b"])) and math.isnan(_interval([mixed]).mean)


def test_tasks_of_other_chance_have_a_mean() -> None:
    """A task of ten classes and one of two are both accuracies."""
    few, many = (Metric("accuracy", unit="%", chance=chance) for chance in (0.5, 0.1))
    ones, half = np.ones(4), np.array([1.0, 0.0, 1.0, 0.0])
    card = Scorecard("m", {"a": TaskScore(few, ones, ones), "b": TaskScore(many, half, ones)})
    assert common_mean(card, ["a", "b"]) == 0.75
    assert _interval([card]).mean == 0.75


def test_both_forms_hold_every_section(found: list[Section]) -> None:
    text, page = markdown("Leaderboard", found), html("Leaderboard", found)
    for section in found:
        assert section.title in text and section.title in page
    assert page.count("<figure") == page.count("<svg") == page.count("<details")


def test_a_notebook_shows_the_report_by_itself(store: Store, found: list[Section]) -> None:
    shown = report(store.folder)
    assert shown.html() == html("Leaderboard", found)
    assert shown._repr_html_().startswith("<div") and shown._repr_html_().count("<svg") == shown.html().count(
        "<svg"
    )


def test_a_mean_can_be_made_again_from_the_rows() -> None:
    weighed = TaskScore(ACCURACY, np.array([1.0, 0.0]), np.array([3.0, 1.0]))
    cell = Cell("t", "d", 0, ("a",), "ties", "ties")
    (row,) = rows([(cell, Scorecard("ties", {"a": weighed}))])
    assert row["mean"] == 0.75 == np.average(row["scores"], weights=row["weights"])


def test_results_as_json_and_parquet_hold_the_same_rows(store: Store) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    plain = json.loads(as_json(store))
    table = parquet.read_table(io.BytesIO(as_parquet(store)))
    assert plain["schema"] == "cuvee.bench.results/1"
    short = [
        {k: v for k, v in row.items() if k not in ("scores", "units", "weights")} for row in table.to_pylist()
    ]
    assert short == plain["rows"]
    assert all(len(set(row["units"])) == row["groups"] for row in table.to_pylist())
    assert len(plain["rows"]) == sum(len(card.tasks) for _, card in store.results())
    kept = {path.stem for path in store.cells().iterdir()}
    assert {row["address"] for row in plain["rows"]} == kept, (
        "also of methods that were tuned in several ways"
    )
    assert {address for made in plain["made_with"] for address in made["cells"]} == kept
    for row in rows(store.results()):
        assert row["mean"] == pytest.approx(np.mean(row["scores"])) and len(row["scores"]) == row["items"]
    manifest = json.loads(table.schema.metadata[b"cuvee"])
    assert manifest["tracks"][0]["tasks"]["a"]["items"] == [20, 40, 200]
    made = plain["made_with"]
    assert {"cuvee", "torch", "python", "threads", "processor"} <= set(made[0])
    assert sorted(a for m in made for a in m["cells"]) == sorted(c.address for c, _ in store.results())


def test_manifests_name_no_host_and_no_folder(store: Store) -> None:
    import platform

    text = as_json(store).decode()
    assert platform.node() not in text or len(platform.node()) < 4
    assert str(Path.home()) not in text and str(store.folder) not in text


def test_the_time_left_follows_the_work_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(x * 5.0 for x in range(1000))  # every cell takes five seconds
    told: list[Done] = []

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return next(clock)

    monkeypatch.setattr(bench, "time", Clock)
    run(Grid("linear", METHODS[:1], budget=0), lambda n, s: Track(), Store(tmp_path), told.append)
    assert [d.left for d in told] == pytest.approx([10.0, 5.0, 0.0])  # base, experts, average: two tasks each


def test_the_time_left_forgets_what_experts_took_to_be_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Done] = []
    seconds = iter([5.0, 500.0, 5.0, 7.0])  # base, experts (trained meanwhile), two methods
    scored = bench._one
    monkeypatch.setattr(
        bench, "_one", lambda *given: dataclasses.replace(scored(*given), seconds=next(seconds))
    )
    run(Grid("linear", METHODS[:2], budget=0), lambda n, s: Track(), Store(tmp_path), told.append)
    assert [d.left for d in told] == pytest.approx([15.0, 10.0, 5.0, 0.0])


def test_references_are_scored_once_for_all_sets(tmp_path: Path) -> None:
    track = Track()
    live = track.examinee()
    track.examinee = lambda: live  # type: ignore[method-assign]
    grid = Grid("linear", (), counts=(2, 1), budget=0, references=("base",), unseen=False)
    run(grid, lambda n, s: track, Store(tmp_path))
    assert len(Store(tmp_path).results()) == 3
    assert live.loaded == 2  # one answer for each task, not one for each set


def test_rows_of_reconstructed_methods_say_so() -> None:
    from cuvee.evaluate.leaderboard import marked

    assert marked("stf (budget 5)") == "stf (budget 5), reconstructed"
    assert [marked(label) for label in ("ties (untuned)", "base", "my own")] == [
        "ties (untuned)",
        "base",
        "my own",
    ]
