"""What scores say before a merge, against the definitions on models small enough to score by hand; and its advice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cuvee import analyze
from cuvee.analyze.probe_advice import advise_by_scores
from cuvee.analyze.probes import Probes
from cuvee.errors import EvaluationError, UsageError

TASKS = ("one", "two", "three")


def bowls() -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A base, an expert for each task, and each task's items: a score is 5 − (w·x − 1)²."""
    random = np.random.default_rng(3)
    base = random.normal(size=4)
    experts = {name: base + 0.4 * random.normal(size=4) for name in TASKS}
    return base, experts, {name: random.normal(size=(7, 4)) for name in TASKS}


def numbers(weights: np.ndarray, items: np.ndarray) -> np.ndarray:
    return 5 - (items @ weights - 1) ** 2


def measured(better: Any = "higher", *, across: bool = True) -> tuple[Probes, list[str]]:
    base, experts, items = bowls()
    asked: list[str] = []

    def score(weights: Any, task: str) -> Any:
        asked.append(task)
        return numbers(weights["w"].numpy(), items[task])

    tensors = {name: {"w": torch.from_numpy(w)} for name, w in experts.items()}
    return analyze.probe({"w": torch.from_numpy(base)}, tensors, score, better=better, across=across), asked


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_probes_are_what_scoring_by_hand_gives(better: str) -> None:
    found, asked = measured(better)
    base, experts, items = bowls()
    sign = 1 if better == "higher" else -1
    for i, name in enumerate(TASKS):
        own = numbers(experts[name], items[name]).mean()
        half = numbers((base + experts[name]) / 2, items[name]).mean()
        before = numbers(base, items[name])
        assert found.halving[i] == pytest.approx(sign * (own - half) / abs(own))
        assert found.gain[i] == pytest.approx(sign * (own - before.mean()) / abs(own))
        assert found.disturbance is not None
        for j, other in enumerate(TASKS):
            moved = np.abs(numbers(experts[other], items[name]) - before).mean()
            assert found.disturbance[i, j] == pytest.approx(moved)
    assert len(asked) == 3 + 3 + 9  # base, halves on their own tasks, experts on all
    pairs = found.figures_of_pairs()
    assert pairs["strength lost by halving"][0, 2] == pytest.approx((found.halving[0] + found.halving[2]) / 2)
    disturbed = pairs["disturbance of each other's task"]
    assert disturbed[0, 1] == disturbed[1, 0] == pytest.approx(found.disturbance[[0, 1], [1, 0]].mean())
    alone, asked = measured(better, across=False)
    assert alone.halving.tolist() == found.halving.tolist() and alone.disturbance is None
    assert len(asked) == 9 and "disturbance of each other's task" not in alone.figures_of_pairs()
    assert found.as_json()["tasks"] == list(TASKS) and len(found.as_json()["disturbance"]) == 3


def test_the_error_of_halving_is_that_of_drawing_items_anew() -> None:
    random = np.random.default_rng(5)
    drawn = {0.0: random.random(500), 0.5: (random.random(500) < 0.8) * 1.0, 1.0: np.ones(500)}
    drawn[1.0][random.choice(500, 60, replace=False)] = 0

    def score(weights: Any, task: str) -> Any:
        return drawn[float(weights["w"])]

    found = analyze.probe({"w": torch.tensor(0.0)}, {"a": {"w": torch.tensor(1.0)}}, score)
    places = random.integers(0, 500, (4000, 500))
    halvings = 1 - drawn[0.5][places].mean(1) / drawn[1.0][places].mean(1)
    bends = halvings - (1 - drawn[0.0][places].mean(1) / drawn[1.0][places].mean(1)) / 2
    assert found.halving_error is not None and found.bend_error is not None
    assert found.bend_error[0] == pytest.approx(bends.std(), rel=0.08)
    assert found.halving_error[0] == pytest.approx(halvings.std(), rel=0.08)
    assert found.told_halvings() == [f"{found.halving[0]:.1%} ± {100 * found.halving_error[0]:.1f}"]
    one = analyze.probe({"w": torch.tensor(0.0)}, {"a": {"w": torch.tensor(1.0)}}, lambda *_: [1.0])
    assert one.told_halvings() == ["0.0%"]
    assert one.as_json()["halving_error"] == one.as_json()["bend_error"] == [None]


def test_scores_that_say_nothing_are_refused() -> None:
    w = {"w": torch.zeros(2)}
    with pytest.raises(UsageError, match="at least one expert"):
        analyze.probe(w, {}, lambda weights, task: [1.0])
    counts = iter([2, 3])
    for score in (lambda *_: [np.nan], lambda *_: [], lambda *_: np.ones(next(counts))):
        with pytest.raises(EvaluationError, match="scores on `a`") as caught:
            analyze.probe(w, {"a": w}, score)
        assert caught.value.diagnostics[0].code == "CV-B232"


def probes(base: list[float], halved: list[float]) -> Probes:
    """Experts that all score 0.8 on their own task."""
    n = len(base)
    return Probes(
        tuple("abcdef"[:n]),
        ("higher",) * n,
        np.array(base),
        np.full(n, 0.8),
        np.array(halved),
        np.zeros((n, n)),
    )


def test_experts_whose_halving_is_hardly_known_are_not_named() -> None:
    weak = probes([0.6, 0.6], [0.69, 0.71])
    assert advise_by_scores(replace(weak, bend_error=np.array([0.01, 0.01])))
    for unknown in (0.02, np.nan):
        assert advise_by_scores(replace(weak, bend_error=np.array([unknown, 0.01]))) == ()


def test_experts_that_lose_most_of_their_gain_at_half_are_named() -> None:
    linear = probes([0.6, 0.6], [0.701, 0.71])
    assert advise_by_scores(linear) == ()
    (said,) = advise_by_scores(probes([0.6, 0.6], [0.69, 0.71]))
    assert (said.rule, said.kind, said.methods, said.avoid) == (
        "weak_at_half",
        "suggest",
        ("task_arithmetic",),
        (),
    )
    assert "`a` 13.8%" in said.reason and "`b`" not in said.reason


def test_an_expert_without_a_gain_is_left_out_and_one_alone_is_not_merged() -> None:
    (said,) = advise_by_scores(probes([0.8, 0.6, 0.6], [0.5, 0.75, 0.75]))
    assert (said.rule, said.kind) == ("gains_nothing", "warn") and "`a`" in said.text
    found = advise_by_scores(probes([0.8, 0.9, 0.6], [0.5, 0.75, 0.75]))
    assert [one.rule for one in found] == ["nothing_to_merge", "gains_nothing", "gains_nothing"]
    assert found[0].kind == "stop" and "1 of 3" in found[0].reason
