"""LiNeS, layer-wise pruning, one-bit task vectors and keeping near the base: oracles, examples, properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases_catalogue import BASE, EXPERTS, PLACES, SHAPES, check, plus, taus, wide

from cuvee.methods.contract import Place
from cuvee.testing.stages import run_method, run_stage

torch.set_num_threads(1)
TAUS = taus()
SUM = {name: sum(tau[name] for tau in TAUS) for name in SHAPES}


def factor(name, alpha, beta):
    layer = PLACES[name].layer
    return alpha if layer is None else alpha + beta * layer / 2


# --- LiNeS ---


def test_lines_with_given_ends():
    wanted = plus({n: factor(n, 0.2, 0.8) * SUM[n] for n in SHAPES})
    check("lines", {"alpha": 0.2, "beta": 0.8}, wanted)
    check("lines", {"alpha": 0.2}, wanted)  # β = 1 − α
    ends = {PLACES[n].layer: factor(n, 0.2, 0.8) for n in SHAPES}
    assert ends == {None: 0.2, 0: 0.2, 1: 0.6000000000000001, 2: 1.0}


def test_lines_finds_alpha_for_several_tasks():
    check("lines", {"beta": 0.4}, plus({n: factor(n, 1 / 3, 0.4) * SUM[n] for n in SHAPES}))
    weights = [0.5, 0.0, 2.0]
    merged = {n: sum(w * t[n] for w, t in zip(weights, TAUS, strict=True)) for n in SHAPES}
    alpha = sum(np.abs(x).sum() for x in SUM.values()) / sum(np.abs(x).sum() for x in merged.values()) / 3
    wanted = plus({n: factor(n, alpha, 0.4) * merged[n] for n in SHAPES})
    check("lines", {"beta": 0.4, "weight": weights}, wanted)


def test_lines_after_a_chain_counts_task_vectors_as_they_entered():
    import cuvee

    layers = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)]
    generator = torch.Generator().manual_seed(2)
    base = {n: torch.randn(8, 9, generator=generator) for n in layers}
    models = [{n: base[n] + torch.randn(8, 9, generator=generator) for n in layers} for _ in range(2)]
    chain = [("trim", {"density": 0.5, "scope": "tensor"}), "weighted_sum", ("lines", {"beta": 0.0})]
    merged = cuvee.merge(models, base=base, method=chain).load()
    vectors = [{n: model[n] - base[n] for n in layers} for model in models]
    kept = {}
    for n in layers:
        kept[n] = torch.zeros(72)
        for vector in vectors:
            order = vector[n].reshape(-1).abs().argsort(descending=True)[:36]
            kept[n][order] += vector[n].reshape(-1)[order]
    summed = sum(float((vectors[0][n] + vectors[1][n]).abs().sum()) for n in layers)
    alpha = summed / sum(float(x.abs().sum()) for x in kept.values()) / 2
    for n in layers:
        torch.testing.assert_close(merged[n], base[n] + alpha * kept[n].reshape(8, 9), rtol=0, atol=1e-5)


def test_lines_properties():
    same = run_method("lines", EXPERTS[:1], BASE, {"alpha": 1.0, "beta": 0.0}, places=PLACES)
    assert all(torch.allclose(same[n], EXPERTS[0][n], atol=1e-6) for n in SHAPES)
    uniform = run_method("lines", EXPERTS, BASE, {"alpha": 0.3, "beta": 0.0}, places=PLACES)
    scaled = run_method("task_arithmetic", EXPERTS, BASE, {"lambda": 0.3}, places=PLACES)
    assert all(torch.equal(uniform[n], scaled[n]) for n in SHAPES)
    single = run_method("lines", EXPERTS[:1], BASE, {"alpha": 0.1}, places=PLACES)
    last = [n for n in SHAPES if PLACES[n].layer == 2]
    assert all(torch.allclose(single[n], EXPERTS[0][n], atol=1e-6) for n in last)
    only = {"x": Place("layers.0.x", "o", 0, 1)}  # one layer: no division by 0
    alone = run_method("lines", [{"x": torch.ones(2)}], {"x": torch.zeros(2)}, {"alpha": 0.25}, places=only)
    assert alone["x"].tolist() == [0.25, 0.25]
    nothing = run_method("lines", [BASE, BASE], BASE, None, places=PLACES)
    assert all(torch.equal(nothing[n], BASE[n]) for n in SHAPES)


# --- layers that changed most ---


def kept_layers(tau, keep, outside="keep"):
    base = wide(BASE)

    def norm(model, layer):
        return np.sqrt(sum((model[n] ** 2).sum() for n in SHAPES if PLACES[n].layer == layer))

    scores = [norm(tau, layer) / norm(base, layer) for layer in range(3)]
    order = sorted(range(3), key=lambda layer: (-scores[layer], layer))[: round(keep * 3)]
    known = {None: outside == "keep", **{layer: layer in order for layer in range(3)}}
    return {n: tau[n] * known[PLACES[n].layer] for n in SHAPES}


@pytest.mark.parametrize("outside", ["keep", "drop"])
def test_layers_that_changed_least_are_dropped(outside):
    strong = [
        {n: x + (1 + ((PLACES[n].layer or 0) + i) % 3) * (e[n] - x) for n, x in BASE.items()}
        for i, e in enumerate(EXPERTS)
    ]
    vectors = taus(strong)
    keeps = [1 / 3, 2 / 3, 0.5]
    parts = [kept_layers(v, k, outside) for v, k in zip(vectors, keeps, strict=True)]
    assert len({tuple(sorted(n for n in SHAPES if not p[n].any())) for p in parts}) > 1
    wanted = plus({n: 0.5 * sum(p[n] for p in parts) for n in SHAPES})
    check("lwptv", {"keep": keeps, "outside": outside, "lambda": 0.5}, wanted, models=strong)


def test_dropped_layers_are_the_base_bit_for_bit():
    none = run_method("lwptv", EXPERTS, BASE, {"keep": 0.0, "outside": "drop"}, places=PLACES)
    assert all(torch.equal(none[n], BASE[n]) for n in SHAPES)
    every = run_method("lwptv", EXPERTS, BASE, {"keep": 1.0}, places=PLACES)
    added = run_method("task_arithmetic", EXPERTS, BASE, None, places=PLACES)
    assert all(torch.equal(every[n], added[n]) for n in SHAPES)
    half = run_method("lwptv", EXPERTS, BASE, {"keep": 0.3}, places=PLACES)
    untouched = [layer for layer in range(3) if all(
        torch.equal(half[n], BASE[n]) for n in SHAPES if PLACES[n].layer == layer)]  # fmt: skip
    assert untouched
    zero = {n: torch.zeros_like(x) for n, x in BASE.items()}  # a change of nothing is infinitely large
    assert all(
        x.isfinite().all() for x in run_method("lwptv", EXPERTS, zero, {"keep": 0.5}, places=PLACES).values()
    )


# --- one bit ---


def test_one_bit_task_vectors():
    bits = [{n: np.abs(t[n]).mean() * np.where(t[n] < 0, -1, 1) for n in SHAPES} for t in TAUS]
    wanted = plus({n: 0.4 * sum(b[n] for b in bits) for n in SHAPES})
    check("onebit_task_vector", {"lambda": 0.4}, wanted)
    mixed = plus({n: TAUS[0][n] + bits[1][n] + bits[2][n] for n in SHAPES})
    check("onebit_task_vector", {"compress": [False, True, True]}, mixed)


def test_one_bit_properties():
    assert run_stage("one_bit", torch.tensor([1.0, -3.0])).tolist() == [2, -2]
    x = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = run_stage("one_bit", x)
    assert float(found.abs().sum()) == pytest.approx(float(x.abs().sum()))
    assert float(((x - found) * x.sign()).sum()) == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(run_stage("one_bit", found), found)
    torch.testing.assert_close(run_stage("one_bit", 4 * x), 4 * found)
    assert run_stage("one_bit", torch.tensor([0.0, 2.0])).tolist() == [1, 1]
    assert run_stage("one_bit", torch.zeros(3)).tolist() == [0, 0, 0]


# --- ORBIT ---


def norm(vector):
    return np.sqrt(sum((x**2).sum() for x in vector.values()))


def test_orbit_projects_onto_the_ball():
    tau, length = TAUS[0], norm(TAUS[0])
    wanted = plus({n: tau[n] * 3.0 / length for n in SHAPES})
    merged = check("orbit", {"radius": 3.0}, wanted, models=EXPERTS[:1])
    assert norm({n: merged[n].double().numpy() - wide(BASE)[n] for n in SHAPES}) == pytest.approx(3, rel=1e-5)
    relative = 3.0 / norm(wide(BASE))
    check("orbit", {"radius": relative, "distance": "relative"}, wanted, models=EXPERTS[:1])
    wanted = plus({n: 0.25 * tau[n] for n in SHAPES})
    check("orbit", {"radius": 3.0, "pull": "average", "share": 0.25}, wanted, models=EXPERTS[:1])
    each = plus({n: tau[n] * min(1, 0.5 / np.sqrt((tau[n] ** 2).sum())) for n in SHAPES})
    check("orbit", {"radius": 0.5, "scope": "tensor"}, each, models=EXPERTS[:1])


def test_orbit_leaves_what_is_near_alone():
    for params in ({"radius": 1e9}, {"radius": 1.0, "pull": "average", "share": 1.0}):
        near = run_method("orbit", EXPERTS[:1], BASE, params)
        alone = run_method("task_arithmetic", EXPERTS[:1], BASE)
        assert all(torch.equal(near[n], alone[n]) for n in SHAPES)
    for params in ({"radius": 0.0}, {"radius": 0.0, "pull": "average", "share": 0.0}):
        reset = run_method("orbit", EXPERTS[:1], BASE, params)
        assert all(torch.equal(reset[n], BASE[n]) for n in SHAPES)
    unchanged = run_method("orbit", [BASE], BASE, {"radius": 0.0, "distance": "relative"})
    assert all(torch.equal(unchanged[n], BASE[n]) for n in SHAPES)
