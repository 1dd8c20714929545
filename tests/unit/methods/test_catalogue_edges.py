"""Inputs at which formulas break, through every method of masks, weights, layers and trajectories."""

from __future__ import annotations

import pytest
import torch
from cases_catalogue import BASE, PLACES, SHAPES, experts

from cuvee.methods import registry
from cuvee.methods.contract import Place
from cuvee.methods.summaries import order_statistics_each, top, totals_by
from cuvee.testing.stage_contract import refute
from cuvee.testing.stages import run_method, run_stage
from cuvee.testing.streams import MemoryStream

torch.set_num_threads(1)

# method: its parameters for K experts
TASK_VECTORS = {
    "cabs": lambda k: {"n": 2, "m": 8},
    "consensus": lambda k: {"agree": 1},
    "emr": lambda k: {},
    "emr_expert": lambda k: {"restore": [True] + [False] * (k - 1)},
    "lines": lambda k: {},
    "localize_stitch_datafree": lambda k: {"density": 0.3},
    "lwptv": lambda k: {},
    "magmax": lambda k: {"lambda": 1.0},
    "metagpt": lambda k: {},
    "onebit_task_vector": lambda k: {},
    "pcb": lambda k: {"ratio": 0.5},
    "seme": lambda k: {"select_topk": 0.5},
    "task_negation_deployed": lambda k: {},
    "varm": lambda k: {},
    "warp": lambda k: {"eta": 1.0},
    "widen": lambda k: {},
    "zsaslm_slerp": lambda k: {},
}
TRAJECTORIES = {
    "ema": lambda k: {},
    "lawa": lambda k: {},
    "module_donor": lambda k: {"take": [False] * (k - 1) + [True]},
    "mwa": lambda k: {"metric": [1.0 + i for i in range(k)]},
    "pma_ema": lambda k: {},
    "pma_sma": lambda k: {},
    "pma_wma": lambda k: {},
    "slerp_fold": lambda k: {},
    "swa": lambda k: {},
    "warm": lambda k: {},
    "wsm": lambda k: {},
}
EVERY = {**TASK_VECTORS, **TRAJECTORIES}
LEAST = {"task_negation_deployed": 2}
UNCHANGED = list(TASK_VECTORS)  # experts equal to the base give the base


def merge(method, models, base, **more):
    return run_method(
        method,
        models,
        None if method in TRAJECTORIES else base,
        EVERY[method](len(models)),
        places=PLACES,
        **more,
    )


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("count", [1, 40])
def test_one_expert_and_forty(method, count):
    count = max(count, LEAST.get(method, 1))
    models = experts(count)
    merged = merge(method, models, BASE, block=4096)
    for name in SHAPES:
        assert merged[name].shape == BASE[name].shape
        assert merged[name].dtype == torch.float32
        assert merged[name].isfinite().all(), name


@pytest.mark.parametrize("method", EVERY)
def test_experts_equal_to_the_base(method):
    merged = merge(method, [BASE] * 3, BASE)
    for name in SHAPES:
        assert torch.allclose(merged[name], BASE[name], rtol=0, atol=1e-5), name
        if method in UNCHANGED:
            assert merged[name].equal(BASE[name]), name


@pytest.mark.parametrize("method", EVERY)
def test_hostile_tensors(method):
    base = {
        "a.empty": torch.zeros(0, 4),
        "b.none": torch.zeros(0),
        "c.constant": torch.ones(3, 5),
        "d.scalar": torch.tensor(2.0),
        "e.zero": torch.zeros(4, 3, 2, 2),
        "layers.0.one": torch.ones(1),
    }
    places = {name: Place(name, "o", 0 if name.startswith("layers") else None, 1) for name in base}
    models = [{name: x + step for name, x in base.items()} for step in (0.5, -0.25, 0.5)]
    start = None if method in TRAJECTORIES else base
    merged = run_method(method, models, start, EVERY[method](3), places=places, block=1024)
    for name, x in merged.items():
        assert x.shape == base[name].shape
        assert x.isfinite().all(), name


@pytest.mark.parametrize("method", EVERY)
def test_a_model_of_empty_tensors(method):
    models = [{"x": torch.zeros(0, 7)}] * 3
    start = None if method in TRAJECTORIES else models[0]
    assert run_method(method, models, start, EVERY[method](3))["x"].shape == (0, 7)


@pytest.mark.parametrize("method", EVERY)
def test_half_precision_is_merged_in_single(method):
    halves = [{n: x.bfloat16() for n, x in model.items()} for model in (BASE, *experts(3))]
    singles = [{n: x.float() for n, x in model.items()} for model in halves]
    low, high = merge(method, halves[1:], halves[0]), merge(method, singles[1:], singles[0])
    for name in SHAPES:
        assert low[name].float().equal(high[name]), name


@pytest.mark.parametrize("method", ["varm", "metagpt", "emr", "consensus", "magmax", "warp", "pcb", "widen"])
def test_order_does_not_matter_where_it_must_not(method):
    models = experts(2 if method == "warp" else 3)
    one, other = merge(method, models, BASE), merge(method, models[::-1], BASE)
    for name in SHAPES:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "method", ["varm", "metagpt", "emr", "consensus", "magmax", "warp", "cabs", "lwptv", "lines"]
)
def test_scaled_task_vectors_give_a_scaled_result(method):
    models = experts(3)
    larger = [{n: BASE[n] + 4 * (m[n] - BASE[n]) for n in SHAPES} for m in models]
    one, four = merge(method, models, BASE), merge(method, larger, BASE)
    for name in SHAPES:
        torch.testing.assert_close(
            4 * (one[name] - BASE[name]), four[name] - BASE[name], rtol=1e-4, atol=2e-5
        )


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_strict_trimming_keeps_its_contract(density):
    refute(registry.stage("trim"), {"count": "strict", "density": density}, differentiable=False)
    refute(registry.stage("elect"), {"zero_sign": "minus", "merge": "max"})


def test_strict_trimming_leaves_out_the_threshold():
    values = torch.tensor([1.0, -3, 3, 2, 5])
    assert run_stage("trim", values, {"count": "strict", "density": 0.4}).tolist() == [0, 0, 0, 0, 5]
    assert run_stage("trim", values, {"count": "strict", "density": 0.8}).tolist() == [0, -3, 3, 0, 5]
    assert run_stage("trim", values, {"count": "strict", "density": 0.0}).tolist() == [0] * 5


def test_order_statistics_of_several_figures_in_shared_passes():
    draw = torch.Generator().manual_seed(0)
    groups = [[torch.randn(size, generator=draw) for _ in range(3)] for size in (1500, 1, 700)]
    passes = 0

    class Counted:
        sizes, inputs = (1500, 1, 700), 3

        def blocks(self):
            nonlocal passes
            passes += 1
            return MemoryStream(groups, block=1024).blocks()

    ranks = [0, 5, 1100, 2200]
    found = order_statistics_each(Counted(), lambda block: list(block.tensors), ranks)
    for number, own in enumerate(found):
        ordered = torch.cat([group[number] for group in groups]).sort().values
        assert own == [float(ordered[rank]) for rank in ranks]
    assert passes == 2
    with pytest.raises(IndexError):
        order_statistics_each(Counted(), lambda block: list(block.tensors), [2201])


def test_sums_by_group():
    groups = [[torch.full((2000,), 1.0)], [torch.full((3,), 2.0)], [torch.full((5,), 0.5)]]
    stream = MemoryStream(groups, block=1024)
    found = totals_by(stream, lambda block: [block.tensors[0], 2 * block.tensors[0]], lambda b: b.number == 1)
    assert found == {False: [2002.5, 4005.0], True: [6.0, 12.0]}
    cut = top(stream, lambda block: block.tensors[0], 4, ties="none")
    assert cut.kept == 3
