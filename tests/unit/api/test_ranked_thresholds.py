"""Thresholds at catalogued ranks: not one byte is another than without a catalogue, and no pass looks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from cuvee.api.blend import Blend
from cuvee.api.budget import make_catalogue
from cuvee.api.execute import load
from cuvee.api.outlook import outlook
from cuvee.api.remerge import closed, remerge
from cuvee.api.sparing import memo_of, spared
from cuvee.cli.app import app
from cuvee.engine.options import RunOptions
from cuvee.engine.ranked import ranks_for
from cuvee.engine.run import run
from cuvee.engine.tables import task_vector
from cuvee.errors import CuveeError
from cuvee.plan.nodes import Apply, walk
from cuvee.recipe.load import parse_recipe
from cuvee.sinks.memory import MemorySink
from cuvee.sources import catalogue as catalogues
from cuvee.sources import catalogue_look

OPTIONS = RunOptions(threads=2)
LITTLE = RunOptions(threads=1, memory=1 << 14)  # too little to keep a tensor between two passes
SHAPES = {"a.weight": (160, 61), "b.weight": (300, 33), "c.bias": (77,), "d.weight": (97, 64)}
EXPERTS = ("e0", "e1", "e2")
KINDS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture(autouse=True)
def few_magnitudes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small tensors are given up as large ones are."""
    catalogue_look.scanner()  # which is tried once in a process, by the true number
    monkeypatch.setattr(catalogue_look, "MOST", 128)
    monkeypatch.setattr(catalogues, "BLOCK", 4096)
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def write(name: str, tensors: dict[str, torch.Tensor]) -> None:
    Path(name).mkdir(exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, Path(name, "model.safetensors"))


def kind_of(dtype: str, number: int) -> torch.dtype:
    return KINDS[dtype] if dtype in KINDS else list(KINDS.values())[number % 3]


def models(dtype: str = "float32", *, steps: bool = False) -> None:
    """Base and experts; with `steps` changes are of few sizes, so that many tie over all tensors."""
    random = np.random.default_rng(3)
    base, experts = {}, {name: {} for name in EXPERTS}
    for number, (name, shape) in enumerate(SHAPES.items()):
        kind = kind_of(dtype, number)
        ground = torch.from_numpy(random.standard_normal(shape)).to(kind)
        base[name] = torch.zeros_like(ground) if steps else ground
        for expert in experts.values():
            change = random.standard_normal(shape) * 10.0 ** -random.integers(1, 5, shape)
            change = np.round(change * 2**11) * 2.0**-11 if steps else change
            expert[name] = (base[name].double() + torch.from_numpy(change)).to(kind)
    write("base", base)
    for name, tensors in experts.items():
        write(name, tensors)


def catalog() -> None:
    make_catalogue(list(EXPERTS), "base", anchor=Path(), offline=True)


def recipe(merge: str) -> str:
    rows = "".join(f"  {name}: {{source: ./{name}}}\n" for name in EXPERTS)
    return f"version: 1\nbase: ./base\nexperts:\n{rows}merge: {merge}\n"


def bits(tensors: Any) -> dict[str, bytes]:
    return {n: t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for n, t in tensors.items()}


def merged(merge: str, options: RunOptions = OPTIONS) -> tuple[dict[str, bytes], dict[str, bytes], list[str]]:
    """What comes out without a catalogue and with it, and the figures that were not known."""
    plan = Blend(parse_recipe(recipe(merge)), Path(), True).build()
    whole = bits(load(plan, replace(options, catalogue=False)))
    less = spared(plan, options)
    asked: list[str] = []
    assert less.tables is not None
    memo = memo_of(less.tables)
    known = memo.known
    assert known is not None

    def told(what: str, nodes: Sequence[Any]) -> Any:
        found = known(what, nodes)
        asked.extend([what] * (found is None))
        return found

    memo.known = told
    sink = MemorySink()
    with sink.begin(plan.layout, plan.digest, resume=False, overwrite=False) as session:
        run(less.plan, session, options, memo=memo)
        session.commit({}, lambda records: b"{}")
    plan.close()
    return whole, bits(sink.tensors), asked


@pytest.mark.parametrize("dtype", ["float32", "float16", "mixed"])
@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("steps", [False, True], ids=["different", "tied"])
def test_a_threshold_at_a_catalogued_rank_is_known(dtype: str, scope: str, steps: bool) -> None:
    models(dtype, steps=steps)
    catalog()
    rules = [(d, "exact") for d in (0.001, 0.2, 0.29, 0.57, 0.999)]
    for density, count in (*rules, (0.2, "official"), (0.35, "strict"), (1.0, "strict")):
        stage = f"trim: {{density: {density}, scope: {scope}, count: {count}}}"
        before, after, unknown = merged(f"[{{{stage}}}, weighted_sum]")
        assert after == before, (density, count)
        assert not unknown, (density, count)


@pytest.mark.parametrize(
    "merge",
    [
        "{method: ties, density: 0.3}",
        "{method: ties, density: 0.3, scope: tensor}",
        "{method: breadcrumbs, density: 0.85, gamma: 0.013}",
        "{method: breadcrumbs_ties, density: 0.1, gamma: 0.9}",
        "{method: breadcrumbs, density: 0.995, gamma: 0.01}",
        "[{trim: {density: 0.4}}, consensus]",
    ],
)
def test_all_methods_of_magnitudes_take_them(merge: str) -> None:
    models()
    catalog()
    before, after, unknown = merged(merge)
    assert after == before
    assert not unknown


@pytest.mark.parametrize(
    "merge",
    [
        "{method: ties, density: 0.12345}",
        "{method: ties, density: 0.12345, scope: tensor}",
        "[{trim: {density: 0.3, rescale: l1}}, weighted_sum]",
        "{method: sce}",
    ],
)
def test_what_is_not_known_is_looked_for(merge: str) -> None:
    models()
    catalog()
    before, after, unknown = merged(merge)
    assert after == before
    assert unknown


def test_differences_that_are_rounded_have_other_ranks() -> None:
    """A recipe in float16 makes magnitudes equal that are different in float32."""
    models("float16")
    catalog()
    rows = "".join(f"  - {{model: {name}, parameters: {{weight: 1, density: 0.3}}}}\n" for name in EXPERTS)
    text = f"merge_method: ties\nbase_model: base\nmodels:\n{rows}dtype: float16\n"
    plan = Blend(parse_recipe(text), Path(), True).build()
    tables = spared(plan, OPTIONS).tables
    assert tables is not None
    assert bits(load(plan, OPTIONS)) == bits(load(plan, replace(OPTIONS, catalogue=False)))
    assert not any(
        tables.cuts([node]) for t in plan.tensors for node in walk(t.node) if trims(node, "b.weight")
    )
    plan.close()


def trims(node: Any, name: str) -> bool:
    return isinstance(node, Apply) and node.stage == "trim" and node.tensor == name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_kernels_the_bytes_are_the_same(dtype: str) -> None:
    models(dtype)
    catalog()
    for scope in ("tensor", "model"):
        merge = f"{{method: ties, density: 0.3, scope: {scope}}}"
        plan = Blend(parse_recipe(recipe(merge)), Path(), True).build()
        options = replace(OPTIONS, kernels=False)
        assert bits(load(plan, options)) == bits(load(plan, replace(OPTIONS, catalogue=False)))
        plan.close()


def test_a_threshold_over_some_tensors_of_a_model_is_looked_for() -> None:
    """Ranks are those of all tensors; where one has another type than the base's, the others' are not known."""
    models()
    tensors = load_file("e2/model.safetensors")
    write("e2", {**tensors, "b.weight": tensors["b.weight"].half()})
    catalog()
    plan = Blend(parse_recipe(recipe("{method: ties, density: 0.3}")), Path(), True).build()
    tables = spared(plan, OPTIONS).tables
    assert tables is not None
    told = {m[0][1].label: tables.cuts([n for _, n in m]) for m in plan.groups().values()}
    assert {label: found is not None for label, found in told.items()} == {
        "e0": True,
        "e1": True,
        "e2": False,
    }
    assert bits(load(plan, OPTIONS)) == bits(load(plan, replace(OPTIONS, catalogue=False)))
    plan.close()


def test_ranks_of_a_model_answer_for_exactly_its_tensors() -> None:
    """Not for some of them, nor where one is taken twice, as layers may be."""
    models()
    catalog()
    plan = Blend(parse_recipe(recipe("{method: ties, density: 0.3}")), Path(), True).build()
    tables = spared(plan, OPTIONS).tables
    assert tables is not None
    members = next(iter(plan.groups().values()))
    taken = [task_vector(node.inputs[0]) for _, node in members]
    assert ranks_for(taken, tables.wholes) is not None
    assert ranks_for(taken[1:], tables.wholes) is None
    assert ranks_for([*taken, taken[0]], tables.wholes) is None
    plan.close()


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_the_plan_tells_the_pass_that_is_not_made(scope: str) -> None:
    models()
    text = f"{{method: ties, density: 0.3, scope: {scope}}}"
    plan = Blend(parse_recipe(recipe(text)), Path(), True).build()
    once = sum(meta.nbytes for opened in plan.sources.values() for meta in opened.source.tensors.values())
    before = outlook(plan, options=LITTLE).prediction.bytes_read
    catalog()
    lighter = spared(plan, LITTLE)
    after = outlook(lighter.plan, options=LITTLE, tables=lighter.tables).prediction
    assert lighter.nbytes == 0
    assert before > once
    assert (after.bytes_read, after.bytes_read_at_most) == (once, None)
    assert lighter.tables is not None
    assert lighter.tables.nbytes > 2 * sum(r.nbytes for r in lighter.tables.wholes.values()) > 0
    plan.close()


def test_a_model_that_is_written_to_has_no_ranks() -> None:
    models()
    catalog()
    plan = Blend(parse_recipe(recipe("{method: ties, density: 0.3}")), Path(), True).build()
    assert spared(plan, OPTIONS).tables is not None
    plan.close()
    models("float32", steps=True)
    plan = Blend(parse_recipe(recipe("{method: ties, density: 0.3}")), Path(), True).build()
    assert spared(plan, OPTIONS).tables is None
    assert bits(load(plan, OPTIONS)) == bits(load(plan, replace(OPTIONS, catalogue=False)))
    plan.close()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_all_the_same(wrong: float) -> None:
    models()
    tensors = load_file("e1/model.safetensors")
    tensors["b.weight"][3, 5] = wrong
    write("e1", tensors)
    said = []
    for _ in range(2):
        plan = Blend(parse_recipe(recipe("{method: ties, density: 0.3}")), Path(), True).build()
        with pytest.raises(CuveeError) as told:
            load(plan, OPTIONS)
        said.append(str(told.value))
        plan.close()
        catalog()
    assert said[0] == said[1]


def test_a_threshold_that_stays_lets_blocks_be_made_anew() -> None:
    """What is far above it became larger in one block."""
    models()
    text = recipe("{method: ties, density: 0.25, scope: tensor, count: official}")
    Path("r.yaml").write_text(text)
    catalog()
    for number, words in enumerate(([], ["--from", "out0"], ["--from", "out1", "--catalog"])):
        if number:
            enlarge("e1", "b.weight", 190)
            catalog()
        if number == 1:
            assert made_anew(text) == {"b.weight"}
        given = ["merge", "r.yaml", "-o", f"out{number}", "--lineage", "--offline", *words]
        assert CliRunner().invoke(app, given, catch_exceptions=False).exit_code == 0
        plan = Blend(parse_recipe(text), Path(), True).build()
        expected = bits(load(plan, replace(OPTIONS, catalogue=False)))
        assert bits(load_file(f"out{number}/model.safetensors")) == expected
        plan.close()


def enlarge(folder: str, name: str, row: int) -> None:
    """Double what changed most in some rows."""
    tensors, ground = load_file(f"{folder}/model.safetensors"), load_file("base/model.safetensors")
    change = (tensors[name] - ground[name])[row : row + 20]
    far = change.abs() > 0.1
    assert far.any()
    tensors[name][row : row + 20][far] += change[far]
    write(folder, tensors)


def made_anew(text: str) -> set[str]:
    """Tensors of which parts are made again, from the first output."""
    plan = Blend(parse_recipe(text), Path(), True).build()
    found = remerge(plan, Path("out0"), OPTIONS)
    parts = {tensor.meta.name for tensor in found.lighter.tensors if tensor.parts}
    closed(found)
    plan.close()
    return parts
