"""Intervals and tests against theory, scipy and hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cuvee.evaluate.statistics import bootstrap, compare, groups, holm, rank_correlation, sign_flips
from cuvee.evaluate.units import Sample


def sample(scores: np.ndarray) -> Sample:
    return Sample(scores, np.ones(len(scores)))


def drawn(p: float, n: int, seed: int) -> Sample:
    return sample((np.random.default_rng(seed).random(n) < p).astype(float))


def test_the_interval_of_a_proportion_is_the_normal_one() -> None:
    given = drawn(0.7, 2000, 0)
    scores, found = given.scores, bootstrap([given], draws=4000)
    error = scores.std() / np.sqrt(2000)
    assert found.mean == scores.mean()
    assert found.low == pytest.approx(found.mean - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(found.mean + 1.96 * error, abs=0.1 * error)


def test_tasks_count_alike_whatever_their_size() -> None:
    small, large = sample(np.ones(10)), sample(np.zeros(1000))
    assert bootstrap([small, large]).mean == 0.5


def test_weights_make_a_weighted_mean() -> None:
    found = bootstrap([Sample(np.array([1.0, 3.0]), np.array([3.0, 1.0]))])
    assert found.mean == 1.5


def test_the_interval_covers_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        found = bootstrap([drawn(0.6, 150, seed)], draws=400, seed=seed)
        covered += found.low <= 0.6 <= found.high
    assert 180 <= covered <= 199


def test_the_paired_test_agrees_with_a_sign_test_where_items_are_right_or_wrong() -> None:
    random = np.random.default_rng(1)
    theirs = (random.random(400) < 0.7).astype(float)
    ours = np.where(random.random(400) < 0.1, 1.0, theirs)
    won, lost = int((ours > theirs).sum()), int((ours < theirs).sum())
    expected = stats.binomtest(won, won + lost).pvalue
    found = compare([sample(ours)], [sample(theirs)])
    assert found.difference.mean == pytest.approx((won - lost) / 400)
    assert found.p_value == pytest.approx(max(expected, 1e-4), rel=0.5, abs=2e-4)
    assert found.error == pytest.approx((ours - theirs).std() / np.sqrt(400))


def test_what_is_certain_survives_a_correction_for_hundreds_of_pairs() -> None:
    """Ten thousand flips show no p below 1e-4, which Holm over the pairs of 40 methods would lift above 0.05."""
    ours, theirs = np.ones(200), (np.arange(200) % 2).astype(float)
    found = compare([sample(ours)], [sample(theirs)]).p_value
    exact = stats.binomtest(100, 100).pvalue
    assert exact <= found < 1e-12
    pairs = {str(i): 0.5 for i in range(40 * 39 // 2 - 1)}
    assert holm({**pairs, "clear": found})["clear"] < 0.05


@pytest.mark.parametrize("wins", [4, 8, 12, 16, 24, 40])
def test_p_values_are_never_below_those_of_the_exact_test(wins: int) -> None:
    ours, theirs = np.zeros(100), np.zeros(100)
    ours[:wins] = 1.0
    found = sign_flips([sample(ours)], [sample(theirs)])
    assert found >= 0.7 * stats.binomtest(wins, wins).pvalue  # draws scatter around it


def test_tasks_count_as_often_as_they_stand_there() -> None:
    once, thrice = sample(np.ones(10)), sample(np.zeros(10))
    assert bootstrap([once, thrice], counts=[1, 3]).mean == 0.25
    a, b = drawn(0.7, 200, 0), drawn(0.5, 200, 1)
    spelled = compare([a, b, b], [b, a, a])
    counted = compare([a, b], [b, a], counts=[1, 2])
    assert counted.difference.mean == pytest.approx(spelled.difference.mean)
    assert counted.error > spelled.error  # the same items twice are no new evidence


def test_equal_methods_are_not_told_apart() -> None:
    one = [drawn(0.5, 300, 2)]
    assert compare(one, one).p_value == 1.0


def test_p_values_under_the_null_are_spread_evenly() -> None:
    found = []
    for seed in range(100):
        random = np.random.default_rng(seed)
        a, b = random.normal(size=80), random.normal(size=80)
        found.append(compare([sample(a)], [sample(b)], draws=300, seed=seed).p_value)
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


def test_groups_begin_where_the_best_of_the_group_is_beaten() -> None:
    apart = {("a", "b"): False, ("a", "c"): True, ("b", "c"): False, ("c", "d"): True, ("a", "d"): True}
    assert groups(["a", "b", "c", "d"], apart) == [["a", "b"], ["c"], ["d"]]


def test_rank_correlation_of_reversed_lists() -> None:
    rho, tau = rank_correlation([1, 2, 3, 4], [4, 3, 2, 1])
    assert (rho, tau) == (pytest.approx(-1), pytest.approx(-1))
