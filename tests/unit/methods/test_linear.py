"""Weighted averages: the card's properties, its example, a float64 oracle, weights that cancel, gradients."""

import pytest
import torch
from cases_geometry import BLOCKS, SHAPES, close, hostile, normal, wide
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_geometry import linear as oracle

from cuvee.errors import RunError
from cuvee.methods import registry
from cuvee.testing.stages import run_method, run_stage

LINEAR = registry.stage("linear")
weights = st.lists(st.floats(0.125, 8), min_size=3, max_size=3)


def test_worked_example():
    found = run_stage("linear", [torch.tensor([1.0, 3.0]), torch.tensor([3.0, 7.0])], {"weight": [1, 3]})
    assert found.tolist() == [2.5, 6.0]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("normalize", [True, False])
def test_agrees_with_the_oracle(shape, normalize):
    tensors = normal(shape, 3)
    found = run_stage("linear", tensors, {"weight": [0.3, 1.2, -0.4], "normalize": normalize})
    close(found, oracle(wide(tensors), [0.3, 1.2, -0.4], normalize=normalize))


@given(st.floats(0.001, 1000), st.booleans())
def test_one_model_comes_back_bit_for_bit(weight, negative):
    (tensor,) = normal((50,), 1)
    found = run_stage("linear", [tensor], {"weight": [-weight if negative else weight]})
    assert torch.equal(found, tensor)


@settings(deadline=None, max_examples=30)
@given(weights, st.permutations(range(3)))
def test_order_does_not_matter(values, order):
    tensors = normal((40,), 3)
    found = run_stage("linear", [tensors[i] for i in order], {"weight": [values[i] for i in order]})
    torch.testing.assert_close(found, run_stage("linear", tensors, {"weight": values}), rtol=0, atol=2e-6)


@settings(deadline=None, max_examples=30)
@given(weights, st.floats(0.01, 100))
def test_scaling_all_weights_changes_nothing(values, factor):
    tensors = normal((40,), 3)
    scaled = run_stage("linear", tensors, {"weight": [factor * v for v in values]})
    torch.testing.assert_close(scaled, run_stage("linear", tensors, {"weight": values}), rtol=0, atol=2e-6)


def test_affine_and_equal_to_task_arithmetic():
    tensors, weight = normal((40,), 3), [0.2, 0.5, 0.3]
    merged = run_stage("linear", tensors, {"weight": weight})
    moved = run_stage("linear", [2 * t + 5 for t in tensors], {"weight": weight})
    torch.testing.assert_close(moved, 2 * merged + 5, rtol=0, atol=4e-6)
    base = torch.randn(40, generator=torch.Generator().manual_seed(9))
    through_deltas = base + run_stage("weighted_sum", [t - base for t in tensors], {"weight": weight})
    torch.testing.assert_close(merged, through_deltas, rtol=0, atol=4e-6)


@pytest.mark.parametrize("block", BLOCKS)
def test_any_block_size_gives_the_same_bits(block):
    tensors = normal((48, 100), 3)
    params = {"weight": [0.3, 0.3, 0.4]}
    assert torch.equal(run_stage(LINEAR, tensors, params, block=block), run_stage(LINEAR, tensors, params))


@pytest.mark.parametrize("name", hostile(3))
def test_hostile_inputs_stay_finite(name):
    found = run_stage(LINEAR, hostile(3)[name], {})
    assert found.isfinite().all()
    assert found.shape == hostile(3)[name][0].shape


@pytest.mark.parametrize("cancel", [[1, -1, 0], [0, 0, 0], [0.1, 0.2, -0.3]])
def test_weights_that_cancel_are_an_error_before_and_during_the_run(cancel):
    assert "sum to 0" in LINEAR.problem({"weight": cancel, "normalize": True})
    with pytest.raises(RunError, match="sum to 0") as caught:
        run_stage(LINEAR, normal((4,), 3), {"weight": cancel})
    assert caught.value.diagnostics[0].code == "CV-E070"
    assert LINEAR.problem({"weight": cancel, "normalize": False}) is None
    assert run_stage(LINEAR, normal((4,), 3), {"weight": cancel, "normalize": False}).isfinite().all()


def test_sensible_weights_are_no_problem():
    assert LINEAR.problem({"weight": [1, -0.5], "normalize": True}) is None
    assert LINEAR.problem({"weight": 0.0, "normalize": True}) is None  # one expert's value says nothing


def test_half_precision_is_summed_in_float32():
    tensors = [torch.full((1,), 1.0, dtype=torch.bfloat16), torch.full((1,), 2.0**-7, dtype=torch.bfloat16)]
    found = run_stage(LINEAR, tensors, {"normalize": False})
    assert found.dtype == torch.float32
    assert found.item() == 1 + 2.0**-7


def test_differentiable_in_the_weights():
    tensors = [t.double() for t in normal((9,), 3)]

    def merge(*values):
        return LINEAR.function(tensors, weight=list(values))

    start = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.5, 0.3, -0.1)]
    assert torch.autograd.gradcheck(merge, start)


@pytest.mark.parametrize("name", ["average", "uniform_soup"])
def test_named_averages_are_linear_with_equal_weights(name):
    tensors = normal((30,), 3)
    assert torch.equal(run_method(name, tensors, None), run_stage("linear", tensors, {}))
    assert registry.parameters_for(registry.get(name)) == {}


def test_mergekit_spelling():
    spoken = registry.get("linear").dialects["mergekit"]
    assert {(s.name, s.scope, s.required, s.default) for s in spoken.parameters} == {
        ("weight", "input", True, None),
        ("normalize", "shared", False, True),
    }
    assert (spoken.base, spoken.inputs) == ("ordinary", (1, None))
    tensors = normal((30,), 2)
    found = run_method("linear", tensors, None, {"weight": [1.0, 3.0]}, dialect="mergekit")
    close(found, oracle(wide(tensors), [1.0, 3.0]))
