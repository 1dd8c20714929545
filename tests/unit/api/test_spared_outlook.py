"""What a plan says of a merge beside a catalogue: passes that are not made are not counted, tables are memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import cuvee.api.outlook as outlooks
from cuvee.api.blend import Blend
from cuvee.api.budget import make_catalogue
from cuvee.api.outlook import outlook
from cuvee.api.pack import pack
from cuvee.api.sparing import spared
from cuvee.cli.app import app
from cuvee.engine.options import RunOptions
from cuvee.errors import UsageError
from cuvee.recipe.load import parse_recipe

OPTIONS = RunOptions(threads=1, memory=1 << 16)  # too little to keep a tensor between two passes
SHAPE = (400, 512)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    draw = torch.Generator().manual_seed(0)
    base = {name: torch.randn(SHAPE, generator=draw).bfloat16() for name in ("a.weight", "b.weight")}
    for name in ("base", "one", "two"):
        (tmp_path / name).mkdir()
        change = 0 if name == "base" else 0.02
        tensors = {n: (t + change * torch.randn(SHAPE, generator=draw)).bfloat16() for n, t in base.items()}
        save_file(tensors, tmp_path / name / "model.safetensors")
    return tmp_path


def text(scope: str) -> str:
    merge = f"{{method: ties, density: 0.3, scope: {scope}}}"
    return f"version: 1\nbase: ./base\nexperts: {{one: ./one, two: ./two}}\nmerge: {merge}\n"


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_thresholds_that_are_known_take_no_pass(scope: str, models: Path) -> None:
    plan = Blend(parse_recipe(text(scope)), models, True).build()
    once = sum(meta.nbytes for opened in plan.sources.values() for meta in opened.source.tensors.values())
    before = outlook(plan, options=OPTIONS).prediction
    make_catalogue(["one", "two"], "base", anchor=models, offline=True)
    lighter = spared(plan, OPTIONS)
    assert lighter.tables is not None and lighter.nbytes == 0
    after = outlook(lighter.plan, options=OPTIONS, tables=lighter.tables).prediction
    plan.close()
    assert before.bytes_read > once
    assert (after.bytes_read, after.bytes_read_at_most) == (once, None)
    held = sum(
        c.keys.nbytes for by in lighter.tables.changes.values() for c in by.values() if c.keys is not None
    )
    assert held and lighter.tables.nbytes > held


def test_the_command_shows_the_plan_that_a_merge_runs(models: Path) -> None:
    (models / "r.yaml").write_text(text("model"))
    plain, less = [], []
    for found in (plain, less):
        result = CliRunner().invoke(app, ["plan", "r.yaml", "--json", "--offline"], catch_exceptions=False)
        found.append(json.loads(result.stdout))
        make_catalogue(["one", "two"], "base", anchor=models, offline=True)
    assert less[0]["digest"] == plain[0]["digest"]
    assert less[0]["prediction"]["bytes_read"] < plain[0]["prediction"]["bytes_read"]
    read = [told["prediction"]["bytes_read"] for told in (plain[0], less[0])]
    for switch, expected in (("--no-catalog", read[0]), ("--overwrite", read[1])):
        words = ["merge", "r.yaml", "-o", "out", "--dry-run", "--json", "--offline", switch]
        shown = json.loads(CliRunner().invoke(app, words, catch_exceptions=False).stdout)
        assert shown["prediction"]["bytes_read"] == expected, switch
    assert Blend(parse_recipe(text("model")), models, True).plan().ahead.prediction.bytes_read == read[1]


def test_a_factor_that_a_catalogue_does_not_tell_takes_its_pass_all_the_same(models: Path) -> None:
    make_catalogue(["one", "two"], "base", anchor=models, offline=True)
    ample = RunOptions(threads=1, memory=1 << 30)  # in which tensors are kept for a second pass
    read, held = {}, {}
    for rescale in ("none", "l1"):
        merge = f"[{{trim: {{density: 0.3, scope: tensor, rescale: {rescale}}}}}, weighted_sum]"
        recipe = f"version: 1\nbase: ./base\nexperts: {{one: ./one, two: ./two}}\nmerge: {merge}\n"
        plan = Blend(parse_recipe(recipe), models, True).build()
        lighter = spared(plan, OPTIONS)
        read[rescale] = outlook(lighter.plan, None, OPTIONS, lighter.tables).prediction.bytes_read
        held[rescale] = outlook(lighter.plan, None, ample, lighter.tables).prediction.peak_memory
        plan.close()
    once = 3 * 2 * 2 * SHAPE[0] * SHAPE[1]  # three models of two tensors
    assert read == {"none": once, "l1": 2 * once}
    assert held["l1"] - held["none"] > once // 8


def test_a_budget_needs_the_catalogue(models: Path) -> None:
    (models / "recipe.yaml").write_text(text("tensor"))
    found = CliRunner().invoke(
        app, ["merge", "recipe.yaml", "-o", "out", "--read-budget", "50%", "--no-catalog"]
    )
    assert found.exit_code != 0 and not (models / "out").exists()
    assert isinstance(found.exception, UsageError), found.exception
    assert "`--no-catalog`" in str(found.exception)


def test_decoding_takes_memory_and_tells_nothing_of_the_disk(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlooks, "LARGE", 1)
    pack("./one", "./base", models / "packed-one", anchor=models)
    plain = Blend(parse_recipe(text("tensor"))).build()
    packed = Blend(parse_recipe(text("tensor").replace("one: ./one", "one: ./packed-one"))).build()
    try:
        said = [outlook(plan, options=OPTIONS).prediction.peak_memory for plan in (plain, packed)]
        assert said[1] - said[0] >= 20e6
        assert outlooks.teaches(plain) and not outlooks.teaches(packed)
    finally:
        plain.close()
        packed.close()
