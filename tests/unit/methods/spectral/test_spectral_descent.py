"""WUDI, OptMerge and DOGE against autograd of the published losses and torch's own optimizers."""

from __future__ import annotations

import pytest
import torch
from official_loops import doge_delta, official_mask, optmerge, wudi

from cuvee.methods.combine.spectral.quadratic import adam_steps, sgd_steps
from cuvee.testing.stages import run_method, run_stage

SHAPES = [(12, 8), (8, 12), (9, 9)]


def draw(shape, count, seed=0, scale=0.01):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def close(found, expected, tolerance):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize(("ours", "theirs"), [(adam_steps, torch.optim.Adam), (sgd_steps, torch.optim.SGD)])
def test_steps_are_those_of_torch(ours, theirs):
    target = torch.randn(7, 5)
    point = torch.nn.Parameter(torch.zeros(7, 5))
    optimizer = theirs([point], lr=0.03, **({"momentum": 0.9} if theirs is torch.optim.SGD else {}))
    for _ in range(20):
        optimizer.zero_grad()
        (point - target).square().sum().backward()
        optimizer.step()
    found = ours(lambda x: 2 * (x - target), torch.zeros(7, 5), 20, 0.03)
    assert torch.equal(found, point.detach())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_wudi_is_the_official_loop(shape, dtype):
    taus = [t.to(dtype) for t in draw(shape, 3)]
    found = run_stage("wudi", taus, {"steps": 120})
    tolerance = 1e-4 if dtype == torch.float32 else 1e-7
    close(found, wudi(taus, 120), tolerance)
    assert (found - sum(taus)).norm() > 0.01 * found.norm()


def test_wudi_properties():
    (tau,) = draw((9, 6), 1)
    assert torch.equal(run_stage("wudi", [tau]), tau)
    apart = [torch.zeros(6, 6, dtype=torch.float64) for _ in range(2)]
    apart[0][:, :3], apart[1][:, 3:] = draw((6, 3), 2)
    close(run_stage("wudi", apart), sum(apart), 1e-9)
    taus = draw((9, 6), 3)
    losses = [loss(run_stage("wudi", taus, {"steps": n}), taus) for n in (0, 50, 200)]
    assert losses == sorted(losses, reverse=True)
    zero = torch.zeros(9, 6, dtype=torch.float64)
    close(run_stage("wudi", [*taus, zero]), run_stage("wudi", taus), 1e-12)


def loss(point, taus):
    return float(sum(((point - t) @ t.T).norm() ** 2 / t.norm() ** 2 for t in taus))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_optmerge_is_the_official_loop(shape, kind):
    taus = draw(shape, 3)
    params = {"experts": kind, "steps": 80}
    if kind == "lora":
        params["lr"] = 0.05
    found = run_stage("optmerge", taus, params)
    close(found, optmerge(taus, 80, kind == "lora", params.get("lr")), 1e-7)
    start = sum(taus) if kind == "full" else sum(taus) / 3
    assert (found - start).norm() > 0.003 * found.norm()


def test_optmerge_default_rates_are_the_published_ones():
    taus = draw((8, 6), 2)
    close(run_stage("optmerge", taus, {"steps": 5}), optmerge(taus, 5), 1e-8)
    lora = run_stage("optmerge", taus, {"steps": 5, "experts": "lora"})
    close(lora, optmerge(taus, 5, lora=True), 1e-9)


@pytest.mark.parametrize("sgd", [False, True])
def test_doge_is_the_released_algorithm(sgd):
    shapes = {"encoder.layers.0.w": (12, 8), "encoder.layers.1.w": (8, 12), "bias": (6,)}
    taus = {name: draw(shape, 3, seed) for seed, (name, shape) in enumerate(shapes.items())}
    base = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    experts = [{name: base[name] + t[i] for name, t in taus.items()} for i in range(3)]
    params = {"steps": 60, "optimizer": "sgd" if sgd else "adam", "lr": 50.0 if sgd else 1e-4}
    out = run_method("doge_ta", experts, base, params)
    matrices = [name for name in shapes if name != "bias"]
    # experts less base is not the drawn task vector to the last digit: the official code sees the difference
    taus = {name: [expert[name] - base[name] for expert in experts] for name in shapes}
    masks = [official_mask(torch.cat([taus[n][i].reshape(-1) for n in matrices]), 0.3) for i in range(3)]
    start = 0
    for name in matrices:
        delta, strengths, left = doge_delta(taus[name], steps=60, lr=params["lr"], sgd=sgd)
        size = taus[name][0].numel()
        own = [mask[start : start + size].reshape(shapes[name]) for mask in masks]
        start += size
        change = sum(s * (t + delta) * m for s, t, m in zip(strengths, taus[name], own, strict=True))
        close(out[name] - base[name], change, 1e-6)
        assert delta.abs().max() > 1e-5
        if sgd:
            assert (left.T @ delta).abs().max() < 1e-9
    assert torch.equal(out["bias"], base["bias"])


def test_doge_without_steps_is_trimmed_arithmetic_of_normalised_task_vectors():
    taus = draw((10, 10), 2)
    expected = sum(0.07 / t.norm() * t * official_mask(t.reshape(-1), 0.3).reshape(t.shape) for t in taus)
    found = run_stage("doge_ta", taus, {"steps": 0})
    close(found, expected, 1e-9)
    close(run_stage("doge_ta", [5 * t for t in taus], {"steps": 0}), expected, 1e-9)
