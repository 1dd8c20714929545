"""Budgets: the bound holds whatever the experts are like, identical blocks cost nothing, no other claim is made."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from budget_models import (
    PAGE,
    SHAPES,
    base_of,
    exact,
    flipped,
    heavy,
    left_out,
    norm,
    one_tensor,
    plan_of,
    save,
    shrink,
    smooth,
    sparse,
)
from click.testing import CliRunner

from cuvee.api import budget as budget_module
from cuvee.api.blend import Blend
from cuvee.api.budget import budgeted, make_catalogue
from cuvee.api.budgeted_plan import Sample
from cuvee.api.card import card_text
from cuvee.api.execute import load
from cuvee.api.outlook import outlook
from cuvee.api.pack import pack
from cuvee.cli.app import app
from cuvee.errors import PlanError, UsageError
from cuvee.plan import pages
from cuvee.plan.budget_blocks import Block
from cuvee.recipe.load import parse_recipe
from cuvee.sources import catalogue as catalogues


def pages_read(folder, base, spared):
    """Bytes of the pages that the blocks which are read lie in, from the files themselves; equal blocks once."""
    found, known = set(), set()
    for key in spared:
        content = (folder / key / "model.safetensors").read_bytes()
        size = int.from_bytes(content[:8], "little")
        for n, row in json.loads(content[8 : 8 + size]).items():
            start, stop = (8 + size + at for at in row["data_offsets"])
            for b, at in enumerate(range(start, stop, 1024)):
                told = n, b, content[at : min(at + 1024, stop)]
                if b not in spared[key].get(n, ()) and told not in known:
                    known.add(told)
                    found |= {(key, p) for p in range(at // PAGE, -(-min(at + 1024, stop) // PAGE))}
    return PAGE * len(found)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch, tmp_path):
    shrink(monkeypatch, tmp_path / "cache")


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
        merged = load(asked.plan)
        plan.close()
        update = exact(base, experts, weights, lam)
        error = norm(merged[n].double() - (base[n].double() + update[n]) for n in base)
        rounding = 1e-6 * (norm(base.values()) + norm(t for e in experts for t in e.values()))
        assert error <= asked.choice.bound * norm(update.values()) * (1 + 1e-6) + rounding
        many = sum(len(blocks) for tensors in asked.choice.spared.values() for blocks in tensors.values())
        lost = norm(left_out(base, experts, weights, lam, asked.choice.spared).values())
        assert lost <= asked.choice.bound * norm(update.values()) * (1 + 1e-9)
        assert asked.choice.bound * asked.choice.update <= max(
            lost * 1.001, lost + 1e-4 * norm(update.values())
        )
        assert asked.choice.read == pages_read(tmp_path, base, asked.choice.spared)
        if budget[0]:
            assert asked.choice.read <= float(budget[0][:-1]) / 100 * asked.choice.total
        else:
            assert asked.choice.bound <= budget[1]
        if budget[0] == "0%":
            assert many == 3 * sum(-(-t.numel() // 256) for t in base.values())
            assert abs(asked.choice.bound - 1) < 1e-3 or asked.choice.bound > 1


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
        assert choice.read >= 0.99 * share * choice.total - 1024 - PAGE
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
    assert foreseen == asked.choice.asked + sum(t.numel() * 4 for t in base.values())


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
    for text, deviation in (
        ("101%", None),
        ("much", None),
        ("0.5", None),
        ("25", None),
        (None, -1.0),
        (None, 2.0),
    ):
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


def one_expert(folder):
    """The plan of one expert whose catalogue there is."""
    random = np.random.default_rng(0)
    base = base_of(random)
    save(folder / "base", base)
    save(folder / "e0", smooth(random, base, 0))
    make_catalogue(["e0"], "base", anchor=folder, offline=True)
    return plan_of(folder, [1.0])


def test_an_error_as_large_as_the_update_is_a_warning(tmp_path) -> None:
    plan = one_expert(tmp_path)
    for budget, severity in (("0%", "warning"), ("60%", "note")):
        asked = budgeted(plan, budget, None)
        (note,) = [d for d in asked.plan.notes if d.code == "CV-P203"]
        assert (asked.choice.bound >= 1, note.severity) == (severity == "warning", severity)
    plan.close()


def test_an_error_that_spares_nothing_is_not_made(tmp_path, monkeypatch) -> None:
    """What is kept for measuring the error may take more than blocks that are left out would."""
    plan = one_expert(tmp_path)
    lossy = budgeted(plan, None, 0.3)
    assert 0 < lossy.choice.bound <= 0.3 and lossy.choice.read + lossy.sample.nbytes < lossy.choice.total
    whole = lossy.choice.total - lossy.choice.read
    monkeypatch.setattr(budget_module, "sampled", lambda *_: Sample(nbytes=whole))
    exact = budgeted(plan, None, 0.3)
    plan.close()
    assert exact.choice.bound == 0 and exact.choice.read == exact.choice.total
    assert not [d for d in exact.plan.notes if d.code == "CV-P203"]


@pytest.mark.parametrize(
    ("budget", "again"), [("100%", "cuvee reproduce ."), ("60%", "with the same `--read-budget`")]
)
def test_a_card_says_whether_the_recipe_alone_makes_the_same(budget, again, tmp_path) -> None:
    plan = one_expert(tmp_path)
    asked = budgeted(plan, budget, None)
    assert (asked.choice.bound == 0) is (budget == "100%")
    text = card_text(asked.plan, "x")
    plan.close()
    assert again in text
    assert ("cuvee reproduce" in text) is (budget == "100%")


def test_the_command_for_a_catalogue_can_be_pasted(tmp_path) -> None:
    random = np.random.default_rng(0)
    base = base_of(random)
    save(tmp_path / "base", base)
    save(tmp_path / "an expert", smooth(random, base, 0))
    text = "version: 1\nbase: ./base\nexperts: {e: ./an expert}\nmerge: {method: task_arithmetic}\n"
    plan = Blend(parse_recipe(text), anchor=tmp_path).build()
    with pytest.raises(PlanError, match=r"cuvee catalog '\./an expert' --base \./base`"):
        budgeted(plan, "50%", None)
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


def test_the_best_of_all_choices_is_found_where_there_are_few(tmp_path) -> None:
    """Experts that agree, that cancel, and one that equals another: within a tenth of the best subset that fits."""
    random = np.random.default_rng(5)
    base = {"w": torch.from_numpy(random.standard_normal((4, 256)).astype("f4"))}
    common = torch.from_numpy(random.standard_normal((4, 256)).astype("f4"))
    own = [torch.from_numpy(random.standard_normal((4, 256)).astype("f4")) for _ in range(3)]
    sizes = torch.tensor([[1.0], [2.0], [0.3], [1.4]])
    moves = [
        common * sizes + 0.1 * own[0],
        common * sizes + 0.1 * own[1],
        -common * sizes * 0.9 + 0.3 * own[2],
    ]
    experts = [{"w": base["w"] + move} for move in moves]
    experts.append({"w": experts[0]["w"].clone()})
    for k, tensors in enumerate((base, *experts)):
        save(tmp_path / (f"e{k - 1}" if k else "base"), tensors)
    make_catalogue(["e0", "e1", "e2", "e3"], "base", anchor=tmp_path, offline=True)
    plan = plan_of(tmp_path, [1.0] * 4)
    deltas = torch.stack([(e["w"].double() - base["w"].double()) for e in (*experts[:3],)])
    factors = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)  # e3 is e0
    whole = float(torch.einsum("k,kbe->be", factors, deltas).norm())
    masks = [tuple(mask >> k & 1 for k in range(3)) for mask in range(8)]
    lost = [[float((deltas[:, b] * (factors * torch.tensor(m))[:, None]).sum(0).square().sum()) for m in masks]
            for b in range(4)]  # fmt: skip
    for share in (15, 25, 35, 50, 60):
        choice = budgeted(plan, f"{share}%", None).choice
        blocks = int(
            (share / 100 - 0.0005) * choice.total // (1024 + PAGE)
        )  # the file's data begin within a page
        best = [0.0] + [np.inf] * 12
        for b in range(4):
            rows = [(3 - sum(m), lost[b][i]) for i, m in enumerate(masks)]
            best = [
                min((e + best[n - c] for c, e in rows if c <= n), default=np.inf)
                if b
                else min((e for c, e in rows if c <= n), default=np.inf)
                for n in range(13)
            ]
        assert choice.bound <= 1.1 * best[blocks] ** 0.5 / whole + 1e-6, share
        read = sum(4 - len(choice.spared[key].get("w", ())) for key in ("e0", "e1", "e2"))
        assert choice.read <= read * (1024 + PAGE)
        assert choice.read <= share / 100 * choice.total
    plan.close()


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


def test_thresholds_of_packed_experts_are_refused_before_anything_is_read(tmp_path) -> None:
    """The kernels alone know thresholds of what is left out, and do not decode a packed expert in part."""
    random = np.random.default_rng(4)
    base = {n: t.bfloat16() for n, t in base_of(random).items()}
    save(tmp_path / "base", base)
    for number, name in enumerate(("one", "two")):
        save(tmp_path / name, {n: t.bfloat16() for n, t in heavy(random, base, number).items()})
    pack(str(tmp_path / "one"), str(tmp_path / "base"), tmp_path / "packed")
    make_catalogue(["packed", "two"], "base", anchor=tmp_path, offline=True)

    def plan(method: str):
        text = f"version: 1\nbase: ./base\nexperts: {{one: ./packed, two: ./two}}\nmerge: {method}\n"
        return Blend(parse_recipe(text), anchor=tmp_path).build()

    with pytest.raises(PlanError, match="read no packed expert in part") as caught:
        budgeted(plan("{method: breadcrumbs, density: 0.3, gamma: 0.01}"), "60%", None)
    assert caught.value.diagnostics[0].code == "CV-P200"
    asked = budgeted(plan("{method: task_arithmetic}"), "60%", None)
    assert 0 < asked.choice.bound < 1


def test_experts_that_cancel_are_read_together() -> None:
    """Reading one of two opposite ones alone makes the error larger, so they are one step; and no step is worth more
    than the one before it.
    """
    moves = np.array([[3.0, 0.0, 0.1], [-3.0, 0.1, 0.0], [0.0, 1.0, 0.0], [0.0, 0.9, 0.3]])
    form = SimpleNamespace(how="sum", thinned={}, added=False)
    block = Block(form, "abcd", (moves @ moves.T).tolist(), [1.0] * 4, (1.0, 1.0), [3] * 4, 0.0, [False] * 4)
    block.joined({})
    sizes = [100, 100, 100, 200]
    chain = block.chain([pages.Stretch("", 0, 0, size) for size in sizes])
    left = set(range(4))
    error = lambda: float((moves[sorted(left)].sum(0) ** 2).sum())  # noqa: E731
    assert chain.before == pytest.approx(error())
    worth = []
    for step in chain.steps:
        before = error()
        left -= set(step.members)
        assert step.after == pytest.approx(error(), abs=1e-6)
        assert step.gain == pytest.approx(before - error(), abs=1e-6)
        worth.append(step.gain / sum(sizes[member] for member in step.members))
    assert not left and worth == sorted(worth, reverse=True)
    assert any({0, 1} <= set(step.members) for step in chain.steps)
