"""SLERP: the card's properties, its example, a float64 oracle, the line that replaces the arc, gradients."""

import sys
import types

import numpy as np
import pytest
import torch
from cases_geometry import BLOCKS, SHAPES, close, hostile, normal, wide
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_geometry import slerp as oracle

from cuvee.methods import registry
from cuvee.methods.coefficients import normalized
from cuvee.testing.stages import run_method, run_stage

SLERP = registry.stage("slerp")
TIMES = [0.0, 0.25, 0.5, 0.9, 1.0]


def test_worked_example():
    found = run_stage(SLERP, [torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])], {"t": 0.5})
    torch.testing.assert_close(found, torch.tensor([2**0.5, 0.5**0.5]))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("t", TIMES)
def test_agrees_with_the_oracle(shape, t):
    tensors = normal(shape, 2)
    close(run_stage(SLERP, tensors, {"t": t}), oracle(*wide(tensors), t))


def test_both_ends():
    a, b = normal((200,), 2)
    assert torch.equal(run_stage(SLERP, [a, b], {"t": 0.0}), a)
    assert torch.equal(run_stage(SLERP, [a, b], {"t": 1.0}), b)


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 1))
def test_walking_back_is_the_same_walk(t):
    a, b = normal((200,), 2)
    forth, back = run_stage(SLERP, [a, b], {"t": t}), run_stage(SLERP, [b, a], {"t": 1 - t})
    torch.testing.assert_close(forth, back, rtol=0, atol=3e-6)


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 1))
def test_equal_norms_stay_on_their_sphere(t):
    a, b = normal((500,), 2)
    b = b * (a.norm() / b.norm())
    torch.testing.assert_close(run_stage(SLERP, [a, b], {"t": t}).norm(), a.norm(), rtol=1e-5, atol=0)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.001, 1000), st.sampled_from(TIMES))
def test_scale_equivariant(factor, t):
    a, b = normal((100,), 2)
    scaled = run_stage(SLERP, [factor * a, factor * b], {"t": t})
    torch.testing.assert_close(
        scaled, factor * run_stage(SLERP, [a, b], {"t": t}), rtol=1e-5, atol=1e-5 * factor
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_nearly_parallel_models_are_interpolated_linearly(sign):
    a, noise = normal((400,), 2)
    b = sign * (a + 0.01 * noise)
    torch.testing.assert_close(run_stage(SLERP, [a, b], {"t": 0.3}), 0.7 * a + 0.3 * b, rtol=0, atol=2e-6)
    bent = run_stage(SLERP, [a, b], {"t": 0.3, "threshold": 1.0})
    assert not torch.allclose(bent, 0.7 * a + 0.3 * b, rtol=0, atol=2e-6)


def test_threshold_is_strict_and_changes_little():
    """cos θ = 0.8 exactly: at the threshold the arc is kept, just below it the line is taken."""
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([4.0, 3.0])
    arc = run_stage(SLERP, [a, b], {"t": 0.5, "threshold": 0.8})
    line = run_stage(SLERP, [a, b], {"t": 0.5, "threshold": 0.79})
    close(arc, oracle(*wide([a, b]), 0.5, threshold=0.9))
    assert torch.equal(line, (a + b) / 2)


def test_vectors_below_eps_have_no_direction():
    a, b = normal((30,), 2)
    tiny = 1e-9 * a / a.norm()
    close(run_stage(SLERP, [tiny, b], {"t": 0.4}), oracle(*wide([tiny, b]), 0.4))
    close(run_stage(SLERP, [a, b], {"t": 0.4, "eps": 1e3}), oracle(*wide([a, b]), 0.4, eps=1e3))


@pytest.mark.parametrize("block", BLOCKS)
def test_any_block_size_gives_the_same_bits(block):
    tensors = normal((48, 100), 2)
    assert torch.equal(
        run_stage(SLERP, tensors, {"t": 0.3}, block=block), run_stage(SLERP, tensors, {"t": 0.3})
    )


@pytest.mark.parametrize("name", hostile(2))
def test_hostile_inputs(name):
    tensors = hostile(2)[name]
    found = run_stage(SLERP, tensors, {"t": 0.4})
    assert found.isfinite().all()
    if found.numel():
        close(found, oracle(*wide(tensors), 0.4))
    if name == "identical":
        torch.testing.assert_close(found, tensors[0])


@pytest.mark.parametrize("pair", ["apart", "parallel"])
def test_differentiable_in_t_and_in_the_models(pair):
    a, b = (t.double().requires_grad_() for t in normal((6,), 2))
    b = b if pair == "apart" else (2 * a).detach().requires_grad_()
    matrix = [[float(x @ y) for y in (a.detach(), b.detach())] for x in (a.detach(), b.detach())]

    def merge(t, first, second):
        return SLERP.function([first, second], summary={"gram": matrix}, t=t)

    assert torch.autograd.gradcheck(merge, (torch.tensor(0.3, dtype=torch.float64, requires_grad=True), a, b))


def test_mergekit_takes_the_base_as_the_end_at_zero():
    spoken = registry.get("slerp").dialects["mergekit"]
    assert [(s.name, s.scope, s.required) for s in spoken.parameters] == [("t", "shared", True)]
    assert (spoken.base, spoken.inputs) == ("required", (1, 1))
    base, other = normal((90,), 2)
    found = run_method("slerp", [other], base, {"t": 0.2}, dialect="mergekit")
    close(found, oracle(base.double().numpy(), other.double().numpy(), 0.2))
    assert np.allclose(run_method("slerp", [other], base, {"t": 0.0}, dialect="mergekit"), base)


def test_t_is_required_and_may_lie_beyond_the_ends():
    (t, *_) = SLERP.parameters
    assert t.required
    base, other = normal((90,), 2)
    for beyond in (-0.2, 1.3):  # as MergeKit extrapolates
        assert t.problem(beyond) is None
        found = run_stage(SLERP, [base, other], {"t": beyond})
        close(found, oracle(base.double().numpy(), other.double().numpy(), beyond))


def test_what_is_no_number_warns_nobody(recwarn):
    first, second = torch.tensor([1.0, float("inf")]), torch.tensor([1.0, float("nan")])
    for name in ("slerp", "multislerp", "karcher", "nuslerp"):
        run_method(name, [first, second], None, {"t": 0.5} if name == "slerp" else {})
    assert not recwarn.list


def test_a_library_that_is_being_imported_is_not_asked(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    assert normalized([1.0, 3.0]).tolist() == [0.25, 0.75]
