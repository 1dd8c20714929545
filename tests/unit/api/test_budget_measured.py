"""What measuring the error of a budget reads and says: within its share, without bias, always the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from budget_models import (
    PAGE,
    base_of,
    exact,
    left_out,
    norm,
    plan_of,
    save,
    shrink,
    votes_of,
)

from cuvee.api import budget_sample
from cuvee.api.again import again
from cuvee.api.blend import Blend
from cuvee.api.budget import budgeted, make_catalogue, measured, running
from cuvee.api.card import card_of_output, card_text
from cuvee.api.execute import save as written
from cuvee.engine.options import RunOptions
from cuvee.errors import UsageError
from cuvee.plan import pages
from cuvee.recipe.load import load_recipe


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch, tmp_path):
    shrink(monkeypatch, tmp_path / "cache")


@pytest.mark.skipif(
    not Path("/proc/self/io").exists(), reason="the system does not count what a process reads"
)
@pytest.mark.parametrize(("share", "merge"), [(1, "sum"), (30, "sum"), (99, "sum"), (60, "votes")])
def test_measuring_the_error_is_part_of_the_budget(share, merge, tmp_path, monkeypatch) -> None:
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

    asked_for, values = [], budget_sample._values

    def counted(source, name, start, stop):
        experts = [opened.source for key, opened in plan.sources.items() if key != asked.choice.base]
        asked_for.append((stop - start) * 2 if any(source is one for one in experts) else 0)
        return values(source, name, start, stop)

    monkeypatch.setattr(budget_sample, "_values", counted)
    measured(asked)  # whatever is imported or opened late is there from here on
    if merge == "sum":
        assert (sum(asked_for) > 0) == (share > 1) and sum(asked_for) <= asked.sample.nbytes
    monkeypatch.undo()
    before = read()
    empty = read() - before
    before = read()
    found = measured(asked)
    taken = read() - before - empty
    plan.close()
    assert (found["sampled_blocks"] > 0) == (asked.sample.nbytes > 0)
    assert taken <= asked.sample.nbytes * 4 / 3 + 8192  # and what the kernel tells of the process


def sampling(folder):
    """Two experts of which the second half of every tensor moves much more, within blocks, too."""
    random = np.random.default_rng(2)
    base = base_of(random)
    save(folder / "base", base)
    experts = []
    for k in range(2):
        steps = {n: torch.linspace(0.001, 1.0, t.numel()).reshape(t.shape) ** 3 for n, t in base.items()}
        experts.append(
            {n: t + steps[n] * torch.from_numpy(random.standard_normal(t.shape)) for n, t in base.items()}
        )
        experts[k] = {n: t.float() for n, t in experts[k].items()}
        save(folder / f"e{k}", experts[k])
    make_catalogue(["e0", "e1"], "base", anchor=folder, offline=True)
    return base, experts


def test_the_measured_error_is_unbiased_and_says_how_sure_it_is(tmp_path, monkeypatch) -> None:
    """Over many draws the mean of the squared estimates is the squared error, and their scatter is the one that is
    told; so too where the catalogue tells another error of every block.
    """
    base, experts = sampling(tmp_path)
    plan = plan_of(tmp_path, [1.0, -0.5])
    asked = budgeted(plan, "40%", None)
    lost = norm(left_out(base, experts, [1.0, -0.5], 1.0, asked.choice.spared).values())
    true = lost / norm(exact(base, experts, [1.0, -0.5], 1.0).values())
    others = {where: 1.0 + (number % 3) for number, where in enumerate(asked.choice.errors)}
    random = np.random.default_rng(4)
    monkeypatch.setattr(budget_sample, "_uniform", lambda text: float(random.random()))
    monkeypatch.setattr(budget_sample, "_DRAWS", 16)
    for errors in (asked.choice.errors, others):
        choice = replace(asked.choice, errors=errors)
        found = []
        for _ in range(150):
            sample = budget_sample.sampled(plan, choice, 1 << 30)
            found.append(measured(replace(asked, choice=choice, sample=sample)))
        squares = np.array([row["error"] ** 2 for row in found])
        told = np.array([2 * row["error"] * row["standard_error"] for row in found])  # of the square
        assert abs(squares.mean() - true**2) < 4 * squares.std() / 150**0.5
        assert 0.8 < np.mean(told**2) ** 0.5 / squares.std() < 1.25
    plan.close()


def test_a_sample_takes_no_more_than_its_room_and_is_always_the_same(tmp_path) -> None:
    sampling(tmp_path)
    plan = plan_of(tmp_path, [1.0, -0.5])
    choice = budgeted(plan, "40%", None).choice
    some, more = (budget_sample.sampled(plan, choice, room) for room in (10 * PAGE, 60 * PAGE))
    again = budget_sample.sampled(plan, choice, 60 * PAGE)
    plan.close()
    assert some.nbytes <= 10 * PAGE < more.nbytes <= 60 * PAGE
    assert more.pieces[: len(some.pieces)] == some.pieces
    assert again == more
    for piece in more.pieces:
        assert piece.number * 256 <= piece.start < piece.stop <= min((piece.number + 1) * 256, 1 << 20)
        assert all(piece.number in choice.spared[key][piece.tensor.meta.name] for key in piece.gone)


def test_whole_tensors_of_a_sample_are_counted_in_pages(tmp_path, monkeypatch) -> None:
    """A small tensor takes a page of each expert, once for all that is there and once for what is read."""
    for module in (pages, budget_sample):
        monkeypatch.setattr(module, "PAGE", 4096)
    monkeypatch.setattr(budget_sample, "SHARE", 4)
    random = np.random.default_rng(6)
    base = {f"w{n}": torch.from_numpy(random.standard_normal(300).astype("f4")) for n in range(20)}
    save(tmp_path / "base", base)
    for k in range(3):
        save(tmp_path / f"e{k}", {n: t + float(k + int(n[1:])) for n, t in base.items()})
    make_catalogue(["e0", "e1", "e2"], "base", anchor=tmp_path, offline=True)
    plan = votes_of(tmp_path)
    choice = budgeted(plan, "60%", None).choice
    whole, some = (budget_sample.sampled(plan, choice, room) for room in (1 << 30, 8 * 4096))
    plan.close()
    assert len(whole.tensors) > 2 and whole.nbytes >= 2 * 3 * 4096 * len(whole.tensors)
    assert some.nbytes <= 8 * 4096 and len(some.tensors) <= 1


@pytest.mark.parametrize(("share", "lossy"), [("10%", True), ("50%", False)])
def test_an_output_of_a_budget_is_reproducible_where_nothing_is_lost(tmp_path, share, lossy) -> None:
    """What was left out is no part of the recipe: running that alone gives another model."""
    random = np.random.default_rng(5)
    base = base_of(random)
    save(tmp_path / "base", base)
    for k in range(2):
        save(tmp_path / f"e{k}", {n: t + torch.randn(t.shape) * (n == "a.weight") for n, t in base.items()})
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "version: 1\nbase: ./base\nexperts: {a: ./e0, b: ./e1}\nmerge: {method: task_arithmetic}\n"
    )
    make_catalogue(["e0", "e1"], "base", anchor=tmp_path, offline=True)
    blend = Blend(load_recipe(recipe), tmp_path)
    plan = blend.build()
    try:
        asked = budgeted(plan, share, None)
        assert (asked.choice.bound > 0) == lossy
        written(asked.plan, tmp_path / "out", runner=running(asked))
        assert not lossy or "of the experts are read" in card_text(asked.plan, "out")
    finally:
        plan.close()
    assert ("made within a budget" in card_of_output(tmp_path / "out", "out")) == lossy
    if not lossy:
        assert again(tmp_path / "out", tmp_path, RunOptions()) == []
        return
    with pytest.raises(UsageError) as caught:
        again(tmp_path / "out", tmp_path, RunOptions())
    assert caught.value.diagnostics[0].code == "CV-U016"


def test_where_no_error_is_left_signs_of_zeros_may_be(tmp_path) -> None:
    """An expert that counts nothing is left out without an error, but what is added to -0 decides its sign."""
    random = np.random.default_rng(5)
    base = {name: torch.full_like(tensor, -0.0) for name, tensor in base_of(random).items()}
    save(tmp_path / "base", base)
    for k in range(2):
        save(tmp_path / f"e{k}", {n: t + torch.randn(t.shape) for n, t in base.items()})
    recipe = tmp_path / "r.yaml"
    merge = "{method: task_arithmetic, lambda: 0}"
    recipe.write_text(f"version: 1\nbase: ./base\nexperts: {{a: ./e0, b: ./e1}}\nmerge: {merge}\n")
    make_catalogue(["e0", "e1"], "base", anchor=tmp_path, offline=True)
    blend = Blend(load_recipe(recipe), tmp_path)
    saved = blend.save(tmp_path / "out", run=RunOptions(), read_budget="10%")
    (row,) = saved.finished.figures["read_budget"]
    assert row["bound"] == 0 and row["lost"] > 0
    with pytest.raises(UsageError) as caught:
        again(tmp_path / "out", tmp_path, RunOptions())
    assert caught.value.diagnostics[0].code == "CV-U016"
