"""NuSLERP: whole tensors, rows and columns against a float64 oracle, the card's properties, gradients."""

import pytest
import torch
from cases_geometry import BLOCKS, SHAPES, close, hostile, normal, wide
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_geometry import nuslerp as oracle

from cuvee.methods import registry
from cuvee.methods.contract import Block
from cuvee.testing.stages import run_method, run_stage

NUSLERP = registry.stage("nuslerp")
CUTS = {
    "whole": {},
    "last": {"flatten": False},
    "first": {"flatten": False, "axis": "first"},
}


def run(tensors, weight, cut="whole", **options):
    return run_stage(NUSLERP, tensors, {"weight": list(weight), **CUTS[cut]}, **options)


def test_worked_example():
    found = run([torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])], [1, 1])
    torch.testing.assert_close(found, torch.tensor([2**0.5, 0.5**0.5]))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("cut", CUTS)
def test_agrees_with_the_oracle(shape, cut):
    tensors = normal(shape, 2)
    close(run(tensors, [0.3, 0.9], cut), oracle(*wide(tensors), [0.3, 0.9], cut=cut))


def test_rows_and_columns_are_what_they_say():
    a, b = normal((5, 30), 2)
    by_row = torch.stack([run([x, y], [1, 2]) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(run([a, b], [1, 2], "last"), by_row)
    torch.testing.assert_close(run([a.T, b.T], [1, 2], "first"), by_row.T)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.01, 10), st.floats(0.01, 10), st.floats(0.01, 100))
def test_only_the_ratio_of_weights_matters(first, second, factor):
    tensors = normal((60,), 2)
    plain, scaled = run(tensors, [first, second]), run(tensors, [factor * first, factor * second])
    torch.testing.assert_close(plain, scaled, rtol=0, atol=3e-6)


@pytest.mark.parametrize("cut", CUTS)
def test_a_weight_of_zero_leaves_the_other_model(cut):
    a, b = normal((8, 30), 2)
    torch.testing.assert_close(run([a, b], [0, 2], cut), b)
    torch.testing.assert_close(run([a, b], [3, 0], cut), a)


@pytest.mark.parametrize("weight", [[1, -1], [0, 0], [1e-7, 1e-7]])
def test_weights_that_sum_to_nothing_count_as_equal(weight):
    tensors = normal((8, 30), 2)
    assert torch.equal(run(tensors, weight), run(tensors, [1, 1]))


@settings(deadline=None, max_examples=20)
@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_swapping_models_and_weights_changes_nothing(first, second):
    a, b = normal((60,), 2)
    swapped = run([b, a], [second, first])
    torch.testing.assert_close(run([a, b], [first, second]), swapped, rtol=0, atol=3e-6)


def test_equal_norms_are_kept():
    a, b = normal((9, 80), 2)
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    torch.testing.assert_close(run([a, b], [1, 3], "last").norm(dim=1), torch.ones(9))


def test_a_zero_row_stands_at_a_right_angle():
    a, b = normal((4, 30), 2)
    a[1] = 0
    found = run([a, b], [1, 2], "last")
    quarter = torch.sin(torch.tensor(2 / 3 * torch.pi / 2))
    torch.testing.assert_close(found[1], quarter * b[1])


def test_nearly_colinear_rows_keep_their_digits():
    """At an angle of 1e-5 arc and line agree to 1e-10; a float32 angle would be wrong in its first digit."""
    a, noise = normal((40,), 2)
    b = a + 1e-5 * noise
    torch.testing.assert_close(run([a, b], [0.7, 0.3]), 0.7 * a + 0.3 * b, rtol=0, atol=1e-6)
    close(run([a, b], [0.7, 0.3]), oracle(*wide([a, b]), [0.7, 0.3]))


def test_nearly_opposite_models_go_round_the_sphere():
    """The way from (1, 0) to (−1, 0⁺) leads through (0, 1); a line would pass the origin."""
    found = run([torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1e-5])], [1, 1])
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("block", BLOCKS)
def test_any_block_size_gives_the_same_bits(cut, block):
    for shape in ((48, 100), (2050, 1), (7, 5, 3, 3)):
        tensors = normal(shape, 2)
        assert torch.equal(run(tensors, [1, 2], cut, block=block), run(tensors, [1, 2], cut))


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", hostile(2))
def test_hostile_inputs(name, cut):
    tensors = hostile(2)[name]
    found = run(tensors, [0.6, 0.4], cut)
    assert found.shape == tensors[0].shape
    assert found.isfinite().all()
    if found.numel():
        close(found, oracle(*wide(tensors), [0.6, 0.4], cut=cut))
    if name == "identical":
        torch.testing.assert_close(found, tensors[0])


def test_with_a_base_task_vectors_are_interpolated():
    base, a, b = normal((12, 25), 3)
    found = run_method("nuslerp", [a, b], base, {"weight": [1, 3]})
    close(found, base.double().numpy() + oracle(*wide([a - base, b - base]), [1, 3]))
    nothing = torch.zeros_like(base)
    assert torch.equal(
        run_method("nuslerp", [a, b], nothing, {"weight": [1, 3]}),
        run_method("nuslerp", [a, b], None, {"weight": [1, 3]}),
    )


@pytest.mark.parametrize("cut", CUTS)
def test_differentiable_in_weights_and_models(cut):
    tensors = [t.double().requires_grad_() for t in normal((3, 4), 2)]
    start = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.4, 0.9)]
    values = {"flatten": True, "axis": "last", **CUTS[cut]}
    plain = [t.detach() for t in tensors]
    gram = [[float((x * y).sum()) for y in plain] for x in plain]
    block = Block(tensors, 0, tuple(tensors[0].shape))

    def merge(first, second, *models):
        summary = {"gram": gram} if cut == "whole" else {}
        return NUSLERP.function(list(models), weight=[first, second], block=block, summary=summary, **values)

    if cut == "whole":  # the angle comes from a summary, so only the weights are variables
        assert torch.autograd.gradcheck(lambda *w: merge(*w, *plain), start)
    else:
        assert torch.autograd.gradcheck(merge, (*start, *tensors))


def test_mergekit_spelling():
    """`nuslerp_row_wise: true` takes vectors along the first axis, whatever its name says."""
    spoken = registry.get("nuslerp").dialects["mergekit"]
    assert {(s.name, s.scope, s.required, s.default) for s in spoken.parameters} == {
        ("weight", "expert", True, None),
        ("nuslerp_flatten", "shared", False, True),
        ("nuslerp_row_wise", "shared", False, False),
    }
    assert (spoken.base, spoken.inputs) == ("optional", (2, 2))
    a, b = normal((6, 9), 2)
    for flags, cut in (
        ({}, "whole"),
        ({"nuslerp_row_wise": True}, "whole"),
        ({"nuslerp_flatten": False}, "last"),
        ({"nuslerp_flatten": False, "nuslerp_row_wise": True}, "first"),
    ):
        found = run_method("nuslerp", [a, b], None, {"weight": [1.0, 2.0], **flags}, dialect="mergekit")
        close(found, oracle(*wide([a, b]), [1, 2], cut=cut))
