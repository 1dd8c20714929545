"""Arcee Fusion: which elements are taken over, against a float64 oracle with a full sort; its properties."""

import numpy as np
import pytest
import torch
from cases_geometry import BLOCKS, SHAPES, hostile, normal, wide
from oracles_geometry import arcee_fusion as oracle
from oracles_geometry import arcee_importance

from cuvee.methods import registry
from cuvee.methods.combine.arcee_fusion import importance
from cuvee.methods.contract import Block
from cuvee.testing.stages import run_method, run_stage

FUSION = registry.stage("arcee_fusion")
MODES = {"own": {}, "mergekit": {"precision": "compute", "clamp": False}}


def agree(found, expected, scores):
    """Equal, except where an importance is within float32 rounding of the threshold."""
    differs = found.double().numpy() != expected
    ordered = np.sort(scores.ravel())
    lower, median, upper = (ordered[int(q * (ordered.size - 1))] for q in (0.25, 0.5, 0.75))
    threshold = median + 1.5 * (upper - lower)
    assert (np.abs(scores[differs] - threshold) <= 1e-5 * abs(threshold)).all()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("clamp", [True, False])
def test_agrees_with_the_oracle(shape, clamp):
    pair = normal(shape, 2)
    arrays = [np.atleast_1d(x) for x in wide(pair)]
    found = run_stage(FUSION, pair, {"clamp": clamp})
    expected = oracle(*arrays, clamp=clamp).reshape(shape)
    agree(found, expected, arcee_importance(*arrays, clamp=clamp).reshape(shape))


def test_worked_example():
    """One row differs strongly in one place: that place is taken over, and nothing else."""
    base = torch.zeros(4, 8)
    other = base.clone()
    other[1, 3] = 2.0
    other[2] = 0.001 * torch.arange(8)
    found = run_stage(FUSION, [base, other], {})
    assert found[1, 3] == 2.0
    assert (found != base).sum() >= 1
    assert torch.equal(found[0], base[0])


def vector_pair(changes):
    """A vector is one row, so its importances are its changes times one divergence."""
    return [torch.zeros(len(changes)), 0.1 * torch.tensor(changes)]


def test_threshold_counts_as_reached_and_quartiles_are_those_of_the_card():
    base, other = vector_pair([0.0, 1, 1, 1, 1, 1, 1, 5])  # quartiles 1, 1, 1: the threshold is 1
    assert (run_stage(FUSION, [base, other], {}) == other).all()
    assert oracle(*wide([base, other])).tolist() == other.double().tolist()
    for last, taken in ((9.9, 0), (10.1, 1)):  # quartiles 2, 4, 6 of ranks 1, 3, 5: the threshold is 10
        base, other = vector_pair([1.0, 2, 3, 4, 5, 6, 7, last])
        assert int((run_stage(FUSION, [base, other], {}) != base).sum()) == taken


def test_identical_models_come_back():
    (model,) = normal((20, 30), 1)
    assert torch.equal(run_stage(FUSION, [model, model.clone()], {}), model)


@pytest.mark.parametrize("mode", MODES)
def test_every_element_comes_from_one_of_the_two_and_few_from_the_other(mode):
    base, other = normal((60, 70), 2)
    found = run_stage(FUSION, [base, other], MODES[mode])
    taken = found == other
    assert (taken | (found == base)).all()
    assert 0.02 < float(taken.float().mean()) < 0.25


def test_not_symmetric():
    a, b = normal((20, 30), 2)
    assert not torch.equal(run_stage(FUSION, [a, b], {}) == b, run_stage(FUSION, [b, a], {}) == a)


def test_double_precision_separates_models_that_single_cannot():
    """Changes of 3e-5: the divergence is about 5e-10, less than the rounding noise of float32."""
    base, noise = normal((30, 200), 2)
    other = base + 3e-5 * noise
    exact = arcee_importance(*wide([base, other]), clamp=False)
    block = Block([base, other], 0, (30, 200))
    double = importance(block, precision="float64", clamp=False).double().numpy()
    single = importance(block, precision="compute", clamp=False).double().numpy()
    error_double, error_single = (np.abs(x - exact).max() / exact.max() for x in (double, single))
    assert error_double < 1e-5
    assert error_single > 0.01


def test_clamp_raises_negative_divergences_to_zero():
    """Both distributions sum to the same, so only rounding makes a divergence negative; float32's does."""
    base, noise = normal((30, 200), 2)
    block = Block([base, base + 1e-6 * noise], 0, (30, 200))
    free, raised = (importance(block, precision="compute", clamp=clamp) for clamp in (False, True))
    assert (free < 0).any()
    assert torch.equal(raised, free.clamp(min=0))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("block", BLOCKS)
def test_any_block_size_gives_the_same_bits(mode, block):
    for shape in ((48, 100), (2050, 3), (7, 5, 3, 3), (3000,)):
        pair = normal(shape, 2)
        assert torch.equal(
            run_stage(FUSION, pair, MODES[mode], block=block), run_stage(FUSION, pair, MODES[mode])
        )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", hostile(2))
def test_hostile_inputs(name, mode):
    base, other = hostile(2)[name]
    found = run_stage(FUSION, [base, other], MODES[mode])
    assert found.shape == base.shape
    assert ((found == base) | (found == other)).all()


def test_convolutions_are_compared_along_the_last_axis():
    a, b = normal((6, 5, 4, 3), 2)
    flat = run_stage(FUSION, [a.reshape(-1, 3), b.reshape(-1, 3)], {})
    assert torch.equal(run_stage(FUSION, [a, b], {}).reshape(-1, 3), flat)


def test_mergekit_spelling():
    spoken = registry.get("arcee_fusion").dialects["mergekit"]
    assert spoken.parameters == ()
    assert spoken.defaults == {"precision": "compute", "clamp": False}
    assert (spoken.base, spoken.inputs) == ("required", (1, 1))
    base, other = normal((30, 40), 2)
    found = run_method("arcee_fusion", [other], base, {}, dialect="mergekit")
    assert torch.equal(found, run_stage(FUSION, [base, other], MODES["mergekit"]))
    agree(
        found, oracle(*wide([base, other]), clamp=False), arcee_importance(*wide([base, other]), clamp=False)
    )
