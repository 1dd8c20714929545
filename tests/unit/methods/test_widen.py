"""WIDEN against the released code's way in float64, and the properties of its card."""

from __future__ import annotations

import numpy as np
import oracles_catalogue as oracle
import pytest
import torch
from cases_catalogue import BASE, EXPERTS, SHAPES, check, wide

from cuvee.methods.combine.widen import _moves, _products, _ranks
from cuvee.methods.contract import Place
from cuvee.testing.stages import run_method, run_stage
from cuvee.testing.streams import MemoryStream

torch.set_num_threads(1)


@pytest.mark.parametrize(("ratio", "calibration"), [(1.0, 1.0), (1.5, 0.8), (-1.0, 1.0)])
@pytest.mark.parametrize("axis", ["role", "column", "row"])
def test_widen(ratio, calibration, axis):
    base, others = wide(BASE), [wide(e) for e in EXPERTS]
    transposed = {n: axis == "row" or (axis == "role" and n == "embed.weight") for n in SHAPES}
    wanted = {
        n: oracle.widen(base[n], [o[n] for o in others], ratio, calibration, transposed[n]) for n in SHAPES
    }
    check("widen", {"ratio": ratio, "calibration": calibration, "axis": axis}, wanted, tolerance=1e-6)
    if ratio < 0:
        added = run_method("task_arithmetic", EXPERTS, BASE)
        assert all(np.allclose(added[n].double().numpy(), wanted[n], atol=1e-5) for n in SHAPES)


def matrices(count, shape=(6, 9)):
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def test_one_expert_comes_back():
    base, expert = matrices(2)
    torch.testing.assert_close(run_stage("widen", [base, expert]), expert)
    torch.testing.assert_close(run_stage("widen", [base[0], expert[0]]), expert[0])


def test_widen_does_not_depend_on_the_order_of_experts():
    base, *others = matrices(4)
    one, other = run_stage("widen", [base, *others]), run_stage("widen", [base, *others[::-1]])
    torch.testing.assert_close(one, other)


def test_identical_experts_are_added_by_their_ranks():
    base, expert = matrices(2)
    found = run_stage("widen", [base, expert, expert])
    ratio = (found - base) / (expert - base)
    by_column = [sorted({round(float(x), 6) for x in column}) for column in ratio.T]
    assert all(len(values) == 1 for values in by_column)
    assert {values[0] for values in by_column} <= {1.0, 1.5, 2.0}
    assert len({values[0] for values in by_column}) > 1


def test_columns_that_hardly_turned_are_ranked_by_how_much_they_did():
    """Cosines of float64 differ from 1 by less than they are exact; the changes themselves still tell."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(64, 8, generator=generator, dtype=torch.float64)
    aside = torch.randn(64, 8, generator=generator, dtype=torch.float64)
    aside = aside - base * (aside * base).sum(0) / base.square().sum(0)  # at right angles to each column
    angles = torch.tensor([5.0, 1, 8, 2, 7, 3, 6, 4], dtype=torch.float64) * 1e-10
    turned = base + aside / aside.norm(dim=0) * base.norm(dim=0) * angles
    other = base + 1e-3 * torch.randn(64, 8, generator=generator, dtype=torch.float64)
    _, direction = _moves(_products(MemoryStream([[base, turned, other]], "row"), by_row=False))
    assert _ranks(direction)[0].tolist() == [4, 0, 7, 1, 6, 2, 5, 3]
    np.testing.assert_allclose(direction[0].numpy(), (angles.numpy() ** 2) / 2, rtol=1e-4)


def test_lengths_that_hardly_changed_are_told_apart():
    base = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)).double()
    shares = torch.tensor([5.0, 1, 8, 2, 7, 3, 6, 4], dtype=torch.float64) * 1e-15
    longer, _ = _moves(_products(MemoryStream([[base, base * (1 + shares)]], "row"), by_row=False))
    wanted = (base * (1 + shares) - base).mul(base).sum(0) / base.norm(dim=0)  # as float64 holds it
    np.testing.assert_allclose(longer[0].numpy(), wanted.numpy(), rtol=1e-6)


def test_hostile_tensors_stay_finite():
    base = torch.zeros(4, 6)
    expert = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    for tensors in ([base, expert, base], [expert, base, base], [base, base, base], [expert, expert, expert]):
        assert run_stage("widen", tensors).isfinite().all()
    assert run_stage("widen", [torch.zeros(0, 3)] * 3).shape == (0, 3)
    assert run_stage("widen", [torch.zeros(3, 0)] * 3).shape == (3, 0)
    place = {"x": Place("embed", "embeddings", None, 0)}
    found = run_method("widen", [{"x": expert}] * 2, {"x": base}, None, places=place, block=1024)
    assert found["x"].isfinite().all()
