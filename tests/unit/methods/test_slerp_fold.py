"""Slerp over many inputs, WARP and weighted Karcher means: the fold on vectors, and the cards' properties."""

from __future__ import annotations

import numpy as np
import oracles_catalogue as oracle
import pytest
import torch
from cases_catalogue import BASE, EXPERTS, SHAPES, check, plus, taus, wide
from cases_geometry import hostile

from cuvee.methods import registry
from cuvee.testing.stages import run_method, run_stage

torch.set_num_threads(1)
TAUS = taus()
WEIGHTS = [1.0, 2.0, 0.5]


def fold(parts, weights, axis, steps="share"):
    if axis == "whole":
        return oracle.folded([p.reshape(-1) for p in parts], weights, steps).reshape(parts[0].shape)
    length = parts[0].shape[-1] if parts[0].ndim else 1
    rows = [p.reshape(-1, length) for p in parts]
    out = np.stack([oracle.folded([r[i] for r in rows], weights, steps) for i in range(len(rows[0]))])
    return out.reshape(parts[0].shape)


@pytest.mark.parametrize("axis", ["whole", "last"])
@pytest.mark.parametrize("steps", ["share", "weight"])
def test_fold_of_task_vectors(axis, steps):
    weights = [0.3, 0.5, 0.2]
    wanted = plus({n: fold([tau[n] for tau in TAUS], weights, axis, steps) for n in SHAPES})
    params = {"axis": axis, "steps": steps, "weight": weights}
    check("slerp_fold", params, wanted, tolerance=1e-5)


def test_fold_of_models():
    wanted = {n: fold([wide(e)[n] for e in EXPERTS], WEIGHTS, "last") for n in SHAPES}
    merged = run_method("zsaslm_slerp", EXPERTS, None, {"weight": WEIGHTS})
    for n in SHAPES:
        np.testing.assert_allclose(merged[n].double().numpy(), wanted[n], rtol=0, atol=1e-5)


def test_warp():
    wanted = plus({n: 0.3 * fold([tau[n] for tau in TAUS], [1, 1, 1], "whole") for n in SHAPES})
    check("warp", None, wanted, tolerance=1e-5)
    start = run_method("warp", EXPERTS, BASE, {"eta": 0.0})
    assert all(torch.equal(start[n], BASE[n]) for n in SHAPES)
    alone = run_method("warp", EXPERTS[:1], BASE, {"eta": 1.0})
    assert all(torch.allclose(alone[n], EXPERTS[0][n], atol=1e-6) for n in SHAPES)
    merged = run_method(
        "warp", [torch.tensor([2.0, 0]), torch.tensor([0, 2.0])], torch.zeros(2), {"eta": 1.0}
    )
    assert merged.tolist() == pytest.approx([2**0.5, 2**0.5])  # right angles keep the length


def test_fold_properties():
    a, b = (torch.randn(50, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (1, 2))
    assert run_stage("slerp_fold", [a]).equal(a)
    for t in (0.0, 0.25, 1.0):
        two = run_stage("slerp_fold", [a, b], {"weight": [1 - t, t]})
        torch.testing.assert_close(two, run_stage("slerp", [a, b], {"t": t}))
    b = b * a.norm() / b.norm()
    assert float(run_stage("slerp_fold", [a, b]).norm()) == pytest.approx(float(a.norm()))
    first = run_stage("slerp_fold", [a, b, a + b], {"weight": [1.0, 0.0, 0.0]})
    torch.testing.assert_close(first, a)
    line = run_stage("slerp_fold", [a, 2 * a, -a])  # parallel and opposite
    torch.testing.assert_close(line, a * 1.5 * (2 / 3) - a / 3)
    units = list(torch.eye(3, dtype=torch.float64))
    assert run_stage("slerp_fold", units).tolist() == pytest.approx([0.61, 0.61, 0.50], abs=5e-3)
    shrunk = run_stage("slerp_fold", units[:2], {"weight": [0.5, 0.5], "steps": "weight"})
    assert shrunk.tolist() == pytest.approx([0.3536, 0.7071, 0], abs=1e-4)
    near = [units[0], units[0] + units[1]]
    assert run_stage("slerp_fold", near, {"threshold": 0.5}).tolist() == pytest.approx([1, 0.5, 0])
    assert run_stage("slerp_fold", near).tolist() != pytest.approx([1, 0.5, 0])


@pytest.mark.parametrize("axis", ["whole", "last"])
def test_fold_of_hostile_inputs_is_finite(axis):
    for name, tensors in hostile(4).items():
        if name == "huge":
            tensors = [t / 1e5 for t in tensors]
        found = run_stage("slerp_fold", tensors, {"axis": axis})
        assert found.isfinite().all(), name
        assert found.shape == tensors[0].shape
    zero = [torch.zeros(3), torch.zeros(3), torch.tensor([3.0, 0, 0])]
    assert run_stage("slerp_fold", zero, {"axis": axis}).tolist() == [1, 0, 0]


def test_weights_of_nothing_are_refused_when_planned():
    stage = registry.stage("slerp_fold")
    assert stage.problem({"weight": [0.0, 0.0], "steps": "share"})
    assert stage.problem({"weight": [0.0, 1.0], "steps": "share"}) is None
    assert stage.problem({"weight": [0.0, 0.0], "steps": "weight"}) is None
    assert run_stage("slerp_fold", [torch.ones(2), 3 * torch.ones(2)], {"weight": [0.0, 1.0]}).tolist() == [
        3,
        3,
    ]


def test_a_weighted_karcher_mean_moves_with_its_weights():
    units = [torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])]
    for share in (0.0, 0.2, 0.7, 1.0):
        found = run_stage("karcher", units, {"weight": [1 - share, share], "max_iter": 100, "tol": 1e-9})
        angle = share * np.pi / 2
        assert found.tolist() == pytest.approx([np.cos(angle), np.sin(angle), 0], abs=1e-6)
    shuffled = [torch.randn(20, generator=torch.Generator().manual_seed(i)) + 1 for i in range(4)]
    weights = [0.1, 0.5, 0.3, 0.4]
    params = {"max_iter": 200, "tol": 1e-10}
    one = run_stage("karcher", shuffled, {"weight": weights, **params})
    other = run_stage("karcher", shuffled[::-1], {"weight": weights[::-1], **params})
    torch.testing.assert_close(one, other)
