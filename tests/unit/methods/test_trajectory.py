"""Averages along a run: weights by their definitions, recursions and simulated decays; hundreds of checkpoints."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cases_catalogue import BASE, SHAPES, experts, wide
from safetensors.numpy import save_file

from cuvee.errors import RunError
from cuvee.methods import registry
from cuvee.methods.checkpoints import by_metric, emulated, exponential, recency, window
from cuvee.methods.formula import BadFormula
from cuvee.testing.stages import run_method, run_stage

torch.set_num_threads(1)
RUN = experts(7, spread=0.5)
DECAYS = [
    "1 - x",
    "0.5 * (1 + cos(pi * x))",
    "1 - sqrt(x)",
    "(1 - x) ** 2",
    "exp(-5 * x)",
    "1 / (1 + 9 * x)",
    "1",
    "0",
]


def check(method, params, weights, run=RUN):
    merged = run_method(method, run, None, params, block=1024)
    arrays = [wide(model) for model in run]
    for name in SHAPES:
        wanted = sum(w * x[name] for w, x in zip(weights, arrays, strict=True))
        np.testing.assert_allclose(merged[name].double().numpy(), wanted, rtol=0, atol=1e-5)
    return merged


# --- windows and moving averages ---


def test_swa_is_the_running_mean():
    running = None
    for count, number in enumerate(range(2, 7, 2)):
        model = wide(RUN[number])
        running = (
            model if running is None else {n: (count * running[n] + model[n]) / (count + 1) for n in SHAPES}
        )
    merged = check("swa", {"start": 2, "every": 2}, [0, 0, 1 / 3, 0, 1 / 3, 0, 1 / 3])
    assert all(np.allclose(merged[n].double().numpy(), running[n], atol=1e-5) for n in SHAPES)
    check("swa", None, [1 / 7] * 7)


def test_lawa_is_the_mean_of_the_latest():
    check("lawa", None, [0, *[1 / 6] * 6])
    check("lawa", {"last": 3}, [0, 0, 0, 0, *[1 / 3] * 3])
    last = check("lawa", {"last": 1}, [0] * 6 + [1])
    assert all(torch.equal(last[n], RUN[-1][n]) for n in SHAPES)
    restarted = run_method("swa", RUN, None, {"start": 4})
    assert all(torch.equal(run_method("lawa", RUN, None, {"last": 3})[n], restarted[n]) for n in SHAPES)
    check("pma_sma", None, [1 / 7] * 7)
    check("warm", None, [1 / 7] * 7)


def test_windows_that_leave_nothing():
    assert window(3, start=5) == [0, 0, 1]
    assert window(1) == [1]
    assert window(5, start=1, every=2, last=9) == [0, 0.5, 0, 0.5, 0]


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 1.0])
def test_ema_is_its_recursion(decay):
    average = wide(RUN[0])
    from_zero = {n: (1 - decay) * x for n, x in average.items()}
    for model in map(wide, RUN[1:]):
        average = {n: decay * average[n] + (1 - decay) * model[n] for n in SHAPES}
        from_zero = {n: decay * from_zero[n] + (1 - decay) * model[n] for n in SHAPES}
    merged = check("ema", {"decay": decay}, exponential(7, decay))
    newest = run_method("pma_ema", RUN, None, {"alpha": 1 - decay})
    for n in SHAPES:
        np.testing.assert_allclose(merged[n].double().numpy(), average[n], rtol=0, atol=1e-5)
        np.testing.assert_allclose(newest[n].double().numpy(), average[n], rtol=0, atol=1e-5)
    if decay < 1:
        unbiased = run_method("ema", RUN, None, {"decay": decay, "start": "zero"})
        for n in SHAPES:
            wanted = from_zero[n] / (1 - decay**7)
            np.testing.assert_allclose(unbiased[n].double().numpy(), wanted, rtol=0, atol=1e-5)
    if decay == 0:
        assert all(torch.equal(merged[n], RUN[-1][n]) for n in SHAPES)


def test_weights_along_a_run_sum_to_one():
    for count in (1, 2, 7, 200):
        rules = [window(count), window(count, last=3), recency(count), emulated(count, "1 - x")]
        rules += [exponential(count, d, debiased=b) for d in (0.0, 0.5, 0.999, 1.0) for b in (False, True)]
        assert all(math.fsum(weights) == pytest.approx(1) and min(weights) >= 0 for weights in rules)
    assert recency(2) == pytest.approx([1 / 3, 2 / 3])
    check("pma_wma", None, np.arange(1, 8) / 28)


def test_a_constant_run_is_its_checkpoint():
    same = [BASE] * 5
    for method in ("swa", "lawa", "ema", "pma_sma", "pma_ema", "pma_wma", "wsm", "warm"):
        merged = run_method(method, same, None)
        assert all(torch.allclose(merged[n], BASE[n], atol=1e-6) for n in SHAPES), method
        alone = run_method(method, same[:1], None)
        assert all(torch.equal(alone[n], BASE[n]) for n in SHAPES), method
    assert torch.equal(run_method("mwa", [BASE], None, {"metric": [2.0]})["norm.weight"], BASE["norm.weight"])


# --- WSM ---


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("count", [2, 5, 11])
def test_wsm_replays_a_decayed_run(decay, count):
    """A linear model trained with recorded gradients, its learning rate decayed between checkpoints."""
    generator = np.random.default_rng(0)
    kept = {  # by hand, not by the formula's parser
        "1 - x": lambda x: 1 - x,
        "0.5 * (1 + cos(pi * x))": lambda x: 0.5 * (1 + np.cos(np.pi * x)),
        "1 - sqrt(x)": lambda x: 1 - np.sqrt(x),
        "(1 - x) ** 2": lambda x: (1 - x) ** 2,
        "exp(-5 * x)": lambda x: np.exp(-5 * x),
        "1 / (1 + 9 * x)": lambda x: 1 / (1 + 9 * x),
        "1": lambda x: 1.0,
        "0": lambda x: 0.0,
    }[decay]
    weights = generator.normal(size=40)
    constant, decayed = [weights.copy()], weights.copy()
    for i in range(1, count):
        for _ in range(3):  # steps between two checkpoints
            inputs, target = generator.normal(size=(8, 40)), generator.normal(size=8)
            step = 0.05 * inputs.T @ (inputs @ weights - target) / 8
            weights = weights - step
            decayed = decayed - kept(i / count) * step
        constant.append(weights.copy())
    tensors = [torch.from_numpy(x) for x in constant]
    merged = run_stage("decay_mean", tensors, {"decay": decay})
    np.testing.assert_allclose(merged.numpy(), decayed, rtol=1e-10)


def test_wsm_weights():
    assert emulated(5, "0.5 * (1 + cos(pi * x))") == pytest.approx(
        [0.0955, 0.25, 0.309, 0.25, 0.0955], abs=1e-4
    )
    assert emulated(5, "1 - sqrt(x)") == pytest.approx([0.447, 0.185, 0.142, 0.120, 0.106], abs=1e-3)
    assert emulated(9, "1 - x") == pytest.approx([1 / 9] * 9)
    assert emulated(4, "1") == [0, 0, 0, 1]
    assert emulated(4, "0") == [1, 0, 0, 0]
    assert emulated(4, "[0.9, 0.7, 0.4]") == emulated(4, "0.9, 0.7, 0.4")
    assert emulated(4, "0.9, 0.7, 0.4") == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert emulated(3, "2 - 3*x") == pytest.approx([0, 1, 0])  # clipped: 1, 0
    decay = [0.9 ** (k + 1) for k in range(4)]  # w = 1 − β^(k−i+1) is the exponential average
    text = ", ".join(repr(1 - d) for d in reversed(decay))
    assert emulated(5, text) == pytest.approx(exponential(5, 0.9))


@pytest.mark.parametrize(
    ("decay", "said"),
    [
        ("x", "rises"),
        ("0.2, 0.5, 0.1", "rises"),
        ("0.2, 0.1", "has 2 values, expected 3"),
        ("1 - ", "cannot be read"),
        ("__import__('os')", "may hold"),
        ("x.real", "may hold"),
        ("(lambda: 1)()", "may hold"),
        ("[1 for y in x]", "may hold"),
        ("'1'", "may hold"),
        ("True", "may hold"),
        ("max(x, key=1)", "may hold"),
        ("max()", "has no value"),
        ("1 / (x - x)", "has no value"),
        ("sqrt(x - 9)", "has no value"),
        ("(x - 9) ** 0.5", "has no value"),
        ("10.0 ** 10 ** 10", "has no value"),
        ("1e999", "not finite"),
        ("(" * 500 + "x" + ")" * 500, "cannot be read"),
        ("-" * 1900 + "x", ""),
        ("1+" * 999 + "x", ""),
        ("0" * 3000, "longer"),
        ("\0", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_a_decay_that_is_none_is_refused(decay, said):
    try:
        emulated(4, decay)
    except BadFormula as error:
        assert said in str(error)
        assert registry.stage("decay_mean").problem({"decay": decay}) or "values" in said
        with pytest.raises(RunError) as caught:
            run_stage("decay_mean", [torch.ones(1)] * 4, {"decay": decay})
        assert caught.value.diagnostics[0].code == "CV-E142"
    else:
        assert said == ""
    assert registry.stage("decay_mean").problem({"decay": "1 - x"}) is None
    assert registry.stage("decay_mean").problem({"decay": "0.5, 0.5"}) is None


# --- MWA ---


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5])
def test_weights_by_metric(penalty):
    metrics = np.array([2.0, 1.5, 1.1, 1.2, 1.0, 0.9, 0.95])
    power = (1 / metrics) ** penalty
    check("mwa", {"metric": metrics.tolist(), "penalty": penalty}, power / power.sum())
    power = metrics**penalty
    check("mwa", {"metric": metrics.tolist(), "penalty": penalty, "kind": "step"}, power / power.sum())
    soft = np.exp(-penalty * (metrics - metrics.mean()) / metrics.std())
    check("mwa", {"metric": metrics.tolist(), "penalty": penalty, "form": "softmax"}, soft / soft.sum())


def test_properties_of_weights_by_metric():
    def weights(metrics, penalty=1.0, metric="loss", form="power"):
        return by_metric(metrics, metric=metric, penalty=penalty, form=form)

    assert weights([1, 0.5]) == pytest.approx([1 / 3, 2 / 3])
    assert weights([1, 0.5], 1e6) == [0, 1]
    assert weights([1, 0.5], 1e6, "step") == [1, 0]
    for form in ("power", "softmax"):
        assert weights([3, 3, 3], 2.0, form=form) == pytest.approx([1 / 3] * 3)
        assert weights([1, 2, 5], 0.0, form=form) == pytest.approx([1 / 3] * 3)
        assert weights([1, 2, 5], form=form) == pytest.approx(weights([100, 200, 500], form=form))
    stage = registry.stage("metric_mean")
    assert "-1" in (stage.problem({"metric": [1.0, -1.0], "form": "power"}) or "")
    assert stage.problem({"metric": [1.0, -1.0], "form": "softmax"}) is None
    with pytest.raises(RunError) as caught:
        run_stage("metric_mean", [torch.ones(1)], {"metric": [0.0]})
    assert caught.value.diagnostics[0].code == "CV-E143"


# --- many checkpoints ---


COUNTING = """
import json, os, resource, sys
import cuvee
from cuvee.engine import evaluate

folder, limit = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
paths = [os.path.join(folder, str(number)) for number in range(len(os.listdir(folder)))]
most = 0
inner = evaluate.Evaluator._read
def read(self, node, frame):
    global most
    most = max(most, len(os.listdir("/proc/self/fd")))
    return inner(self, node, frame)
evaluate.Evaluator._read = read
merged = cuvee.merge(paths, method="wsm", decay="1 - sqrt(x)").load()
total = sum(float(x.double().sum()) for x in merged.values())
print(json.dumps([total, most]))
"""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted in /proc")
def test_two_hundred_checkpoints_of_several_shards(tmp_path):
    """400 files, under a limit of 300: each source keeps its share of the open ones."""
    draw = np.random.default_rng(0)
    start, count, shards = draw.normal(size=(30, 50)), 200, 2
    weights, wanted = emulated(count, "1 - sqrt(x)"), 0.0
    for number in range(count):
        made = tmp_path / str(number)
        made.mkdir()
        value = (start + 0.01 * number).astype(np.float32)
        wanted += weights[number] * float(value.astype(np.float64).sum()) * shards
        names = [f"model-{s + 1:05d}-of-{shards:05d}.safetensors" for s in range(shards)]
        for shard, name in enumerate(names):
            save_file({f"w{shard}": value}, made / name)
        index = {"metadata": {}, "weight_map": {f"w{s}": name for s, name in enumerate(names)}}
        (made / "model.safetensors.index.json").write_text(json.dumps(index))
    run = subprocess.run(
        [sys.executable, "-c", COUNTING, str(tmp_path), "300"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    total, most = json.loads(run.stdout)
    assert total == pytest.approx(wanted, rel=1e-6)
    assert most < 300
