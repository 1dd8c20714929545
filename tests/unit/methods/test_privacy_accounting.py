"""The cost of releasing private models: the card's numbers and properties, integrals and a grid as oracles."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee import privacy
from cuvee.errors import UsageError
from cuvee.testing.stages import run_method

CURVES = [{2.0: 0.5, 4.0: 1.1, 8.0: 2.4}, {2.0: 3.0, 4.0: 5.0, 8.0: 9.0}, {2.0: 0.1, 4.0: 0.2, 8.0: 0.4}]
SHARES = st.lists(st.floats(0.01, 1), min_size=3, max_size=3).map(lambda p: [x / math.fsum(p) for x in p])


def test_the_cards_numbers():
    w = privacy.two_weights(4, 1, 2)
    assert w[0] == pytest.approx(0.4830, abs=5e-5) and sum(w) == 1
    deltas = [privacy.gaussian_delta(1, sigma) for sigma in (4, 1)]
    p = privacy.selection_probabilities(deltas, 0.01, [0, 1])
    assert p[1] == pytest.approx(0.0788, abs=5e-5)
    assert privacy.selection_delta(p, deltas) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("epsilon", "sigma", "sensitivity"), [(1, 1, 1), (0, 2, 1), (0.3, 4, 2), (5, 0.5, 1)]
)
def test_gaussian_delta_is_the_hockey_stick_divergence(epsilon, sigma, sensitivity):
    x = np.linspace(-60 * sigma, 60 * sigma, 2_000_001)

    def density(mean):
        return np.exp(-(((x - mean) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))

    excess = np.maximum(density(sensitivity) - math.exp(epsilon) * density(0.0), 0)
    wanted = float(excess.sum() * (x[1] - x[0]))
    assert privacy.gaussian_delta(epsilon, sigma, sensitivity) == pytest.approx(wanted, abs=1e-7)


def test_gaussian_rdp_is_the_renyi_divergence():
    x = np.linspace(-30, 30, 1_000_001)
    one, other = (np.exp(-((x - m) ** 2) / 8) / math.sqrt(8 * math.pi) for m in (1.0, 0.0))
    wanted = math.log(float((one**3 * other**-2.0).sum() * (x[1] - x[0]))) / 2
    assert privacy.gaussian_rdp(3, 2) == pytest.approx(wanted, rel=1e-6)


@settings(max_examples=50)
@given(SHARES)
def test_a_mixture_costs_at_most_its_dearest_model_and_delta_is_linear(p):
    mixed = privacy.selection_rdp(p, CURVES)
    for order in mixed:
        each = [curve[order] for curve in CURVES]
        exact = math.log(sum(q * math.exp((order - 1) * e) for q, e in zip(p, each, strict=True))) / (
            order - 1
        )
        assert mixed[order] == pytest.approx(exact) and mixed[order] <= max(each) + 1e-12
    deltas = [0.2, 0.05, 0.001]
    half = [(x + y) / 2 for x, y in zip(p, (1, 0, 0), strict=True)]
    middle = (privacy.selection_delta(p, deltas) + 0.2) / 2
    assert privacy.selection_delta(half, deltas) == pytest.approx(middle)


def test_one_model_alone_has_its_own_guarantee():
    for i in range(3):
        only = [float(i == j) for j in range(3)]
        assert privacy.selection_rdp(only, CURVES) == pytest.approx(CURVES[i])
        assert privacy.linear_rdp(only, CURVES) == CURVES[i]
        assert privacy.selection_delta(only, [0.1, 0.2, 0.3]) == (0.1, 0.2, 0.3)[i]


def test_a_combination_costs_the_sum_of_those_that_take_part():
    assert privacy.linear_rdp([0.5, 0.0, 0.5], CURVES) == pytest.approx({2.0: 0.6, 4.0: 1.3, 8.0: 2.8})
    assert privacy.linear_rdp([0.5, -0.1, 0.6], CURVES)[2.0] == pytest.approx(3.6)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(-1, 1)), min_size=1, max_size=4),
    st.floats(0, 1),
)
def test_probabilities_are_the_best_within_the_budget(models, budget):
    costs, utilities = zip(*models, strict=True)
    if min(costs) > budget:
        with pytest.raises(UsageError, match="CV-U190"):
            privacy.selection_probabilities(costs, budget, utilities)
        return
    p = privacy.selection_probabilities(costs, budget, utilities)
    assert sum(p) == pytest.approx(1) and min(p) >= 0 and np.dot(p, costs) <= budget + 1e-9
    grid = [q for q in itertools.product(np.linspace(0, 1, 11), repeat=len(costs)) if abs(sum(q) - 1) < 1e-9]
    best = max((np.dot(q, utilities) for q in grid if np.dot(q, costs) <= budget), default=-math.inf)
    assert np.dot(p, utilities) >= best - 1e-9


def test_the_guarantee_of_a_gaussian_combination_is_that_of_its_noise():
    w = privacy.two_weights(4, 1, 2)
    found = privacy.gaussian_linear(w, [4, 1], 1e-5)
    assert privacy.gaussian_delta(found.epsilon, 2.0) == pytest.approx(1e-5, rel=1e-6)
    assert privacy.least_sigma([4, 1]) == pytest.approx((1 / 16 + 1) ** -0.5)
    with pytest.raises(UsageError, match="CV-U190"):
        privacy.two_weights(4, 1, 0.9)
    with pytest.raises(UsageError, match="CV-U191"):
        privacy.two_weights(4, 1, 4.5)
    assert privacy.two_weights(1, 4, 1.0)[0] <= 1


def test_a_renyi_curve_proves_no_more_than_is_true():
    sigma, delta = 2.0, 1e-5
    curve = {a: privacy.gaussian_rdp(a, sigma) for a in (1.5, 2, 4, 8, 12, 16, 24, 32, 64)}
    found = privacy.rdp_guarantee("one Gaussian value", curve, delta)
    exact = privacy.gaussian_linear([1.0], [sigma], delta).epsilon
    assert exact <= found.epsilon < 1.15 * exact
    assert "one Gaussian value" in str(found) and f"order {found.order:g}" in str(found)


def test_the_draw_follows_the_probabilities_and_takes_fresh_randomness():
    points = iter(range(1000))
    scaled = [
        privacy.select([0.25, 0.0, 0.75], below=lambda n: next(points) * n // 1000) for _ in range(1000)
    ]
    assert [scaled.count(i) for i in range(3)] == [250, 0, 750]
    drawn = [privacy.select([0.5, 0.5]) for _ in range(400)]
    assert 120 < sum(drawn) < 280
    assert {privacy.select([0.0, 1.0, 0.0]) for _ in range(20)} == {1}
    assert privacy.select([1 / 3] * 3, below=lambda n: n - 1) == 2


@pytest.mark.parametrize("p", [[0.5, 0.6], [-0.1, 1.1], [0.5, float("nan")], []])
def test_what_is_no_distribution_is_refused(p):
    with pytest.raises(UsageError, match="CV-U191"):
        privacy.select(p)
    with pytest.raises(UsageError, match="CV-U191"):
        privacy.selection_rdp([0.5, 0.5], CURVES)


def test_a_private_combination_is_the_weighted_mean_of_the_models():
    draw = np.random.default_rng(0)
    models = [draw.normal(size=(5, 4)) for _ in range(3)]
    weights = [0.5, 0.3, 0.4]
    wanted = sum(w * m for w, m in zip(weights, models, strict=True)) / 1.2
    merged = run_method("dp_linear", [torch.from_numpy(m) for m in models], None, {"weight": weights})
    assert np.allclose(merged.numpy(), wanted, rtol=1e-14)
    alone = run_method("dp_linear", [torch.from_numpy(m) for m in models], None, {"weight": [0.0, 1.0, 0.0]})
    assert np.array_equal(alone.numpy(), models[1])
