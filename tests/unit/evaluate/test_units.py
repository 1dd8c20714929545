"""Groups of items as the unit of intervals and tests, against enumeration by hand and simulated data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from cuvee.evaluate.statistics import bootstrap, compare, sign_flips
from cuvee.evaluate.units import Sample, blocks, number_of


def ones(scores: list[float], units: list[int] | None = None) -> Sample:
    found = np.array(scores)
    return Sample(found, np.ones(len(found)), None if units is None else np.array(units))


SIZES = [1, 4, 2, 7, 3]  # of groups
MEANS = [0.2, 0.9, 0.4, 0.7, 0.1]


def uneven(seed: int = 0) -> Sample:
    """Groups of several sizes, their items in a mixed order and of unequal weights."""
    random = np.random.default_rng(seed)
    units = random.permutation(np.repeat(np.arange(len(SIZES)) + 10, SIZES))
    scores = np.array(MEANS)[units - 10] + random.normal(0, 0.05, len(units))
    return Sample(scores, random.uniform(0.5, 2.0, len(units)), units)


def enumerated(sample: Sample) -> np.ndarray:
    """The weighted mean of every way to draw as many groups with replacement, computed one by one."""
    assert sample.units is not None
    names = sorted(set(sample.units.tolist()))
    out = []
    for picked in itertools.product(names, repeat=len(names)):
        over = under = 0.0
        for name in picked:
            for score, weight, unit in zip(sample.scores, sample.weights, sample.units, strict=True):
                if unit == name:
                    over, under = over + float(score * weight), under + float(weight)
        out.append(over / under)
    return np.array(out)


def expanded(sample: Sample, level: float) -> float:
    """The share of draws below the interval, by its definition."""
    assert sample.units is not None
    of = np.array([sample.weights[sample.units == name].sum() for name in set(sample.units.tolist())])
    size = of.sum() ** 2 / (of**2).sum()
    return float(stats.norm.cdf(-np.sqrt(size / (size - 1)) * stats.t.ppf((1 + level) / 2, size - 1)))


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_the_interval_is_that_of_all_ways_to_draw_the_groups(level: float) -> None:
    given = uneven()
    every, tail = enumerated(given), expanded(given, level)
    found = bootstrap([given], draws=60_000, level=level)
    assert found.mean == pytest.approx(np.average(given.scores, weights=given.weights), rel=1e-12)
    step = 1e-6  # ends may lie on one of the draws
    for end, share in ((found.low, tail), (found.high, 1 - tail)):
        assert np.mean(every < end - step) - 0.006 <= share <= np.mean(every <= end + step) + 0.006
    assert tail < (1 - level) / 2, "so few groups ask for more than the percentiles"


def test_the_paired_test_flips_whole_groups_as_every_way_to_flip_them_does() -> None:
    random = np.random.default_rng(3)
    units = np.repeat(np.arange(9), [1, 5, 2, 2, 3, 1, 4, 2, 6])
    ours, theirs = random.normal(0.3, 1, len(units)), random.normal(0, 1, len(units))
    weights = random.uniform(0.5, 2, len(units))
    added = [float(((ours - theirs) * weights)[units == name].sum() / weights.sum()) for name in range(9)]
    flipped = [abs(float(np.dot(signs, added))) for signs in itertools.product((-1, 1), repeat=9)]
    exact = float(np.mean(np.array(flipped) >= abs(sum(added)) - 1e-12))
    found = sign_flips([Sample(ours, weights, units)], [Sample(theirs, weights, units)], draws=20_000)
    single = sign_flips([Sample(ours, weights)], [Sample(theirs, weights)], draws=20_000)
    assert found == pytest.approx(exact, rel=0.25)
    assert abs(np.log(found / single)) > 0.4, "the case does not tell groups from items"


def test_a_group_stated_as_items_of_one_number_is_one_item() -> None:
    """Copies of an item are no evidence: a picture drawn ten times says what it says once."""
    random = np.random.default_rng(0)
    a, b = random.normal(0.2, 1, 30), random.normal(0, 1, 30)
    ten, units = np.repeat(np.arange(30), 10), np.repeat(np.arange(30), 10)
    once = compare([ones(list(a))], [ones(list(b))])
    copied = compare([ones(list(a[ten]), list(units))], [ones(list(b[ten]), list(units))])
    fooled = compare([ones(list(a[ten]))], [ones(list(b[ten]))])
    assert copied.p_value == pytest.approx(once.p_value, rel=0.2)
    assert copied.difference.low == pytest.approx(once.difference.low, abs=0.02)
    assert copied.error == pytest.approx(once.error) and fooled.error < once.error / 3
    assert (copied.units, copied.items) == (30, 300) and fooled.p_value < once.p_value / 10


def test_units_that_are_single_items_change_nothing() -> None:
    random = np.random.default_rng(5)
    scores, weights = random.normal(size=40), random.uniform(1, 2, 40)
    assert bootstrap([Sample(scores, weights, np.arange(40))]) == bootstrap([Sample(scores, weights)])


def test_tasks_that_share_groups_are_drawn_together() -> None:
    """The same pictures asked by two tasks: their mean is as uncertain as one, not less by √2."""
    random = np.random.default_rng(1)
    scores, units = random.normal(size=200), np.arange(200)
    one, other = ones(list(scores), list(units)), ones(list(scores[::-1]), list(units[::-1]))
    stranger = ones(list(random.permutation(scores)), list(units + 1000))
    assert blocks([one, stranger, other]) == [[0, 2], [1]]
    assert [number_of([one, other]), number_of([one, stranger])] == [200, 400]
    alone, twice, apart = (_width(*s) for s in ((one,), (one, other), (one, stranger)))
    assert twice == pytest.approx(alone, rel=0.05)
    assert apart == pytest.approx(alone / np.sqrt(2), rel=0.1)


def _width(*samples: Sample) -> float:
    found = bootstrap(list(samples), draws=4000)
    return found.high - found.low


def test_chains_of_shared_groups_are_one_block() -> None:
    chain = [ones([1.0, 2.0], [i, i + 1]) for i in (0, 2, 1)]
    assert blocks([*chain, ones([1.0])]) == [[0, 1, 2], [3]]
    assert number_of([*chain, ones([1.0, 1.0])]) == 6


def test_one_group_gives_no_interval() -> None:
    found = bootstrap([ones([0.0, 1.0, 1.0], [7, 7, 7]), ones([1.0, 0.0])])
    assert found.mean == pytest.approx((2 / 3 + 0.5) / 2) and np.isnan([found.low, found.high]).all()
    linked = bootstrap([ones([0.0, 1.0, 1.0], [7, 7, 7]), ones([1.0, 0.0, 1.0, 0.0], [7, 8, 9, 10])])
    assert np.isnan([linked.low, linked.high]).all(), "nor joined in a block with others"
    alike = compare([ones([1.0, 1.0], [7, 7])], [ones([0.0, 0.0], [7, 7])])
    assert alike.p_value == 1.0, "one group may have fallen either way"


def simulated(random: np.random.Generator, groups: int, largest: int) -> Sample:
    """Right or wrong answers whose chance is a group's own; sizes from 1 to `largest`."""
    sizes = random.integers(1, largest + 1, groups)
    chances = random.beta(1.4, 0.6, groups)  # of mean 0.7
    units = np.repeat(np.arange(groups), sizes)
    return ones(list((random.random(len(units)) < chances[units]).astype(float)), list(units))


def coverage(groups: int, largest: int, runs: int, *, by_item: bool) -> float:
    """How often the interval holds the mean over all groups there might be."""
    covered = 0
    for seed in range(runs):
        given = simulated(np.random.default_rng([groups, seed]), groups, largest)
        found = bootstrap([Sample(given.scores, given.weights)] if by_item else [given], draws=600, seed=seed)
        covered += found.low <= 0.7 <= found.high
    return covered / runs


@pytest.mark.parametrize(("groups", "largest"), [(12, 10), (30, 12), (80, 6)])
def test_intervals_hold_what_they_promise_with_groups_and_fall_short_by_items(
    groups: int, largest: int
) -> None:
    runs = 400
    bound = stats.binom.ppf(0.001, runs, 0.95) / runs  # what 95 % may look like in so many runs
    assert bound <= coverage(groups, largest, runs, by_item=False) <= 0.995
    assert coverage(groups, largest, runs, by_item=True) < 0.85


def test_p_values_under_the_null_are_spread_evenly_with_groups_and_too_small_by_items() -> None:
    grouped, single = [], []
    for seed in range(150):
        random = np.random.default_rng(seed)
        units = np.repeat(np.arange(25), random.integers(2, 12, 25))
        liked = random.normal(size=25)[units]  # a group that one method happens to like
        ours, theirs = liked + random.normal(0, 0.5, len(units)), random.normal(0, 0.5, len(units))
        a, b, weights = ours, theirs, np.ones(len(units))
        grouped.append(
            sign_flips([Sample(a, weights, units)], [Sample(b, weights, units)], draws=400, seed=seed)
        )
        single.append(sign_flips([Sample(a, weights)], [Sample(b, weights)], draws=400, seed=seed))
    assert stats.kstest(grouped, "uniform").pvalue > 0.01
    assert np.mean(np.array(grouped) < 0.05) < 0.11 and np.mean(np.array(single) < 0.05) > 0.3
