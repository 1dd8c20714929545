"""Budgets: the bound holds whatever the experts are like, identical blocks cost nothing, no other claim is made."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from cuvee.api.blend import Blend
from cuvee.api.budget import budgeted, make_catalogue, measured
from cuvee.api.execute import load
from cuvee.api.outlook import outlook
from cuvee.cli.app import app
from cuvee.errors import PlanError, UsageError
from cuvee.recipe.load import parse_recipe
from cuvee.sources import catalogue as catalogues

SHAPES = {"a.weight": (40, 64), "b.weight": (100, 33), "c.bias": (77,), "d.weight": (64, 64)}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch, tmp_path):
    monkeypatch.setattr(catalogues, "BLOCK", 1024)
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))


def save(folder, tensors):
    folder.mkdir(exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")


def base_of(random):
    return {n: torch.from_numpy(random.standard_normal(s).astype("f4")) for n, s in SHAPES.items()}


def one_tensor(random, base, number):
    return {n: t + (torch.randn(t.shape) if n == "b.weight" else 0) for n, t in base.items()}


def heavy(random, base, number):
    return {
        n: t + torch.from_numpy((random.standard_cauchy(t.shape) ** 3 * 1e-6).astype("f4"))
        for n, t in base.items()
    }


def flipped(random, base, number):
    """Task vectors that cancel but for a little."""
    fixed = np.random.default_rng(1)
    noise = {n: torch.from_numpy(fixed.standard_normal(t.shape).astype("f4")) for n, t in base.items()}
    return {n: t + (noise[n] if number % 2 else -noise[n] * 1.0001) * 1e-2 for n, t in base.items()}


def sparse(random, base, number):
    found = {n: t.clone() for n, t in base.items()}
    found["d.weight"].view(-1)[number * 300] += 1e4
    found["a.weight"].view(-1)[5] += 1e-3
    return found


def smooth(random, base, number):
    return {
        n: t + torch.from_numpy((random.standard_normal(t.shape) * 1e-3).astype("f4"))
        for n, t in base.items()
    }


def plan_of(folder, weights, lam=1.0, method="task_arithmetic", dtype="out_dtype: float32", density=None):
    models = "".join(f"  - {{model: e{k}, parameters: {{weight: {w!r}}}}}\n" for k, w in enumerate(weights))
    shared = f"lambda: {lam!r}" if density is None else f"density: {density}"
    shared = "select_topk: 0.5" if method == "sce" else shared
    text = f"merge_method: {method}\nbase_model: base\nmodels:\n{models}parameters: {{{shared}}}\n{dtype}\n"
    return Blend(parse_recipe(text), folder, True).build()


def exact(base, experts, weights, lam):
    """The merged update, in float64."""
    return {
        n: lam * sum(w * (e[n].double() - t.double()) for w, e in zip(weights, experts, strict=True))
        for n, t in base.items()
    }


def norm(tensors):
    return sum(float((t.double() ** 2).sum()) for t in tensors) ** 0.5


@pytest.mark.parametrize("make", [one_tensor, heavy, flipped, sparse, smooth], ids=lambda m: m.__name__)
def test_the_bound_holds_whatever_the_experts_are(make, tmp_path) -> None:
    torch.manual_seed(0)
    for trial, budget in enumerate(
        [("10%", None), ("60%", None), (None, 0.3), (None, 0.01), ("100%", None), (None, 0.0), ("0%", None)]
    ):
        random = np.random.default_rng(trial)
        base = base_of(random)
        experts = [make(random, base, k) for k in range(3)]
        weights, lam = [float(w) for w in random.standard_normal(3)], 0.7
        if make is flipped:
            weights = [0.5, 0.5, 1e-3]
        for name, tensors in [("base", base), *((f"e{k}", e) for k, e in enumerate(experts))]:
            save(tmp_path / name, tensors)
        make_catalogue(["e2", "e0", "e1"], "base", anchor=tmp_path, offline=True)
        plan = plan_of(tmp_path, weights, lam)
        asked = budgeted(plan, *budget)
        merged, found = load(asked.plan), measured(asked, every=1)
        plan.close()
        update = exact(base, experts, weights, lam)
        error = norm(merged[n].double() - (base[n].double() + update[n]) for n in base)
        rounding = 1e-6 * (norm(base.values()) + norm(t for e in experts for t in e.values()))
        assert error <= asked.choice.bound * norm(update.values()) * (1 + 1e-6) + rounding
        left_out = sum(len(blocks) for tensors in asked.choice.spared.values() for blocks in tensors.values())
        if budget[0]:
            assert asked.choice.read <= float(budget[0][:-1]) / 100 * asked.choice.total
        else:
            assert asked.choice.bound <= budget[1]
        if budget[0] == "0%":
            assert left_out == 3 * sum(-(-t.numel() // 256) for t in base.values())
            assert abs(asked.choice.bound - 1) < 1e-3 or asked.choice.bound > 1
        assert abs(found["sampled_update"] - norm(update.values())) <= 1e-6 * norm(update.values()) + 1e-9
        assert found["sampled_error"] <= asked.choice.bound * found["sampled_update"] * (1 + 1e-6)


def test_gains_are_chosen_by_energy(tmp_path) -> None:
    random = np.random.default_rng(0)
    base = base_of(random)
    save(tmp_path / "base", base)
    scales = np.exp(2 * random.standard_normal((3, 400)))
    experts = []
    for k in range(3):
        expert, number = {}, 0
        for n, t in base.items():
            flat = t.reshape(-1).clone()
            for start in range(0, len(flat), 256):
                part = flat[start : start + 256]
                part += torch.from_numpy(
                    (random.standard_normal(len(part)) * 1e-3 * scales[k, number]).astype("f4")
                )
                number += 1
            expert[n] = flat.reshape(t.shape)
        experts.append(expert)
        save(tmp_path / f"e{k}", expert)
    make_catalogue(["e0", "e1", "e2"], "base", anchor=tmp_path, offline=True)
    plan = plan_of(tmp_path, [1.0, 1.0, 1.0])
    choices = [budgeted(plan, f"{share}%", None).choice for share in (0, 10, 25, 50, 100)]
    bounds = [choice.bound for choice in choices]
    plan.close()
    assert bounds == sorted(bounds, reverse=True)
    for share, choice in zip((0.1, 0.25, 0.5), choices[1:4], strict=True):  # nearly nothing goes to measuring
        assert choice.read >= 0.99 * share * choice.total - 1024
    assert bounds[2] < 0.35  # a random quarter would leave 0.87
    assert bounds[-1] == 0


def test_what_equals_the_base_is_not_read_and_changes_no_byte(tmp_path) -> None:
    random = np.random.default_rng(0)
    base = base_of(random)
    expert = {n: t.clone() for n, t in base.items()}
    expert["a.weight"][0, 0] += 1
    expert["c.bias"][0] = -0.0
    base["c.bias"][0] = 0.0  # equal in value, not in bits
    save(tmp_path / "base", base)
    save(tmp_path / "e0", expert)
    make_catalogue(["e0"], "base", anchor=tmp_path, offline=True)
    plan = plan_of(tmp_path, [1.0])
    asked = budgeted(plan, "100%", None)
    blocks = sum(-(-t.numel() // 256) for t in base.values())
    spared = asked.choice.spared["e0"]
    assert sum(map(len, spared.values())) == blocks - 2
    assert 0 not in spared["a.weight"]
    assert "c.bias" not in spared
    whole, less = load(plan), load(asked.plan)
    plan.close()
    assert all(whole[n].view(torch.int32).equal(less[n].view(torch.int32)) for n in whole)


@pytest.mark.parametrize(("budget", "make"), [("100%", one_tensor), ("8%", smooth)])
def test_bytes_are_predicted_as_the_choice_says(budget, make, tmp_path) -> None:
    """Where the base stands in for a whole tensor, the base's own bytes are read, once."""
    random = np.random.default_rng(0)
    base = base_of(random)
    save(tmp_path / "base", base)
    for number in range(2):
        save(tmp_path / f"e{number}", make(random, base, number))
    make_catalogue(["e0", "e1"], "base", anchor=tmp_path, offline=True)
    plan = plan_of(tmp_path, [1.0, 0.5])
    asked = budgeted(plan, budget, None)
    foreseen = outlook(asked.plan, tmp_path / "out").prediction.bytes_read
    plan.close()
    assert any(len(blocks) * 256 >= base[n].numel() for n, blocks in asked.choice.spared["e0"].items())
    assert foreseen == asked.choice.read + sum(t.numel() * 4 for t in base.values())


def test_only_what_can_be_bounded_is_left_out(tmp_path) -> None:
    random = np.random.default_rng(0)
    base = base_of(random)
    save(tmp_path / "base", base)
    expert = smooth(random, base, 0)
    expert["d.weight"][0, 0] = float("inf")
    save(tmp_path / "e0", expert)
    plan = plan_of(tmp_path, [1.0])
    with pytest.raises(PlanError) as error:
        budgeted(plan, "50%", None)
    assert error.value.diagnostics[0].code == "CV-P201"
    assert "cuvee catalog e0 --base base" in str(error.value)
    make_catalogue(["e0"], "base", anchor=tmp_path, offline=True)
    asked = budgeted(plan, "50%", None)
    assert 0 not in asked.choice.spared["e0"]["d.weight"]  # not finite: always read
    with pytest.raises(PlanError) as error:
        budgeted(plan, "1%", None)
    assert error.value.diagnostics[0].code == "CV-P202"
    with pytest.raises(PlanError) as error:
        budgeted(plan, "20%", 0.01)
    assert error.value.diagnostics[0].code == "CV-P202"
    for text, deviation in (("101%", None), ("much", None), (None, -1.0), (None, 2.0)):
        with pytest.raises(UsageError):
            budgeted(plan, text, deviation)
    plan.close()
    for method, dtype, why in (
        ("dare_linear", "out_dtype: float32", "is random"),
        ("sce", "out_dtype: float32", "depends on all experts together"),
        ("task_arithmetic", "dtype: bfloat16", "rounded from float32 to bfloat16"),
    ):
        plan = plan_of(tmp_path, [1.0], method=method, dtype=dtype, density=0.5)
        for budget in (("50%", None), (None, 0.5)):
            with pytest.raises(PlanError, match=why) as error:
                budgeted(plan, *budget)
            assert error.value.diagnostics[0].code == "CV-P200"
        plan.close()


def test_experts_of_16_bits_are_summed_in_float32(tmp_path) -> None:
    random = np.random.default_rng(0)
    base = {n: t.bfloat16() for n, t in base_of(random).items()}
    expert = {n: (t.float() + torch.randn(t.shape) * 0.1).bfloat16() for n, t in base.items()}
    save(tmp_path / "base", base)
    save(tmp_path / "e0", expert)
    make_catalogue(["e0"], "base", anchor=tmp_path, offline=True)
    plan = plan_of(tmp_path, [1.0])
    asked = budgeted(plan, "50%", None)
    merged = load(asked.plan)
    plan.close()
    update = exact(base, [expert], [1.0], 1.0)
    error = norm(merged[n].double() - (base[n].double() + update[n]) for n in base)
    assert 0.3 < asked.choice.bound < 0.9
    assert error <= asked.choice.bound * norm(update.values()) * (1 + 1e-6) + 1e-5


def test_a_changed_file_needs_a_new_catalogue(tmp_path) -> None:
    random = np.random.default_rng(0)
    base = base_of(random)
    save(tmp_path / "base", base)
    save(tmp_path / "e0", smooth(random, base, 0))
    make_catalogue(["e0"], "base", anchor=tmp_path, offline=True)
    save(tmp_path / "e0", smooth(random, base, 1))
    plan = plan_of(tmp_path, [1.0])
    with pytest.raises(PlanError, match="no catalogue"):
        budgeted(plan, "50%", None)
    plan.close()
    make_catalogue(["e0"], "base", anchor=tmp_path, offline=True)
    held = next((tmp_path / "cache" / "catalogue").iterdir())
    for name in (tmp_path / "cache" / "catalogue").iterdir():
        name.write_bytes(name.read_bytes()[: held.stat().st_size // 2])
    plan = plan_of(tmp_path, [1.0])
    with pytest.raises(PlanError, match="no catalogue"):
        budgeted(plan, "50%", None)
    plan.close()


def test_the_command_tells_the_bound_and_the_manifest_keeps_the_measured_error(tmp_path, monkeypatch) -> None:
    random = np.random.default_rng(0)
    base = base_of(random)
    save(tmp_path / "base", base)
    for k in range(2):
        save(tmp_path / f"e{k}", heavy(random, base, k))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(
        "merge_method: task_arithmetic\nbase_model: base\nmodels:\n"
        "  - {model: e0, parameters: {weight: 1}}\n  - {model: e1, parameters: {weight: 0.5}}\nout_dtype: float32\n"
    )
    run = lambda *words: CliRunner().invoke(app, list(words), catch_exceptions=False)  # noqa: E731
    told = run("catalog", "e0", "e1", "--base", "base", "--json")
    assert told.exit_code == 0, told.output
    assert [row["expert"] for row in json.loads(told.stdout)["experts"]] == ["e0", "e1"]
    result = run("merge", "r.yaml", "-o", "out", "--max-deviation", "0.2")
    assert result.exit_code == 0, result.output
    assert "besides rounding, the error is at most" in result.stderr
    manifest = json.loads((tmp_path / "out" / "cuvee-manifest.json").read_text())
    (row,) = manifest["numerics"]["figures"]["read_budget"]
    assert 0 < row["bound"] <= 0.2
    assert row["read"] < row["of"]
    assert set(manifest["lock"]["sources"]["e0"]["spared"]) == {"read", "of", "identical", "bound", "blocks"}
    assert run("verify", "out").exit_code == 0
    dry = run("merge", "r.yaml", "-o", "other", "--read-budget", "50%", "--dry-run")
    assert "are read" in dry.stdout
    assert not (tmp_path / "other").exists()
    planned = run("plan", "r.yaml", "--read-budget", "50%", "--json")
    assert [note for note in json.loads(planned.stdout)["notes"] if "are read" in note["message"]]
    with pytest.raises(UsageError, match="holds no budget"):
        run("plan", "r.yaml", "--read-budget", "50%", "-o", "p.json")


@pytest.mark.skipif(
    not Path("/proc/self/io").exists(), reason="the system does not count what a process reads"
)
def test_the_device_gives_no_more_than_was_planned(tmp_path, monkeypatch) -> None:
    """Pages that the process made the device read, against the plan: whole pages, and a little for headers."""
    monkeypatch.setattr(catalogues, "BLOCK", 1 << 20)
    random = np.random.default_rng(0)
    base = {"w": torch.from_numpy(random.standard_normal((24, 1 << 18)).astype("f4"))}
    expert = {"w": base["w"] * (1 + 1e-3 * torch.rand(24, 1) ** 4)}
    save(tmp_path / "base", base)
    save(tmp_path / "e0", expert)
    make_catalogue(["e0"], "base", anchor=tmp_path, offline=True)
    plan = plan_of(tmp_path, [1.0])
    asked = budgeted(plan, "40%", None)

    def from_device() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("read_bytes")))

    def cold(folder: str) -> None:
        number = os.open(tmp_path / folder / "model.safetensors", os.O_RDONLY)
        os.fsync(number)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(number)

    load(asked.plan)  # the base, and what is imported late, are in memory from here on
    cold("e0")
    before = from_device()
    load(asked.plan)
    read = from_device() - before
    plan.close()
    assert asked.choice.read <= 0.4 * asked.choice.total
    if read:  # in memory-backed file systems nothing comes from a device
        assert read <= asked.choice.read + (2 << 20)  # the base may have to come back, too, in part


@pytest.mark.skipif(
    not Path("/proc/self/io").exists(), reason="the system does not count what a process reads"
)
@pytest.mark.parametrize(("share", "merge"), [(1, "sum"), (30, "sum"), (99, "sum"), (60, "votes")])
def test_measuring_the_error_is_part_of_the_budget(share, merge, tmp_path) -> None:
    """Blocks and sample together keep the budget, and the sample reads what the plan said, besides the base."""
    random = np.random.default_rng(1)
    shapes = {f"w{n}": (64, 96) for n in range(19)} | {"w19": (8, 16)}
    base = {n: torch.from_numpy(random.standard_normal(s).astype("f4")).bfloat16() for n, s in shapes.items()}
    save(tmp_path / "base", base)
    for k in range(3):
        save(
            tmp_path / f"e{k}",
            {n: (t.float() + 2.0 ** -(k + int(n[1:]) % 4)).bfloat16() for n, t in base.items()},
        )
    make_catalogue(["e0", "e1", "e2"], "base", anchor=tmp_path, offline=True)
    plan = plan_of(tmp_path, [1.0, 1.0, 1.0]) if merge == "sum" else votes_of(tmp_path)
    asked = budgeted(plan, f"{share}%", None)
    assert asked.choice.bound > 0
    assert asked.choice.read + asked.sample.nbytes <= share / 100 * asked.choice.total
    assert (asked.sample.nbytes > 0) == (share > 1)  # a tenth of a percent has no room for a piece of each

    def read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    measured(asked)  # whatever is imported or opened late is there from here on
    before = read()
    empty = read() - before
    before = read()
    found = measured(asked)
    taken = read() - before - empty
    plan.close()
    assert (found["sampled_blocks"] > 0) == (asked.sample.nbytes > 0)
    assert taken <= asked.sample.nbytes * 4 / 3 + 8192  # and what the kernel tells of the process


def votes_of(folder: Path):
    text = (
        "version: 1\nbase: ./base\nexperts: {a: ./e0, b: ./e1, c: ./e2}\n"
        "merge: {method: ties, density: 1, scope: tensor}\n"
    )
    return Blend(parse_recipe(text), folder).build()


@pytest.mark.parametrize("deviation", [0.0, 1e-15, 1e-12, 1e-6])
def test_the_smallest_deviation_is_kept_however_large_the_first_error_was(deviation, tmp_path) -> None:
    """What is left once the large changes are read is lost among the last digits of the error before that."""
    base = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    expert = {name: torch.full(shape, 1e-11) for name, shape in SHAPES.items()}
    expert["a.weight"][0, 0] = 1.0
    save(tmp_path / "base", base)
    save(tmp_path / "e0", expert)
    make_catalogue(["e0"], "base", anchor=tmp_path, offline=True)
    plan = plan_of(tmp_path, [1.0])
    choice = budgeted(plan, None, deviation).choice
    plan.close()
    assert choice.bound <= deviation
    assert (choice.read < choice.total) == (deviation > 1e-7)
