"""Studies end in reports; the validation of a forecast finds what was planted and nothing where nothing is."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from linear_track import WEIGHT, Track, items

from cuvee.cli.commands import bench_study
from cuvee.errors import EvaluationError, UsageError
from cuvee.evaluate.bench import run
from cuvee.evaluate.cells import Cell, Grid, Store, is_reference
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.pages import html, markdown
from cuvee.evaluate.scorecard import Scorecard, TaskScore
from cuvee.evaluate.studies import mergeability
from cuvee.evaluate.studies.catalogue import STUDIES, study
from cuvee.evaluate.studies.study import on, perform, report
from cuvee.evaluate.task import ACCURACY, Provenance, Task
from cuvee.methods import registry

NAMES = [f"t{i}" for i in range(6)]


class Six(Track):
    """A linear track of six experts."""

    def __init__(self) -> None:
        super().__init__()
        self.truth = {
            n: torch.randn(8, generator=torch.Generator().manual_seed(i)) for i, n in enumerate(NAMES)
        }
        self.tasks = {
            n: Task.of(
                n,
                train=(),
                selection=items(w, 20, 11),
                test=items(w, 60, 12),
                metric=ACCURACY,
                head="none",
                provenance=Provenance("made here"),
                unseen=n == NAMES[-1],
            )
            for n, w in self.truth.items()
        }


@pytest.mark.parametrize("name", [n for n in STUDIES if n != "multilingual"])
def test_every_study_ends_in_a_report_with_figures(name: str, tmp_path: Path) -> None:
    asked = on(study(name), "linear", 3, 1)
    asked = replace(asked, counts=asked.counts[:1] + asked.counts[-1:], methods=asked.methods[:3])
    assert perform(asked, lambda n, s: Six(), Store(tmp_path)) == 0
    results = Store(tmp_path).results()
    parts = report(asked, results)
    added = Contender("lines")
    text, page = markdown(asked.title, parts), html(asked.title, parts)
    assert asked.source in text and all(q in text for q in asked.questions)
    assert "not scored here" not in text
    assert "not scored here: lines." in markdown("x", report(replace(asked, methods=(added,)), results))
    assert page.count("<figure") >= 2
    scored = {cell.method for cell, _ in results if not is_reference(cell.label)}
    assert ("expert t0" in {cell.method for cell, _ in results}) == asked.transfer
    assert scored == {
        c.method for c in asked.available() if len(NAMES) - 1 >= registry.get(c.method).inputs[0]
    }
    again: list[Any] = []
    perform(asked, lambda n, s: Six(), Store(tmp_path), tell=again.append)
    assert {d.state for d in again} == {"kept"}


def test_a_study_of_certain_tasks_needs_them(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="german") as caught:
        perform(on(study("multilingual"), "linear", 0, 1), lambda n, s: Six(), Store(tmp_path))
    assert caught.value.diagnostics[0].code == "CV-B314"
    some = on(study("multilingual"), "linear", 0, 1)
    some = replace(some, tasks=("t1", "t3", "x"))
    perform(some, lambda n, s: Six(), Store(tmp_path))
    assert {t for cell, _ in Store(tmp_path).results() for t in cell.tasks} == {"t1", "t3"}


def test_unknown_studies_are_named() -> None:
    with pytest.raises(UsageError, match="no study `scales`"):
        study("scales")


def planted(pairs: np.ndarray, noise: float) -> list[tuple[Cell, Scorecard]]:
    """Cells whose loss is the mean of a figure over the set's pairs, with noise."""
    random = np.random.default_rng(0)
    ones = np.ones(1)
    out = []
    for tasks in itertools.combinations(range(6), 2):
        names = tuple(NAMES[t] for t in tasks)
        loss = float(pairs[tasks]) + noise * random.standard_normal()
        for method, score in (("experts", 1.0), ("average", 1 - loss)):
            card = Scorecard(method, {n: TaskScore(ACCURACY, score * ones, ones) for n in names})
            out.append((Cell("x", "d", 0, names, method, method), card))
    return out


def test_a_planted_forecast_is_found_and_another_is_not() -> None:
    random = np.random.default_rng(1)
    true, other = (m + m.T for m in random.random((2, 6, 6)) / 8)
    found = mergeability.validate(NAMES, {"true": true, "other": other}, planted(true, 0.0))
    by_name = {v.figure: v for v in found}
    assert by_name["true"].spearman.mean == pytest.approx(1.0) and by_name["true"].sets == 15
    assert by_name["true"].p_value < 0.01 < 0.05 < by_name["other"].p_value
    assert by_name["other"].spearman.low < by_name["other"].spearman.high < 1.0
    noisy = mergeability.validate(NAMES, {"true": true}, planted(true, 0.05))[0]
    assert 0.3 < noisy.spearman.mean < 1.0


def test_a_pair_without_a_figure_is_no_tie() -> None:
    draw = np.random.default_rng(3).random((6, 6)) / 8
    holed = draw + draw.T
    holed[0, 1] = holed[1, 0] = np.nan
    found = mergeability.validate(NAMES, {"holed": holed}, planted(draw + draw.T, 0.0))[0]
    assert all(np.isnan(v) for v in (found.spearman.mean, found.kendall.mean, found.p_value, found.adjusted))
    some = [result for result in planted(draw + draw.T, 0.0) if result[0].tasks != tuple(NAMES[:2])]
    kept = mergeability.validate(NAMES, {"holed": holed}, some)[0]
    assert kept.spearman.mean == pytest.approx(1)
    assert kept.p_value > 1 / 200  # exchanges that bring the hole in, most of them, are none


def left(values: np.ndarray, sets: list[tuple[int, int]]) -> np.ndarray:
    """What a regression on one indicator for each expert leaves."""
    design = np.array([[float(i in members) for i in range(6)] for members in sets])
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


def test_what_concerns_the_combination_is_told_from_what_experts_bring_along() -> None:
    random = np.random.default_rng(2)
    own, together = random.random(6) / 4, random.random((6, 6)) / 20
    together += together.T
    pairs = np.add.outer(own, own) + together
    figures = {"own": np.add.outer(own, own), "together": together, "both": pairs}
    found = {v.figure: v for v in mergeability.validate(NAMES, figures, planted(pairs, 0.0))}
    assert found["own"].spearman.mean > 0.8 and found["own"].p_value < 0.05
    assert np.isnan(found["own"].apart) and np.isnan(found["own"].apart_p_value)
    assert found["together"].apart == found["both"].apart == pytest.approx(1.0)
    assert found["together"].apart_p_value < 0.01
    sets = list(itertools.combinations(range(6), 2))
    other = random.random((6, 6))
    noisy = mergeability.validate(NAMES, {"other": other + other.T}, planted(pairs, 0.02))[0]
    lost = np.array(list(mergeability.losses(planted(pairs, 0.02), "average", 2).values()))
    expected = np.array([(other + other.T)[at] for at in sets])
    ranks = [np.argsort(np.argsort(left(v, sets))) for v in (expected, lost)]
    assert noisy.apart == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert noisy.adjusted == noisy.p_value


def test_chance_reaches_what_is_called_critical_one_time_in_twenty_and_p_values_are_corrected() -> None:
    random = np.random.default_rng(5)
    figures = {str(k): (lambda m: m + m.T)(random.random((6, 6))) for k in range(20)}
    found = mergeability.validate(NAMES, figures, planted(figures["0"] / 20, 0.0))
    for one in found:
        assert (abs(one.spearman.mean) >= one.critical) == (one.p_value <= 0.05) or abs(
            one.p_value - 0.05
        ) < 0.01
        assert one.adjusted >= one.p_value and 0.3 < one.critical < 0.8
    assert found[0].adjusted == pytest.approx(20 * found[0].p_value)


def test_a_tracks_selection_items_are_scored() -> None:
    track = Six()
    score = mergeability.item_scores(track)
    found = score(track.expert("t1"), "t1")
    assert found.shape == (20,) and found.mean() == 1
    inputs = np.array([item.input for item in track.tasks["t1"].selection])
    right = [item.target for item in track.tasks["t1"].selection]
    assert score(track.expert("t2"), "t1").tolist() == [
        float((x @ track.truth["t2"].numpy() > 0) == y) for x, y in zip(inputs, right, strict=True)
    ]


def test_too_few_sets_for_a_correlation_are_said() -> None:
    results = [r for r in planted(np.full((6, 6), 0.25), 0.0) if r[0].tasks in {("t0", "t1"), ("t0", "t2")}]
    text = markdown("x", mergeability.sections(NAMES, {"true": np.eye(6)}, results))
    assert "four sets or more" in text and "Spearman" not in text


def test_losses_are_one_minus_the_normalised_score() -> None:
    pairs = np.full((6, 6), 0.25)
    found = mergeability.losses(planted(pairs, 0.0), "average", 2)
    assert len(found) == 15 and set(found.values()) == {0.25}
    assert mergeability.forecast(np.arange(36.0).reshape(6, 6), [0, 1, 2]) == pytest.approx(
        np.mean([1, 2, 8])
    )


def test_sets_that_not_every_seed_has_are_left_out() -> None:
    draw = np.random.default_rng(3).random((6, 6))
    first = planted(draw + draw.T, 0.0)
    (least, *others) = sorted({cell.tasks for cell, _ in first})
    second = [(replace(cell, seed=1), card) for cell, card in first if cell.tasks != least]
    both = mergeability.losses([*first, *second], "average", 2)
    once = mergeability.losses(first, "average", 2)
    assert set(both) == set(others) and least in once
    assert all(both[tasks] == pytest.approx(once[tasks]) for tasks in both)


def test_the_command_runs_lists_and_reports(
    tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cuvee.evaluate.tracks.registry.open_track", lambda n, s: Six())
    listed = cli("bench", "study")
    assert listed.code == 0 and {"scale", "realistic", "mergeability"} <= {
        line.split()[0] for line in listed.out.splitlines()[1:]
    }
    done = cli(
        "bench", "study", "mergeability", "--track", "linear", "--subsets", "6", "-o", str(tmp_path), "-q"
    )
    assert done.code == 0
    text = (tmp_path / "study-mergeability.md").read_text()
    assert "opposition" in text and "Mantel" in text and text.count("| 2 | average | 6 |") == 8
    assert "strength lost by halving" in text
    assert (tmp_path / "study-mergeability.html").read_text().count("<svg") == 4
    assert "CV-U314" in cli("bench", "study", "scale").err
    assert WEIGHT not in done.err


def test_experts_of_several_seeds_are_forecast_by_the_mean_of_their_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handed: dict[str, Any] = {}

    def kept(names: Any, figures: dict[str, Any], results: Any) -> list[Any]:
        handed.update(figures)
        return []

    monkeypatch.setattr(mergeability, "sections", kept)
    tracks = [Six(), Six()]
    tracks[1].expert = lambda name: {k: 3 * t for k, t in Six().expert(name).items()}  # type: ignore[method-assign]
    bench_study._forecasts([], tracks)
    both = dict(handed)
    each = [bench_study._forecasts([], [track]) or dict(handed) for track in tracks]
    assert not np.allclose(each[0]["sum of norms"], each[1]["sum of norms"])
    for figure, values in both.items():
        np.testing.assert_allclose(values, (each[0][figure] + each[1][figure]) / 2)


def test_a_study_in_a_folder_of_other_results_reports_what_was_asked(
    tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cuvee.evaluate.tracks.registry.open_track", lambda n, s: Six())
    run(
        Grid("linear", (Contender("tsv_m"), Contender("average")), (3,), budget=0),
        lambda n, s: Six(),
        Store(tmp_path),
    )
    asked = [
        "bench",
        "study",
        "scale",
        "--track",
        "linear",
        "--budget",
        "2",
        "--subsets",
        "1",
        "-o",
        str(tmp_path),
    ]
    done = cli(*asked, "--count", "2", "--count", "0", "--no-untuned")
    assert done.code == 0 and "(untuned)" not in done.out
    assert [count for count in (5, 3, 2) if f"## linear, {count} experts" in done.out] == [5, 2]
