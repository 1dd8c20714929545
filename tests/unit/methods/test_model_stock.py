"""Model Stock: angles give steps; whole tensors, filters, averages of pairs, safe mode, gradients."""

import math

import pytest
import torch
from cases_geometry import BLOCKS, SHAPES, close, hostile, normal, wide
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_geometry import model_stock as oracle
from oracles_geometry import model_stock_step

from cuvee.methods import registry
from cuvee.methods.contract import Block
from cuvee.testing.stages import run_method, run_stage

STOCK = registry.stage("model_stock")
CUTS = {
    "whole": {},
    "output": {"filter_wise": True},
    "last": {"filter_wise": True, "filter_axis": "last"},
}


def at_angle(degrees: float, count: int) -> list[torch.Tensor]:
    """Unit vectors that all stand at the same angle to each other."""
    cosine = math.cos(math.radians(degrees))
    gram = torch.full((count, count), cosine, dtype=torch.float64).fill_diagonal_(1.0)
    return [row.float() for row in torch.linalg.cholesky(gram)]


@pytest.mark.parametrize(("count", "step"), [(2, 2 / 3), (3, 3 / 4)])
def test_sixty_degrees(count, step):
    deltas = at_angle(60, count)
    torch.testing.assert_close(run_stage(STOCK, deltas, {}), step * sum(deltas) / count)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("average", ["cosines", "angles"])
@pytest.mark.parametrize("count", [2, 4])
def test_agrees_with_the_oracle(shape, cut, average, count):
    deltas = normal(shape, count)
    found = run_stage(STOCK, deltas, {**CUTS[cut], "average": average})
    close(found, oracle(wide(deltas), cut=cut, average=average))


def test_identical_experts_come_back_and_orthogonal_ones_do_not_move():
    (tau,) = normal((6, 30), 1)
    for cut in CUTS.values():
        torch.testing.assert_close(run_stage(STOCK, [tau] * 3, cut), tau)
    assert not run_stage(STOCK, list(torch.eye(3)), {}).any()


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(3)))
def test_order_does_not_matter(order):
    deltas = normal((6, 30), 3)
    found = run_stage(STOCK, [deltas[i] for i in order], {})
    torch.testing.assert_close(found, run_stage(STOCK, deltas, {}), rtol=0, atol=2e-6)


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-12, 1e12), st.sampled_from(list(CUTS)))
def test_scale_equivariant_at_any_scale(factor, cut):
    deltas = normal((6, 30), 3)
    scaled = run_stage(STOCK, [factor * d for d in deltas], CUTS[cut])
    plain = run_stage(STOCK, deltas, CUTS[cut])
    torch.testing.assert_close(scaled / factor, plain, rtol=1e-5, atol=1e-6)


def test_a_floor_shrinks_the_cosine_of_small_changes():
    deltas = [1e-5 * d for d in normal((30,), 2)]
    close(run_stage(STOCK, deltas, {"floor": 1e-6}), oracle(wide(deltas), floor=1e-6))
    assert float(run_stage(STOCK, deltas, {"floor": 1e-6}).norm()) < 0.1 * float(
        run_stage(STOCK, deltas, {}).norm()
    )


def test_opposing_changes():
    deltas = at_angle(100, 2)
    assert not run_stage(STOCK, deltas, {}).any()  # safe mode: stay at the base
    step = model_stock_step(wide(deltas), clamp=False)
    assert step < -0.4
    torch.testing.assert_close(run_stage(STOCK, deltas, {"clamp": False}), step * (deltas[0] + deltas[1]) / 2)


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("cut", CUTS)
def test_a_denominator_of_zero_leaves_the_base(clamp, cut):
    (tau,) = normal((6, 30), 1)
    assert not run_stage(STOCK, [tau, -tau], {**CUTS[cut], "clamp": clamp}).any()
    three = [torch.tensor([math.cos(a), math.sin(a)]) for a in (0.0, 2 * math.pi / 3, 4 * math.pi / 3)]
    assert float(run_stage(STOCK, three, {"clamp": clamp}).abs().max()) < 1e-6


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_safe_mode_stays_between_base_and_average(seed, count):
    generator = torch.Generator().manual_seed(seed)
    deltas = [torch.randn(3, generator=generator) for _ in range(count)]
    mean = sum(deltas) / count
    found = run_stage(STOCK, deltas, {})
    assert float(found.norm()) <= float(mean.norm()) * (1 + 1e-6)
    assert float((found * mean).sum()) >= -1e-6


def test_a_vector_is_one_filter_and_a_convolution_has_one_for_each_output():
    vector = normal((40,), 2)
    assert torch.allclose(run_stage(STOCK, vector, CUTS["output"]), run_stage(STOCK, vector, {}))
    a, b = normal((5, 4, 3, 3), 2)
    by_filter = torch.stack([run_stage(STOCK, [x, y], {}) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(run_stage(STOCK, [a, b], CUTS["output"]), by_filter)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("block", BLOCKS)
def test_any_block_size_gives_the_same_bits(cut, block):
    for shape in ((48, 100), (2050, 1), (7, 5, 3, 3)):
        deltas = normal(shape, 3)
        assert torch.equal(
            run_stage(STOCK, deltas, CUTS[cut], block=block), run_stage(STOCK, deltas, CUTS[cut])
        )


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", hostile(3))
def test_hostile_inputs(name, cut):
    deltas = hostile(3)[name]
    found = run_stage(STOCK, deltas, CUTS[cut])
    assert found.isfinite().all()
    assert found.shape == deltas[0].shape
    if found.numel():
        close(found, oracle(wide(deltas), cut=cut), relative=1e-5)


@pytest.mark.parametrize("cut", CUTS)
def test_gradients_are_right_and_finite_at_singular_filters(cut):
    deltas = [d.double().requires_grad_() for d in normal((3, 4), 3)]
    block = Block(deltas, 0, (3, 4))
    values = {"filter_wise": cut != "whole", "filter_axis": "last" if cut == "last" else "output"}
    if cut != "whole":
        assert torch.autograd.gradcheck(lambda *d: STOCK.function(list(d), block=block, **values), deltas)
    opposed = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    pair = [opposed, -opposed]
    summary = {"gram": [[6.0, -6.0], [-6.0, 6.0]]} if cut == "whole" else {}
    STOCK.function(pair, block=Block(pair, 0, (2, 3)), summary=summary, **values).sum().backward()
    assert opposed.grad.isfinite().all()


def test_mergekit_spelling():
    """Vectors along the last axis, no safe mode, and norms that are raised to 1e-6."""
    spoken = registry.get("model_stock").dialects["mergekit"]
    assert [(s.name, s.default) for s in spoken.parameters] == [("filter_wise", False)]
    assert (spoken.base, spoken.inputs) == ("required", (2, None))
    base, a, b = normal((5, 4, 3), 3)
    for flag, cut in ((False, "whole"), (True, "last")):
        found = run_method("model_stock", [a, b], base, {"filter_wise": flag}, dialect="mergekit")
        taus = wide([a - base, b - base])
        close(found, base.double().numpy() + oracle(taus, cut=cut, clamp=False, floor=1e-6))
