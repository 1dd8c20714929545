"""Confidence beside accuracy: the error by its definition, what is kept of it, and what the report says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from linear_track import WEIGHT, Linear, Track

from cuvee.errors import EvaluationError
from cuvee.evaluate.bench import run
from cuvee.evaluate.cells import Grid, Store
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.ledger import Ledger
from cuvee.evaluate.pages import markdown
from cuvee.evaluate.referee import Referee
from cuvee.evaluate.report import sections
from cuvee.evaluate.scorecard import Scorecard
from cuvee.evaluate.statistics import calibration_error
from cuvee.evaluate.task import BITS_PER_BYTE, Item, Metric, Task
from cuvee.evaluate.track import Answers
from cuvee.evaluate.tracks.heads import classified


class Sure(Linear):
    """Answers with the logistic of the margin."""

    def classify(self, task: Task, asked: Sequence[Item], ledger: Ledger) -> Answers:
        margins = torch.stack([torch.from_numpy(i.input) for i in asked]) @ self.weight
        return Answers(self.answer(task, asked, ledger), margins.abs().sigmoid().numpy())


class SureTrack(Track):
    def examinee(self) -> Sure:
        return Sure()


def by_definition(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    total = 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        inside = [(c, r) for c, r in zip(confidence, right, strict=True) if low < c <= high or (b == 0 == c)]
        if inside:
            gap = abs(sum(r for _, r in inside) / len(inside) - sum(c for c, _ in inside) / len(inside))
            total += len(inside) / len(right) * gap
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_the_error_is_that_of_its_definition(bins: int) -> None:
    draw = np.random.default_rng(bins)
    confidence, right = draw.random(500), 1.0 * (draw.random(500) < 0.7)
    confidence[:3] = (0.0, 1.0, 1 / 3)
    assert calibration_error(confidence, right, bins) == pytest.approx(by_definition(confidence, right, bins))


def test_who_is_right_as_often_as_it_says_is_calibrated_and_who_boasts_is_not() -> None:
    draw = np.random.default_rng(0)
    confidence = draw.random(40_000)
    right = 1.0 * (draw.random(40_000) < confidence)
    assert calibration_error(confidence, right) < 0.02
    assert calibration_error(np.ones(4), np.array([1.0, 1.0, 0.0, 0.0])) == 0.5
    edges = calibration_error(np.array([0.5, 0.9]), np.array([0.0, 1.0]), bins=2)
    assert edges == pytest.approx((0.5 + 0.1) / 2), "a bin holds its upper end"
    assert np.isnan(calibration_error(np.zeros(0), np.zeros(0)))


def test_a_classifiers_confidence_is_the_softmax_of_what_it_said() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    found = classified(logits, torch.tensor([0, 1]))
    assert found.scores.tolist() == [1.0, 0.0]
    assert found.confidence == pytest.approx([np.exp(2) / (np.exp(2) + 2), np.e / (np.e + 2)])


def test_confidence_is_kept_with_the_items_and_survives_json() -> None:
    card = Referee(SureTrack()).score(Track().expert("a"), "a")
    assert card.mean() == Referee(Track()).score(Track().expert("a"), "a").mean()
    again = Scorecard.from_json(card.as_json()).tasks["b"].confidence
    assert again is not None and again == pytest.approx(card.tasks["b"].confidence, abs=1e-4)
    silent = Referee(Track()).score(Track().expert("a"), "a")
    assert silent.tasks["a"].confidence is None and "confidence" not in silent.as_json()["tasks"]["a"]
    graded = Referee(type("Graded", (SureTrack,), {})(BITS_PER_BYTE)).score(Track().expert("a"), "a")
    assert graded.tasks["a"].confidence is None, "bits have no confidence"


def test_accuracy_is_accuracy_however_well_guessing_does() -> None:
    track = type("Guessed", (SureTrack,), {})(Metric("accuracy", unit="%", chance=0.5))
    found = Referee(track).score(track.expert("a"), "a").tasks["a"]
    assert found.confidence is not None and found.confidence.min() >= 0.5


@pytest.mark.parametrize("told", [lambda sure: 10 * sure, lambda sure: sure[:-1], lambda sure: sure - 1])
def test_what_is_no_probability_of_each_item_is_refused(told: Callable[[Any], Any]) -> None:
    class Boasts(Sure):
        def classify(self, task: Task, asked: Sequence[Item], ledger: Ledger) -> Answers:
            found = super().classify(task, asked, ledger)
            return Answers(found.scores, told(found.confidence))

    with pytest.raises(EvaluationError, match="confidence on `a`") as caught:
        Referee(Track(), examinee=Boasts()).score(Track().expert("a"), "a")
    assert caught.value.diagnostics[0].code == "CV-B005"


def test_weights_without_a_number_are_not_sure_of_anything() -> None:
    card = Referee(SureTrack()).score({WEIGHT: torch.full((8,), float("nan"))}, "nan")
    assert card.tasks["a"].confidence is not None and not card.tasks["a"].confidence.any()


def test_the_report_shows_errors_of_all_who_told_their_confidence(tmp_path: Path) -> None:
    def opened(name: str, seed: int) -> Any:
        return SureTrack()

    run(Grid("linear", (Contender("average"),), budget=0), opened, Store(tmp_path))
    results = Store(tmp_path).results()
    part = markdown("x", sections(results)).split("## Calibration: linear, 2 experts")[1]
    row = next(line for line in part.splitlines() if line.startswith("| average |"))
    score = {c.method: card for c, card in results}["average"].tasks
    errors = [by_definition(score[n].confidence, score[n].scores, 15) for n in "ab"]  # type: ignore[arg-type]
    gaps = [score[n].confidence.mean() - score[n].mean for n in "ab"]  # type: ignore[union-attr]
    assert row == f"| average | {50 * sum(errors):.1f} | {50 * sum(gaps):.1f} | – | – |"
    run(Grid("linear", (Contender("average"),), budget=0), lambda n, s: Track(), Store(tmp_path / "silent"))
    assert "Calibration" not in markdown("x", sections(Store(tmp_path / "silent").results()))
