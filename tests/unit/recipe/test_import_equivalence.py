"""MergeKit files and their translations by `cuvee import mergekit` give the same bytes."""

# ruff: noqa: E501 (recipes are written as people write them)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

MODELS = "models:\n  - {model: ./math, parameters: {weight: 0.4, density: 0.6}}\n  - {model: ./code, parameters: {weight: 0.7, density: [0.3, 0.8]}}\n"
RECIPES = {
    "linear": "merge_method: linear\nmodels: [{model: ./math, parameters: {weight: 1}}, {model: ./code, parameters: {weight: 2}}]\n",
    "linear_raw": "merge_method: linear\nparameters: {normalize: false}\nmodels: [{model: ./math, parameters: {weight: 0.4}}]\n",
    "ties": f"merge_method: ties\nbase_model: ./base\n{MODELS}parameters: {{normalize: true, lambda: 0.9}}\ndtype: float32\n",
    "ties_half": f"merge_method: ties\nbase_model: ./base\n{MODELS}dtype: bfloat16\n",
    "task_arithmetic": f"merge_method: task_arithmetic\nbase_model: ./base\n{MODELS}out_dtype: float16\n",
    "dare_ties": f"merge_method: dare_ties\nbase_model: ./base\n{MODELS}parameters: {{rescale: true}}\n",
    "dare_linear": f"merge_method: dare_linear\nbase_model: ./base\n{MODELS}",
    "breadcrumbs": f"merge_method: breadcrumbs\nbase_model: ./base\n{MODELS}parameters: {{gamma: 0.02}}\n",
    "della": f"merge_method: della\nbase_model: ./base\n{MODELS}parameters: {{epsilon: 0.1}}\n",
    "sce": f"merge_method: sce\nbase_model: ./base\n{MODELS}parameters: {{select_topk: 0.5}}\n",
    "model_stock": "merge_method: model_stock\nbase_model: ./base\nmodels: [{model: ./math}, {model: ./code}, {model: ./chat}]\n",
    "karcher": "merge_method: karcher\nmodels: [{model: ./math}, {model: ./code}, {model: ./chat}]\n",
    "nuslerp": "merge_method: nuslerp\nmodels: [{model: ./math, parameters: {weight: 1}}, {model: ./code, parameters: {weight: 3}}]\n",
    "slerp": "merge_method: slerp\nbase_model: ./base\nmodels: [{model: ./base}, {model: ./math}]\nparameters:\n  t:\n"
    "    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}\n    - {filter: mlp, value: [1, 0.5, 0]}\n    - {value: 0.5}\n",
    "slerp_slices": "merge_method: slerp\nbase_model: ./base\nparameters: {t: [0.1, 0.9]}\nslices:\n"
    "  - sources: [{model: ./base, layer_range: [0, 2]}, {model: ./math, layer_range: [0, 2]}]\n",
    "nearswap": "merge_method: nearswap\nbase_model: ./base\nmodels: [{model: ./math}]\nparameters: {t: 0.05}\n",
    "arcee_fusion": "merge_method: arcee_fusion\nbase_model: ./base\nmodels: [{model: ./math}]\n",
    "multislerp": "merge_method: multislerp\nmodels: [{model: ./math, parameters: {weight: 1}}, {model: ./code, parameters: {weight: 2}}]\n",
    "ram": f"merge_method: ram\nbase_model: ./base\n{MODELS}",
    "passthrough": "merge_method: passthrough\nslices:\n  - sources: [{model: ./math, layer_range: [0, 2]}]\n"
    "  - sources: [{model: ./code, layer_range: [0, 1]}]\n  - sources: [{model: ./code, layer_range: [1, 2]}]\n",
    "stacked": "merge_method: linear\nparameters: {weight: [0.2, 0.9, 0.4]}\nslices:\n"
    "  - sources: [{model: ./math, layer_range: [0, 2]}, {model: ./code, layer_range: [0, 2], parameters: {weight: 0.1}}]\n"
    "  - sources: [{model: ./code, layer_range: [0, 2]}, {model: ./chat, layer_range: [0, 2]}]\n    parameters: {weight: [1, 3]}\n",
    "base_elsewhere": "merge_method: task_arithmetic\nbase_model: ./base\nparameters: {weight: 1}\nslices:\n"
    "  - sources: [{model: ./math, layer_range: [1, 2]}, {model: ./base, layer_range: [0, 1]}]\n"
    "  - sources: [{model: ./base, layer_range: [1, 2]}, {model: ./code, layer_range: [1, 2], parameters: {weight: 0.3}}]\n",
    "base_not_used": "merge_method: passthrough\nbase_model: ./base\nslices: [{sources: [{model: ./math, layer_range: [0, 2]}]}]\n",
    "karcher_base": "merge_method: karcher\nbase_model: ./base\nmodels: [{model: ./math}, {model: ./code}]\nparameters: {max_iter: 3}\n",
    "modules": "merge_method: ties\nbase_model: ./base\nparameters: {weight: 1, density: 0.5}\nmodules:\n  default:\n"
    "    parameters: {density: {filter: mlp, value: 0.9}}\n    slices:\n"
    "      - sources: [{model: ./base, layer_range: [0, 1]}, {model: ./math, layer_range: [0, 1], parameters: {weight: [1, 2]}}]\n"
    "      - sources: [{model: ./code, layer_range: [1, 2]}, {model: ./base, layer_range: [1, 2]}]\n        parameters: {weight: 0.3}\n",
    "modules_whole": "merge_method: linear\nmodules: {default: {models: [{model: ./math, parameters: {weight: [1, 2]}}, "
    "{model: ./code, parameters: {weight: 1}}]}}\n",
    "scale": "merge_method: passthrough\nslices:\n  - sources:\n      - model: ./math\n        layer_range: [0, 2]\n        parameters:\n"
    "          scale: [{filter: o_proj, value: 0.0}, {value: 1.0}]\n",
    "filters": "merge_method: ties\nbase_model: ./base\nmodels:\n  - model: ./math\n    parameters:\n      density: 0.5\n"
    "      weight: [{filter: mlp, value: [0.2, 0.8]}, {filter: self_attn, value: 1}, {value: 0.5}]\n"
    "  - {model: ./code, parameters: {weight: 0.5, density: 0.4}}\n",
    "documents": "name: pair\nmerge_method: linear\nmodels: [{model: ./math, parameters: {weight: 1}}, {model: ./code, parameters: {weight: 1}}]\n"
    "---\nmerge_method: ties\nbase_model: ./base\nmodels: [{model: pair, parameters: {weight: 1, density: 0.5}}, {model: ./chat, parameters: {weight: 1, density: 0.5}}]\n",
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_the_translation_gives_the_same_bytes(name: str, here: Path, cli: Any) -> None:
    (here / "mk.yml").write_text(RECIPES[name])
    imported = cli("import", "mergekit", "mk.yml", "-o", "own.cuvee.yaml")
    assert imported.code == 0, imported.err
    for recipe, out in (("mk.yml", "one"), ("own.cuvee.yaml", "two")):
        outcome = cli("merge", recipe, "-o", out, "-q")
        assert outcome.code == 0, outcome.err
    for file in ("model.safetensors", "config.json"):
        assert (here / "one" / file).read_bytes() == (here / "two" / file).read_bytes(), file
    plans = [cli("plan", recipe, "--json").json for recipe in ("mk.yml", "own.cuvee.yaml")]
    assert [t["name"] for t in plans[0]["tensors"]] == [t["name"] for t in plans[1]["tensors"]]


def test_every_translation_is_a_recipe_by_its_own_schema(here: Path, cli: Any) -> None:
    for text in RECIPES.values():
        (here / "mk.yml").write_text(text)
        content = cli("import", "mergekit", "mk.yml", "--json").json
        assert content["recipe"].startswith("# yaml-language-server: ")
        (here / "own.yaml").write_text(content["recipe"])
        checked = cli("check", "--syntax-only", "own.yaml", "--json").json
        assert checked["diagnostics"] == []
        json.dumps(content)


def test_what_has_no_equal_is_said(here: Path, cli: Any) -> None:
    (here / "mk.yml").write_text(
        "merge_method: linear\nparameters: {weight: [{filter: layers.1., value: 2}, {value: 1}]}\nslices:\n"
        "  - sources: [{model: ./math, layer_range: [1, 2]}, {model: ./code, layer_range: [0, 1]}]\n"
    )
    assert "warning[CV-R112]" in cli("import", "mergekit", "mk.yml").err
    (here / "mk.yml").write_text(
        "merge_method: task_arithmetic\nbase_model: ./base\nmodels: [{model: ./base}]\n"
    )
    outcome = cli("import", "mergekit", "mk.yml")
    assert (outcome.code, "CV-R017" in outcome.err) == (2, True)
