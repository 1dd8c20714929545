"""Karcher mean: found from dot products, against an iteration on whole vectors; the card's properties."""

import numpy as np
import pytest
import torch
from cases_geometry import BLOCKS, SHAPES, close, hostile, normal, wide
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_geometry import karcher as oracle
from oracles_geometry import logarithm, slerp

from cuvee.methods import registry
from cuvee.testing.stages import run_method, run_stage

KARCHER = registry.stage("karcher")


def test_worked_example():
    found = run_stage(KARCHER, list(torch.diag(torch.tensor([1.0, 2.0, 3.0]))), {"max_iter": 50, "tol": 1e-9})
    torch.testing.assert_close(found, torch.full((3,), 2 / 3**0.5))
    assert found.tolist() == pytest.approx([1.1547] * 3, abs=1e-4)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_agrees_with_the_iteration_on_vectors(shape, count):
    tensors = normal(shape, count)
    if shape in ((1,), ()):
        tensors = [t.abs() for t in tensors]  # two points of a 0-sphere have no mean
    close(run_stage(KARCHER, tensors, {}), oracle(wide(tensors)), relative=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_agrees_before_it_has_converged(steps):
    tensors = [t * s for t, s in zip(np_random(4, 12), (1, 2, 3, 4), strict=True)]
    found = run_stage(KARCHER, tensors, {"max_iter": steps, "weight": [5, 1, 1, 1]})
    close(found, oracle(wide(tensors), [5, 1, 1, 1], steps=steps), relative=1e-5)
    assert (
        abs(
            oracle(wide(tensors), [5, 1, 1, 1], steps=steps) - oracle(wide(tensors), [5, 1, 1, 1], steps=99)
        ).max()
        > 1e-5
    )


def np_random(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) for _ in range(count)]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 500), st.lists(st.floats(0.1, 5), min_size=4, max_size=4))
def test_first_order_condition(seed, weights):
    """At the mean the weighted directions towards the inputs cancel."""
    tensors = [t + 0.5 for t in np_random(4, 30, seed)]
    found = run_stage(KARCHER, tensors, {"weight": weights, "max_iter": 200, "tol": 1e-12}).double().numpy()
    units = [x / np.linalg.norm(x) for x in wide(tensors)]
    rest = logarithm(found / np.linalg.norm(found), units, np.array(weights) / sum(weights))
    assert np.linalg.norm(rest) < 1e-6


def test_identical_inputs_come_back():
    (tensor,) = normal((50,), 1)
    torch.testing.assert_close(run_stage(KARCHER, [tensor] * 3, {}), tensor)
    assert torch.equal(run_stage(KARCHER, [tensor], {}), tensor)


def test_two_inputs_meet_at_the_midpoint_of_slerp():
    a, b = np_random(2, 60)
    found = run_stage(KARCHER, [a, 3 * b], {}).double().numpy()
    halfway = slerp(*(x / np.linalg.norm(x) for x in wide([a, b])), 0.5)
    assert found / np.linalg.norm(found) == pytest.approx(halfway, abs=1e-6)
    assert np.linalg.norm(found) == pytest.approx(float(a.norm() + 3 * b.norm()) / 2, rel=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(4)))
def test_order_does_not_matter(order):
    tensors, weights = normal((40,), 4), [1.0, 2.0, 0.5, 1.0]
    same = run_stage(KARCHER, tensors, {"weight": weights, "max_iter": 50})
    params = {"weight": [weights[i] for i in order], "max_iter": 50}
    found = run_stage(KARCHER, [tensors[i] for i in order], params)
    torch.testing.assert_close(found, same, rtol=0, atol=1e-5)


def test_weights_pull():
    a, b = np_random(2, 60)
    b = b * (a.norm() / b.norm())
    found = run_stage(KARCHER, [a, b], {"weight": [1, 3], "max_iter": 200, "tol": 1e-10})
    close(found, slerp(*wide([a, b]), 0.75), relative=1e-5)


def test_zero_vectors_have_no_direction_but_count_in_the_length():
    a, b = normal((40,), 2)
    found = run_stage(KARCHER, [a, b, torch.zeros(40)], {})
    torch.testing.assert_close(found, run_stage(KARCHER, [a, b], {}) * 2 / 3)
    assert not run_stage(KARCHER, [torch.zeros(9)] * 3, {}).any()
    assert not run_stage(KARCHER, [torch.full((9,), 1e-7)] * 3, {}).any()  # norms below tol are zero


@pytest.mark.parametrize("steps", [1, 2])
def test_the_steps_of_the_others_are_not_shortened_by_zero_vectors(steps):
    tensors = [*np_random(3, 12), torch.zeros(12)]
    weights = [5, 1, 1, 4]
    found = run_stage(KARCHER, tensors, {"weight": weights, "max_iter": steps})
    close(found, oracle(wide(tensors), weights, steps=steps), relative=1e-5)


@pytest.mark.parametrize("seed", range(10))
def test_an_input_opposite_to_the_mean_does_not_pull(seed):
    (a,) = np_random(1, 300, seed)
    found = run_stage(KARCHER, [a, 1.1 * a, -0.7 * a], {})
    torch.testing.assert_close(found, a * 2.8 / 3, rtol=1e-5, atol=1e-5)


def test_antipodal_inputs_do_not_blow_up():
    (a,) = normal((40,), 1)
    found = run_stage(KARCHER, [a, -2 * a], {})
    close(found, oracle(wide([a, -2 * a])))
    torch.testing.assert_close(found, 1.5 * a)  # the first direction, the mean length
    third = torch.roll(a, 1)
    assert run_stage(KARCHER, [a, -a, third], {}).isfinite().all()


@pytest.mark.parametrize("block", BLOCKS)
def test_any_block_size_gives_the_same_bits(block):
    tensors = normal((48, 100), 3)
    assert torch.equal(run_stage(KARCHER, tensors, {}, block=block), run_stage(KARCHER, tensors, {}))


@pytest.mark.parametrize("name", hostile(3))
def test_hostile_inputs(name):
    tensors = hostile(3)[name]
    found = run_stage(KARCHER, tensors, {})
    assert found.shape == tensors[0].shape
    assert found.isfinite().all()
    if name in ("huge", "zero rows", "one zero", "identical", "antipodal"):
        close(found, oracle(wide(tensors)), relative=1e-5)


def test_with_a_base_task_vectors_are_averaged():
    base, a, b = normal((12, 25), 3)
    found = run_method("karcher", [a, b], base, {})
    close(found, base.double().numpy() + oracle(wide([a - base, b - base])))


def test_differentiable_in_the_weights():
    from cuvee.methods.combine.karcher import mean_coefficients

    tensors = [t.double() for t in normal((6,), 3)]
    gram = [[float(x @ y) for y in tensors] for x in tensors]

    def coefficients(*values):
        shares = torch.stack(values)
        return mean_coefficients(gram, shares / shares.sum(), max_iter=5, tol=1e-12)

    start = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.5, 0.3, 1.2)]
    assert torch.autograd.gradcheck(coefficients, start)


def test_mergekit_has_neither_weights_nor_a_base():
    spoken = registry.get("karcher").dialects["mergekit"]
    assert {(s.name, s.type, s.default) for s in spoken.parameters} == {
        ("max_iter", "int", 10),
        ("tol", "float", 1e-5),
    }
    assert (spoken.base, spoken.inputs) == ("ordinary", (1, None))
    tensors = normal((30,), 3)
    close(
        run_method("karcher", tensors, None, {"max_iter": 3}, dialect="mergekit"),
        oracle(wide(tensors), steps=3),
    )
