"""Cuvée's own recipes, run: rules, curves, trees, arithmetic, arrangements of layers, `--set`; values by plain torch."""

# ruff: noqa: E501 (recipes are written as people write them)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import cuvee
from cuvee.errors import CuveeError
from cuvee.recipe.load import parse_recipe

Tensors = dict[str, Tensor]
UP = "model.layers.{}.mlp.up_proj.weight"
Q = "model.layers.{}.self_attn.q_proj.weight"
HEAD = "version: 1\nbase: ./base\nexperts:\n  math: ./math\n  code: ./code\n"


@pytest.fixture
def models(here: Path) -> dict[str, Tensors]:
    return {n: load_file(here / n / "model.safetensors") for n in ("base", "math", "code", "chat", "deep")}


def made(text: str, *changes: str) -> Tensors:
    """The tensors of a recipe, merged in memory."""
    from cuvee.api.blend import Blend
    from cuvee.recipe.override import overridden

    return Blend(overridden(parse_recipe(text), list(changes))).load()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# -- rules and curves -------------------------------------------------------------------------------------------


def moved(found: Tensors, models: dict[str, Tensors], name: str) -> float:
    """How far a tensor went from base to math: the value of `weight` there."""
    step = models["math"][name] - models["base"][name]
    return float(((found[name] - models["base"][name]) * step).sum() / (step * step).sum())


RULES = {
    "role": ("[{role: mlp, value: 1}, {value: 0}]", {UP: (1, 1), Q: (0, 0)}),
    "roles": ("[{role: [q, up], value: 1}, {value: 0.5}]", {UP: (1, 1), Q: (1, 1), "lm_head.weight": (0.5,)}),
    "group": ("[{role: attention, value: 0.25}, {value: 1}]", {UP: (1, 1), Q: (0.25, 0.25)}),
    "layers": ("[{layers: [1, 2], value: 1}, {value: 0}]", {UP: (0, 1), Q: (0, 1), "lm_head.weight": (0,)}),
    "layer": ("[{layers: 0, value: 1}, {value: 0}]", {UP: (1, 0)}),
    "name": ("[{name: '*.up_proj.*', value: 1}, {value: 0}]", {UP: (1, 1), Q: (0, 0)}),
    "name part": ("[{name: mlp, value: 1}, {value: 0}]", {UP: (1, 1), Q: (0, 0)}),
    "both": ("[{role: up, layers: 1, value: 1}, {value: 0}]", {UP: (0, 1), Q: (0, 0)}),
    "first wins": (
        "[{role: up, value: 0.5}, {role: mlp, value: 1}, {value: 0}]",
        {UP: (0.5, 0.5), Q: (0, 0)},
    ),
    "module": ("[{module: default, value: 1}, {value: 0}]", {UP: (1, 1)}),
    "curve in a rule": ("[{role: up, value: [0, 1]}, {value: 0.5}]", {UP: (0, 1), Q: (0.5, 0.5)}),
    "curve": (
        "[0.25, 0.75]",
        {UP: (0.25, 0.75), "model.embed_tokens.weight": (0.25,), "lm_head.weight": (0.75,)},
    ),
    "shape": ("{curve: step, points: [0, 0.5, 1]}", {UP: (0, 1)}),
    "patterns": ("{default: 0.5, '*.up_proj.*': 1}", {UP: (1, 1), Q: (0.5, 0.5)}),
}


@pytest.mark.parametrize("name", RULES)
def test_rules(name: str, models: dict[str, Tensors]) -> None:
    written, expected = RULES[name]
    text = f"version: 1\nbase: ./base\nexperts: {{math: ./math}}\nmerge: {{method: task_arithmetic, weight: {written}}}\n"
    found = made(text)
    for template, shares in expected.items():
        for layer, share in enumerate(shares):
            assert moved(found, models, template.format(layer)) == pytest.approx(share, abs=1e-5)


def test_edges_first(models: dict[str, Tensors]) -> None:
    text = (
        HEAD.replace("  code: ./code\n", "")
        + "merge: {method: task_arithmetic, weight: [0.25, 0.75]}\nedges: first\n"
    )
    found = made(text)
    assert moved(found, models, "lm_head.weight") == pytest.approx(0.25, abs=1e-5)
    assert moved(found, models, UP.format(1)) == pytest.approx(0.75, abs=1e-5)


def test_the_more_specific_value_wins(models: dict[str, Tensors]) -> None:
    """Expert over slice over shared; `--set` over all."""
    text = (
        "version: 1\nbase: ./base\nexperts:\n  math: {source: ./math, weight: 0.25}\n"
        "merge: {method: task_arithmetic, weight: 0.75}\n"
        "layers: [{from: math, range: [0, 2], parameters: {weight: 0.5}}]\n"
    )
    assert moved(made(text), models, UP.format(0)) == pytest.approx(0.25, abs=1e-5)
    without = text.replace("{source: ./math, weight: 0.25}", "./math")
    assert moved(made(without), models, UP.format(0)) == pytest.approx(0.5, abs=1e-5)
    shared = without.replace(", parameters: {weight: 0.5}", "")
    assert moved(made(shared), models, UP.format(0)) == pytest.approx(0.75, abs=1e-5)
    for key in ("weight", "merge.weight", "parameters.weight"):
        assert moved(made(text, f"{key}=0.1"), models, UP.format(0)) == pytest.approx(0.1, abs=1e-5)
    curve = made(text, "weight=[0, 1]")
    assert [moved(curve, models, UP.format(i)) for i in (0, 1)] == pytest.approx([0, 1], abs=1e-5)


# -- sources ----------------------------------------------------------------------------------------------------


def test_arithmetic(models: dict[str, Tensors]) -> None:
    text = (
        "version: 1\nexperts: {a: {arithmetic: math + 0.5 * (code - base) - 2 * 0.25 * (base - chat)}}\n"
        "sources: {math: ./math, code: ./code, base: ./base, chat: ./chat}\nmerge: {method: passthrough}\n"
    )
    for name, tensor in made(text).items():
        base, math, code, chat = (models[m][name].double() for m in ("base", "math", "code", "chat"))
        close(tensor, (math + 0.5 * (code - base) - 0.5 * (base - chat)).float())


def test_arithmetic_of_arithmetic_in_any_order(models: dict[str, Tensors]) -> None:
    lines = ["s: {arithmetic: 0.5 * d + math}", "d: {arithmetic: code - base}", "math: ./math", "code: ./code",
             "base: ./base"]  # fmt: skip
    for order in (lines, lines[::-1], [lines[1], lines[0], *lines[2:]]):
        text = f"version: 1\nexperts: {{a: {{arithmetic: s}}}}\nsources: {{{', '.join(order)}}}\n"
        for name, tensor in made(text + "merge: {method: passthrough}\n").items():
            base, math, code = (models[m][name].double() for m in ("base", "math", "code"))
            close(tensor, (math + 0.5 * (code - base)).float())
    circle = "version: 1\nexperts: {a: {arithmetic: b}, b: {arithmetic: 2 * c}, c: {arithmetic: a}}\n"
    with pytest.raises(CuveeError, match="`a` → `b` → `c` → `a`") as caught:
        made(circle + "merge: {method: linear}\n")
    assert {d.code for d in caught.value.diagnostics} == {"CV-P111"}


def test_the_base_may_be_arithmetic_or_a_recipe(models: dict[str, Tensors]) -> None:
    sums = "base: {arithmetic: 0.5 * math + 0.5 * code}\nexperts: {math: ./math, code: ./code}\n"
    tree = "base: {recipe: {experts: {x: ./math, y: ./code}, merge: {method: linear}}}\nexperts: {math: ./math}\n"
    for head in (sums, tree):
        found = made(f"version: 1\n{head}merge: {{method: task_arithmetic, weight: 1, lambda: 0.5}}\n")
        for name, tensor in found.items():
            middle = (models["math"][name] + models["code"][name]) / 2
            deltas = [models["math"][name] - middle]
            if head is sums:
                deltas.append(models["code"][name] - middle)
            close(tensor, middle + 0.5 * sum(deltas))


INNER = {
    "ties": "base: ./base\nexperts: {a: ./math, b: ./code}\nmerge: {method: ties, density: 0.4, lambda: 0.9}\n",
    "slerp": "experts: {a: ./math, b: ./chat}\nmerge: {method: slerp, t: [0.2, 0.8]}\n",
    "dare": "base: ./base\nexperts: {a: ./math, b: ./code}\nmerge: {method: dare_linear, density: 0.5}\nseed: 5\n",
    "chain": "base: ./base\nexperts: {a: ./math, b: ./code}\nmerge: [trim: {density: 0.5}, elect, scale: {lambda: 0.7}]\n",
    "layers": "experts: {a: ./math, b: ./code}\nmerge: {method: passthrough}\nlayers: [{from: {a: [0, 1]}}, {from: {b: [1, 2]}}]\n",
    "half": "experts: {a: ./math, b: ./code}\nmerge: {method: linear}\ndtype: bfloat16\noutput: {dtype: bfloat16}\n",
}


def nested(text: str) -> str:
    return json.dumps({"recipe": _plain(text)})


def _plain(text: str) -> Any:
    from ruamel.yaml import YAML

    return json.loads(json.dumps(YAML(typ="safe", pure=True).load(text)))


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("outer", ["linear", "ties", "base"])
def test_a_tree_of_merges_equals_steps_through_folders(name: str, outer: str, here: Path, cli: Any) -> None:
    def whole(source: str) -> str:
        if outer == "base":
            return f"version: 1\nbase: {source}\nexperts: {{c: ./chat}}\nmerge: {{method: task_arithmetic, weight: 0.3}}\n"
        base = "base: ./base\n" if outer == "ties" else ""
        return f"version: 1\n{base}experts: {{in: {source}, c: ./chat}}\nmerge: {{method: {outer}}}\n"

    (here / "inner.yaml").write_text("version: 1\n" + INNER[name])
    (here / "tree.yaml").write_text(whole(nested(INNER[name])))
    (here / "file.yaml").write_text(whole("{recipe: inner.yaml}"))
    (here / "steps.yaml").write_text(whole("./inner"))
    for recipe, out in (("inner", "inner"), ("tree", "tree"), ("file", "file"), ("steps", "steps")):
        outcome = cli("merge", f"{recipe}.yaml", "-o", out, "-q")
        assert outcome.code == 0, outcome.err
    weights = {out: (here / out / "model.safetensors").read_bytes() for out in ("tree", "file", "steps")}
    assert weights["tree"] == weights["file"]
    assert weights["tree"] == weights["steps"]
    configs = {out: (here / out / "config.json").read_bytes() for out in weights}
    assert len(set(configs.values())) == 1


def test_three_levels(models: dict[str, Tensors]) -> None:
    two = {"recipe": {"experts": {"a": "./math", "b": "./code"}, "merge": {"method": "linear"}}}
    one = {"recipe": {"experts": {"x": two, "c": "./chat"}, "merge": {"method": "linear"}}}
    text = json.dumps({"version": 1, "experts": {"y": one, "d": "./base"}, "merge": {"method": "linear"}})
    for name, tensor in made(text).items():
        inner = (models["math"][name] + models["code"][name]) / 2
        close(tensor, ((inner + models["chat"][name]) / 2 + models["base"][name]) / 2)


# -- arrangements -----------------------------------------------------------------------------------------------


def test_depth_up_scaling(here: Path, cli: Any, models: dict[str, Tensors]) -> None:
    (here / "r.yaml").write_text(
        "version: 1\nexperts: {a: ./deep}\nmerge: {method: dus, layers: 3, drop: 1}\n"
    )
    assert cli("merge", "r.yaml", "-o", "out", "-q").code == 0
    found = load_file(here / "out" / "model.safetensors")
    for number, source in enumerate((0, 1, 1, 2)):
        assert torch.equal(found[UP.format(number)], models["deep"][UP.format(source)])
    assert UP.format(4) not in found
    assert json.loads((here / "out" / "config.json").read_text())["num_hidden_layers"] == 4
    assert torch.equal(found["lm_head.weight"], models["deep"]["lm_head.weight"])


@pytest.mark.parametrize("outer", ["", ", outer: math"])
def test_layer_swap(outer: str, models: dict[str, Tensors], here: Path) -> None:
    text = f"version: 1\nexperts: {{math: ./math, code: ./code}}\nmerge: {{method: layer_swap, layers: 2, bottom: 1, top: 0{outer}}}\n"
    found = made(text)
    outside, inside = ("math", "code") if outer else ("code", "math")
    assert torch.equal(found[UP.format(0)], models[outside][UP.format(0)])
    assert torch.equal(found[UP.format(1)], models[inside][UP.format(1)])
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert torch.equal(found[name], models[outside][name])


def test_layers_of_several_experts(models: dict[str, Tensors]) -> None:
    text = (
        "version: 1\nexperts: {math: ./math, code: {source: ./code, weight: 3}}\nmerge: {method: linear}\nlayers:\n"
        "  - {from: [math, code], range: [1, 2]}\n  - {from: {code: [0, 1], math: [1, 2]}}\n  - {from: math, range: [0, 1]}\n"
    )
    found = made(text)
    math, code = models["math"], models["code"]
    close(found[UP.format(0)], (math[UP.format(1)] + 3 * code[UP.format(1)]) / 4)
    close(found[UP.format(1)], (math[UP.format(1)] + 3 * code[UP.format(0)]) / 4)
    assert torch.equal(found[UP.format(2)], math[UP.format(0)])


# -- files of several documents, circles --------------------------------------------------------------------------


def test_documents_that_name_each_other(models: dict[str, Tensors]) -> None:
    text = (
        "name: final\nmerge_method: linear\nmodels:\n  - {model: pair, parameters: {weight: 1}}\n"
        "  - {model: ./chat, parameters: {weight: 3}}\n---\nname: pair\nmerge_method: linear\n"
        "models: [{model: ./math, parameters: {weight: 1}}, {model: ./code, parameters: {weight: 1}}]\n"
    )
    for name, tensor in made(text).items():
        pair = (models["math"][name] + models["code"][name]) / 2
        close(tensor, (pair + 3 * models["chat"][name]) / 4)
    unnamed = made(text.replace("name: final\n", ""))
    assert all(torch.equal(unnamed[n], t) for n, t in made(text).items())


def test_circles_through_files(here: Path, cli: Any) -> None:
    for one, two in (("a", "b"), ("b", "c"), ("c", "a")):
        (here / f"{one}.yaml").write_text(
            f"version: 1\nexperts: {{x: {{recipe: {two}.yaml}}, y: ./math}}\nmerge: {{method: linear}}\n"
        )
    outcome = cli("check", "a.yaml")
    assert outcome.code == 2
    assert outcome.err.count("error[CV-R015]") == 1
    assert "`a.yaml` is open already" in outcome.err


def test_the_same_nested_file_twice_is_no_circle(here: Path, models: dict[str, Tensors]) -> None:
    (here / "in.yaml").write_text("version: 1\nexperts: {a: ./math, b: ./code}\nmerge: {method: linear}\n")
    (here / "r.yaml").write_text(
        "version: 1\nexperts: {x: {recipe: in.yaml}, y: {recipe: in.yaml}}\nmerge: {method: linear}\n"
    )
    found = cuvee.load("r.yaml").load()
    close(found[UP.format(0)], (models["math"][UP.format(0)] + models["code"][UP.format(0)]) / 2)


def test_paths_start_at_the_recipe(here: Path, cli: Any) -> None:
    folder = here / "recipes" / "deep"
    folder.mkdir(parents=True)
    (folder / "in.yaml").write_text("version: 1\nexperts: {a: ../../math}\nmerge: {method: passthrough}\n")
    (here / "recipes" / "r.yaml").write_text(
        "version: 1\nexperts: {x: {recipe: deep/in.yaml}, y: ../code}\nmerge: {method: linear}\n"
    )
    outcome = cli("check", "recipes/r.yaml")
    assert outcome.code == 0, outcome.err


# -- `--set` ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("densty=0.5", "CV-R007"),
        ("density=2", "CV-R010"),
        ("density=lots", "CV-R010"),
        ("density=[0.1, 2]", "CV-R010"),
        ("density", "CV-U005"),
        ("density=[", "CV-R001"),
        ("density={a: 1}", "CV-R010"),
        ("=3", "CV-R007"),
    ],
)
def test_changes_that_are_refused(change: str, code: str, models: dict[str, Tensors]) -> None:
    for head in (HEAD + "merge: {method: ties}\n",):
        with pytest.raises(CuveeError) as caught:
            made(head, change)
        assert (caught.value.diagnostics[0].code, caught.value.exit_code) == (code, 2)


def test_set_on_a_chain_says_what_to_do(models: dict[str, Tensors]) -> None:
    with pytest.raises(CuveeError) as caught:
        made(HEAD + "merge: [trim, elect]\n", "density=0.5")
    assert caught.value.diagnostics[0].code == "CV-U005"


def test_what_the_command_line_changed_is_reproduced(here: Path, cli: Any) -> None:
    (here / "r.yaml").write_text(HEAD + "merge: {method: ties, density: 0.4}\n")
    line = ["merge", "r.yaml", "-o", "out", "-q", "--set", "lambda=0.5", "--dtype", "bfloat16", "--seed", "3"]
    assert cli(*line).code == 0
    assert cli("verify", "out").code == 0
    outcome = cli("reproduce", "out")
    assert outcome.code == 0, outcome.err
