"""Multi-SLERP: the closed form against the published tangent-space formula; properties; lost directions."""

import pytest
import torch
from cases_geometry import BLOCKS, SHAPES, close, hostile, normal, wide
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_geometry import multislerp_in_tangent_space as oracle
from oracles_geometry import slerp

from cuvee.errors import RunError
from cuvee.methods import registry
from cuvee.testing.stages import run_method, run_stage

MULTISLERP = registry.stage("multislerp")
WEIGHTS = [0.5, 0.2, 0.9]


def test_worked_example():
    found = run_stage(
        MULTISLERP, [torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])], {"weight": [0.5, 0.5]}
    )
    torch.testing.assert_close(found, torch.tensor([2**0.5, 2**0.5]))


@pytest.mark.parametrize("shape", [s for s in SHAPES.values() if s not in ((1,), ())])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_closed_form_is_the_published_tangent_space_formula(shape, count):
    tensors = normal(shape, count)
    weights = [0.5, 0.2, 0.9, 0.1, 0.7][:count]
    close(run_stage(MULTISLERP, tensors, {"weight": weights}), oracle(wide(tensors), weights))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0.05, 5), min_size=3, max_size=3), st.integers(0, 1000))
def test_closed_form_holds_for_any_weights_and_angles(weights, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(40, generator=generator) for _ in weights]
    close(run_stage(MULTISLERP, tensors, {"weight": weights}), oracle(wide(tensors), weights), relative=1e-5)


def test_one_model_comes_back():
    (tensor,) = normal((50,), 1)
    assert torch.equal(run_stage(MULTISLERP, [tensor], {"weight": [0.3]}), tensor)


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(3)))
def test_order_does_not_matter(order):
    tensors = normal((40,), 3)
    found = run_stage(MULTISLERP, [tensors[i] for i in order], {"weight": [WEIGHTS[i] for i in order]})
    same = run_stage(MULTISLERP, tensors, {"weight": WEIGHTS})
    torch.testing.assert_close(found, same, rtol=0, atol=3e-6)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.001, 1000))
def test_scale_equivariant(factor):
    tensors = normal((40,), 3)
    scaled = run_stage(MULTISLERP, [factor * t for t in tensors], {})
    plain = run_stage(MULTISLERP, tensors, {})
    torch.testing.assert_close(scaled, factor * plain, rtol=0, atol=1e-5 * factor)


def test_length_is_the_weighted_mean_length():
    tensors = [t * s for t, s in zip(normal((80,), 3), (1.0, 5.0, 0.1), strict=True)]
    found = run_stage(MULTISLERP, tensors, {"weight": WEIGHTS})
    length = sum(w * t.norm() for w, t in zip(WEIGHTS, tensors, strict=True)) / sum(WEIGHTS)
    torch.testing.assert_close(found.norm(), length)


def test_two_models_meet_slerp_halfway_where_norms_are_equal():
    a, b = normal((80,), 2)
    b = b * (a.norm() / b.norm())
    close(run_stage(MULTISLERP, [a, b], {}), slerp(*wide([a, b]), 0.5))
    apart = slerp(*wide([a, b]), 0.25)
    assert abs(run_stage(MULTISLERP, [a, b], {"weight": [3, 1]}).double().numpy() - apart).max() > 1e-4


def test_without_normalizing_only_the_length_changes():
    tensors = normal((40,), 3)
    free = run_stage(MULTISLERP, tensors, {"weight": WEIGHTS, "normalize": False})
    tied = run_stage(MULTISLERP, tensors, {"weight": WEIGHTS})
    torch.testing.assert_close(free, tied * sum(WEIGHTS))


def test_directions_that_cancel():
    (a,) = normal((40,), 1)
    two = run_stage(MULTISLERP, [a, -3 * a], {"weight": [1, 1]})
    torch.testing.assert_close(two, -a)  # two inputs fall back to their weighted sum
    with pytest.raises(RunError, match="cancel") as caught:
        run_stage(MULTISLERP, [a, -a, torch.zeros_like(a)], {})
    assert caught.value.diagnostics[0].code == "CV-E071"
    shaken = a + 1e-5 * a.flip(0)  # not exactly opposite: a direction is left
    found = run_stage(MULTISLERP, [a, -shaken, 0 * a], {})
    assert float(found.norm()) == pytest.approx(2 / 3 * float(a.norm()), rel=1e-3)


def test_weights_that_cancel_are_an_error():
    assert "sum to 0" in MULTISLERP.problem({"weight": [1, -1], "normalize": True})
    with pytest.raises(RunError, match="sum to 0"):
        run_stage(MULTISLERP, normal((4,), 2), {"weight": [1, -1]})


@pytest.mark.parametrize("block", BLOCKS)
def test_any_block_size_gives_the_same_bits(block):
    tensors = normal((48, 100), 3)
    params = {"weight": WEIGHTS}
    assert torch.equal(
        run_stage(MULTISLERP, tensors, params, block=block), run_stage(MULTISLERP, tensors, params)
    )


@pytest.mark.parametrize("name", [n for n in hostile(3) if n != "antipodal"])
def test_hostile_inputs(name):
    tensors = hostile(3)[name]
    found = run_stage(MULTISLERP, tensors, {})
    assert found.isfinite().all()
    if name == "identical":
        torch.testing.assert_close(found, tensors[0])
    if name == "all zero":
        assert not found.any()
    if name in ("tiny", "subnormal"):  # shorter than eps: no directions, so the weighted sum
        close(found, sum(wide(tensors)) / 3)
    if name == "huge":
        close(found, oracle(wide(tensors), [1, 1, 1]))


def test_with_a_base_task_vectors_are_averaged():
    base, a, b = normal((12, 25), 3)
    found = run_method("multislerp", [a, b], base, {"weight": [1, 3]})
    close(found, base.double().numpy() + oracle(wide([a - base, b - base]), [1, 3]))


@pytest.mark.parametrize("normalize", [True, False])
def test_differentiable_in_the_weights(normalize):
    tensors = [t.double() for t in normal((6,), 3)]
    gram = [[float(x @ y) for y in tensors] for x in tensors]

    def merge(*values):
        return MULTISLERP.function(tensors, summary={"gram": gram}, weight=list(values), normalize=normalize)

    start = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in WEIGHTS]
    assert torch.autograd.gradcheck(merge, start)


def test_mergekit_spelling():
    spoken = registry.get("multislerp").dialects["mergekit"]
    assert {(s.name, s.scope, s.required, s.default) for s in spoken.parameters} == {
        ("weight", "expert", True, None),
        ("normalize_weights", "shared", False, True),
        ("eps", "shared", False, 1e-8),
    }
    assert (spoken.base, spoken.inputs) == ("optional", (1, None))
    tensors = normal((30,), 2)
    params = {"weight": [1.0, 2.0], "normalize_weights": False}
    found = run_method("multislerp", tensors, None, params, dialect="mergekit")
    close(found, 3 * oracle(wide(tensors), [1.0, 2.0]))


def test_one_model_is_returned_whatever_its_weight():
    (tensor,) = normal((30,), 1)
    assert MULTISLERP.problem({"weight": [0.0], "normalize": True}) is None
    assert MULTISLERP.problem({"weight": [1.0, -1.0], "normalize": True}) is not None
    assert torch.equal(run_stage(MULTISLERP, [tensor], {"weight": [0.0]}), tensor)
