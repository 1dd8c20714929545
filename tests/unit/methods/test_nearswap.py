"""NearSwap: as published against as computed, the card's properties and example, gradients."""

import pytest
import torch
from cases_geometry import BLOCKS, SHAPES, close, hostile, normal, wide
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_geometry import nearswap as oracle

from cuvee.methods import registry
from cuvee.testing.stages import run_method, run_stage

NEARSWAP = registry.stage("nearswap")


def test_worked_example():
    found = run_stage(NEARSWAP, [torch.tensor([0.05, 0.2, -0.4])], {"t": 0.1})
    torch.testing.assert_close(found, torch.tensor([0.05, 0.1, -0.1]))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("t", [0.0, 1e-8, 1e-4, 0.5, 100.0])
def test_clipping_is_the_published_interpolation(shape, t):
    base, other = normal(shape, 2)
    found = run_method("nearswap", [other], base, {"t": t})
    close(found, oracle(*wide([base, other]), t))


@settings(deadline=None, max_examples=60)
@given(st.floats(0, 1e-5), st.floats(1e-9, 1e-5))
def test_a_t_below_the_floor_moves_small_differences_by_a_share(t, floor):
    delta = torch.tensor([0.0, 1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-2], dtype=torch.float64)
    delta = torch.cat([delta, -delta])
    found = run_stage(NEARSWAP, [delta], {"t": t, "floor": floor})
    expected = oracle(torch.zeros(14).double().numpy(), delta.numpy(), t, floor=floor)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-9, atol=1e-20)


def test_the_ends():
    base, other = normal((60,), 2)
    delta = other - base
    assert not run_stage(NEARSWAP, [delta], {"t": 0.0}).any()
    assert torch.equal(run_stage(NEARSWAP, [delta], {"t": float(delta.abs().max())}), delta)


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 3, width=32), st.sampled_from([0.0, 1e-6, 0.5]))
def test_no_weight_moves_by_more_than_t_or_past_the_other(t, floor):
    (delta,) = normal((200,), 1)
    found = run_stage(NEARSWAP, [delta], {"t": t, "floor": floor})
    assert float(found.abs().max()) <= t
    assert (found.abs() <= delta.abs()).all()
    assert (found * delta >= 0).all()


def test_not_symmetric():
    a, b = normal((60,), 2)
    there, back = (run_method("nearswap", [x], y, {"t": 0.1}) for x, y in ((a, b), (b, a)))
    assert not torch.allclose(there, back)


@pytest.mark.parametrize("block", BLOCKS)
def test_any_block_size_gives_the_same_bits(block):
    deltas = normal((48, 100), 1)
    assert torch.equal(
        run_stage(NEARSWAP, deltas, {"t": 0.1}, block=block), run_stage(NEARSWAP, deltas, {"t": 0.1})
    )


@pytest.mark.parametrize("name", hostile(1))
def test_hostile_inputs(name):
    for t in (0.0, 1e-30, 1e-3):
        found = run_stage(NEARSWAP, hostile(1)[name], {"t": t})
        assert found.isfinite().all()
        assert float(found.abs().max() if found.numel() else 0) <= t * (1 + 1e-6)


@pytest.mark.parametrize("t", [0.4, 1e-7])
def test_differentiable_in_t_and_in_the_models(t):
    delta = torch.tensor([0.1, -0.2, 0.9, -1.3, 5e-7], dtype=torch.float64, requires_grad=True)
    bound = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    result = NEARSWAP.function([delta], t=bound, floor=1e-6)
    grads = torch.autograd.grad(result.sum(), (delta, bound))
    if t == 0.4:
        assert grads[0].tolist() == [1, 1, 0, 0, 1]
        assert float(grads[1]) == 0.0  # one moves up with t and one down
    else:
        assert float(grads[0][4]) == pytest.approx(0.1)
        assert float(grads[1]) == pytest.approx(0.5)  # +1 −1 +1 −1, and 5e-7/1e-6


def test_mergekit_spelling():
    spoken = registry.get("nearswap").dialects["mergekit"]
    assert [(s.name, s.scope, s.required) for s in spoken.parameters] == [("t", "shared", True)]
    assert (spoken.base, spoken.inputs, spoken.missing) == ("required", (1, 1), "base")
    base, other = normal((60,), 2)
    close(
        run_method("nearswap", [other], base, {"t": 0.3}, dialect="mergekit"),
        oracle(*wide([base, other]), 0.3),
    )
