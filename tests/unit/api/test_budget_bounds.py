"""Attacks on the bounds of budgets: whatever the experts, the method and the types, the error stays within them."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cuvee.api import budget_sample
from cuvee.api.blend import Blend
from cuvee.api.budget import budgeted, make_catalogue, measured
from cuvee.api.budgeted_plan import Sample
from cuvee.api.execute import load
from cuvee.api.sparing import memo_of
from cuvee.engine.options import RunOptions
from cuvee.engine.run import run
from cuvee.errors import NonFinite, PlanError, RunError
from cuvee.plan import pages
from cuvee.recipe.load import parse_recipe
from cuvee.sinks.memory import MemorySink
from cuvee.sources import catalogue as catalogues

SHAPES = {"a.weight": (160, 64), "b.weight": (100, 33), "c.bias": (77,), "d.weight": (128, 64)}
BLOCK = 4096  # bytes
OPTIONS = RunOptions(threads=1)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch, tmp_path):
    monkeypatch.setattr(catalogues, "BLOCK", BLOCK)
    monkeypatch.setattr(pages, "PAGE", 64)
    monkeypatch.setattr(budget_sample, "PAGE", 64)
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))


def one_tensor(random, tensor, name, k):
    return random.standard_normal(tensor.shape) * (name == "b.weight")


def heavy(random, tensor, name, k):
    return random.standard_cauchy(tensor.shape) ** 3 * 1e-5


def flipped(random, tensor, name, k):
    """Task vectors that cancel but for a little, so that votes hang on a hair."""
    fixed = np.random.default_rng(1).standard_normal(tensor.shape)
    return fixed * (1e-2 if k % 2 else -1.0001e-2)


def spiked(random, tensor, name, k):
    found = np.zeros(tensor.numel())
    found[random.integers(tensor.numel(), size=3)] = 10.0 ** random.integers(-6, 3, size=3)
    return found.reshape(tensor.shape)


def tiny(random, tensor, name, k):
    return random.standard_normal(tensor.shape) * 10.0 ** float(random.integers(-44, -30))


def equal(random, tensor, name, k):
    """One magnitude everywhere: thresholds are ties."""
    return np.sign(random.standard_normal(tensor.shape)) * 0.0078125 * (random.random(tensor.shape) < 0.7)


def few(random, tensor, name, k):
    """Some blocks carry nearly everything."""
    exponents = np.random.default_rng(len(name)).integers(0, 6, size=-(-tensor.numel() // 2048))
    noise = random.standard_normal(tensor.numel()) * np.repeat(0.1**exponents, 2048)[: tensor.numel()]
    return noise.reshape(tensor.shape)


MAKERS = [one_tensor, heavy, flipped, spiked, tiny, equal, few]
MERGES = [
    "{method: task_arithmetic, lambda: 0.7}",
    "{method: linear}",
    "{method: ties, density: 1}",
    "{method: ties, density: 0.3}",
    "{method: ties, density: 0.6, scope: tensor, merge: sum}",
    "{method: ties, density: 0.9, merge: max}",
    "{method: ties, density: 0.5, count: official, divisor: count, vote: unweighted}",
    "{method: ties, density: 0.4, vote: count}",
    "{method: breadcrumbs, density: 0.8, gamma: 0.05}",
    "{method: magmax}",
]
TYPES = [
    (torch.float32, ""),
    (torch.bfloat16, ""),
    (torch.bfloat16, "output: {dtype: float32}\n"),
    (torch.float16, ""),
]


def write(folder, seed, make, dtype, size):
    random = np.random.default_rng(seed)
    base = {n: torch.from_numpy(random.standard_normal(s) * size).to(dtype) for n, s in SHAPES.items()}
    for k in range(4):
        found = base
        if k:
            found = {n: t.double() + torch.from_numpy(make(random, t, n, k) * size) for n, t in base.items()}
        folder_ = folder / ("base" if not k else f"e{k}")
        folder_.mkdir()
        limit = torch.finfo(dtype).max
        tensors = {n: t.clamp(-limit, limit).to(dtype).contiguous() for n, t in found.items()}
        save_file(tensors, folder_ / "model.safetensors")
    return random


def plan_of(folder, merge, weights, tail=""):
    rows = "".join(
        f"  e{k}: ./e{k}\n" if "magmax" in merge else f"  e{k}: {{source: ./e{k}, weight: {w}}}\n"
        for k, w in enumerate(weights, 1)
    )
    text = f"version: 1\nbase: ./base\nexperts:\n{rows}merge: {merge}\n{tail}"
    if "method: linear" in merge:
        text = f"version: 1\nexperts:\n  zero: ./base\n{rows}merge: {merge}\n{tail}"
    return Blend(parse_recipe(text), folder, True).build()


def within(asked, options=OPTIONS):
    sink = MemorySink()
    memo = None if asked.tables is None else memo_of(asked.tables)
    with sink.begin(asked.plan.layout, asked.plan.digest, resume=False, overwrite=False) as session:
        run(asked.plan, session, options, memo=memo)
        session.commit({}, lambda records: b"{}")
    return sink.tensors


def norm(tensors):
    return sum(float((t.double() ** 2).sum()) for t in tensors) ** 0.5


@settings(
    max_examples=30,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # an example takes a tenth of a second
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 1 << 30),
    make=st.sampled_from(MAKERS),
    merge=st.sampled_from(MERGES),
    kind=st.sampled_from(TYPES),
    budget=st.sampled_from(
        [("0%", None), ("30%", None), ("70%", None), (None, 0.5), (None, 0.1), (None, 0.0)]
    ),
)
def test_the_error_stays_within_the_bounds(seed, make, merge, kind, budget) -> None:
    dtype, tail = kind
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random = write(folder, seed, make, dtype, 1.0)
        weights = [round(float(w), 3) for w in random.uniform(0.1, 2, size=3)]
        if random.random() < 0.5:
            weights = [1.0] * 3
        make_catalogue(["e1", "e2", "e3"], "base", anchor=folder, offline=True)
        plan = plan_of(folder, merge, weights, tail)
        try:
            asked = budgeted(plan, *budget, OPTIONS)
        except PlanError as error:
            assert error.diagnostics[0].code in ("CV-P200", "CV-P202")
            plan.close()
            return
        try:
            full = load(plan, RunOptions(threads=1, catalogue=False))
        except NonFinite:  # sums of huge changes in float16
            plan.close()
            return
        left = within(asked)
        wide = plan_of(folder, merge, weights, "output: {dtype: float32}\n")
        update = load(wide, RunOptions(threads=1, catalogue=False))
        base = {n: wide.sources[next(iter(wide.sources))].source.read(n).double() for n in update}
        plan.close()
        wide.close()
    size = norm(update[n].double().reshape(-1) - base[n] for n in update)
    error = norm(full[n].double() - left[n].double() for n in full)
    choice = asked.choice
    slack = 1e-6 * (norm(base.values()) + size) if "linear" not in merge else 1e-6 * norm(update.values())
    assert error <= choice.rounded * (size + slack) + 1e-300
    if dtype == torch.float32 or tail:
        assert error <= choice.bound * (size + slack) + slack
    if budget[0]:
        assert choice.read <= float(budget[0][:-1]) / 100 * choice.total
    else:
        assert choice.bound <= budget[1]
    if choice.bound == 0 and budget[1] != 0.0:
        assert error == 0


def test_votes_leave_blocks_out_and_measure_what_that_cost(tmp_path) -> None:
    """Not vacuous: with energy in few blocks most need not be read, and the measured error is the real one."""
    write(tmp_path, 3, few, torch.bfloat16, 1.0)
    make_catalogue(["e1", "e2", "e3"], "base", anchor=tmp_path, offline=True)
    for merge in ("{method: ties, density: 0.5}", "{method: magmax}", "{method: breadcrumbs, density: 0.9}"):
        plan = plan_of(tmp_path, merge, [1.0] * 3)
        asked = budgeted(plan, None, 0.2, OPTIONS)
        assert asked.choice.read < 0.9 * asked.choice.total, merge
        assert 0 < asked.choice.bound <= 0.2
        found = measured(replace(asked, sample=Sample(tensors=plan.tensors)))
        wide = plan_of(tmp_path, merge, [1.0] * 3, "output: {dtype: float32}\n")
        full = load(wide, RunOptions(threads=1, catalogue=False))
        base = {n: wide.sources[next(iter(wide.sources))].source.read(n).double() for n in full}
        size = norm(full[n].double().reshape(-1) - base[n] for n in full)
        assert abs(found["sampled_update"] - size) <= 1e-5 * size
        assert found["sampled_error"] <= asked.choice.bound * size * 1.00001
        plan.close()
        wide.close()


def test_nested_recipes_of_one_base_are_sums_too(tmp_path) -> None:
    write(tmp_path, 4, few, torch.float32, 1.0)
    make_catalogue(["e1", "e2", "e3"], "base", anchor=tmp_path, offline=True)
    text = (
        "version: 1\nbase: ./base\nexperts:\n"
        "  inner:\n    recipe: {base: ./base, experts: {e1: ./e1, e2: ./e2}, merge: {method: task_arithmetic}}\n"
        "    weight: 0.5\n"
        "  e3: {source: ./e3, weight: -0.4}\nmerge: {method: task_arithmetic}\n"
    )
    plan = Blend(parse_recipe(text), tmp_path, True).build()
    asked = budgeted(plan, "60%", None, OPTIONS)
    assert 0 < asked.choice.bound < 1
    full, left = load(plan, RunOptions(threads=1, catalogue=False)), within(asked)
    base = {n: plan.sources[next(iter(plan.sources))].source.read(n).double() for n in full}
    size = norm(full[n].double().reshape(-1) - base[n] for n in full)
    assert norm(full[n].double() - left[n].double() for n in full) <= asked.choice.bound * size * 1.0001
    plan.close()


def test_without_kernels_thresholds_are_not_guessed(tmp_path) -> None:
    write(tmp_path, 5, few, torch.bfloat16, 1.0)
    make_catalogue(["e1", "e2", "e3"], "base", anchor=tmp_path, offline=True)
    plan = plan_of(tmp_path, "{method: ties, density: 0.5}", [1.0] * 3)
    with pytest.raises(PlanError):
        budgeted(plan, None, 0.2, RunOptions(threads=1, kernels=False))
    asked = budgeted(plan, None, 0.2, OPTIONS)
    with pytest.raises(RunError) as error:
        within(asked, RunOptions(threads=1, kernels=False))
    assert error.value.diagnostics[0].code == "CV-E280"
    plan.close()


def test_what_equals_other_inputs_keeps_a_budget_of_any_method(tmp_path) -> None:
    """Nothing is lost, so no bound is needed."""
    random = np.random.default_rng(0)
    base = {n: torch.from_numpy(random.standard_normal(s).astype("f4")) for n, s in SHAPES.items()}
    for name in ("base", "e1", "e2", "e3"):
        (tmp_path / name).mkdir()
        tensors = dict(base) if name == "base" else {**base, "a.weight": base["a.weight"] + float(name[1])}
        save_file(tensors, tmp_path / name / "model.safetensors")
    make_catalogue(["e1", "e2", "e3"], "base", anchor=tmp_path, offline=True)
    plan = plan_of(tmp_path, "{method: dare_linear, density: 0.5}", [1.0] * 3)
    asked = budgeted(plan, "60%", None, OPTIONS)
    assert asked.choice.bound == 0
    assert all(torch.equal(a, b) for a, b in zip(load(plan).values(), within(asked).values(), strict=True))
    with pytest.raises(PlanError, match="random"):
        budgeted(plan, "30%", None, OPTIONS)
    plan.close()
