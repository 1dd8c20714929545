"""What lies beside the weights says the type that they have; digests of plans say what decides bytes and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import cuvee
from cuvee.api.blend import Blend
from cuvee.plan.build import PlanOptions
from cuvee.recipe.load import parse_recipe

HEAD = "version: 1\nexperts: {a: ./a, b: ./b}\nmerge: {method: average}\n"


@pytest.fixture
def folder(tmp_path: Path, make_llama: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models in bfloat16, whose configs say so in every place there is."""
    for seed, name in enumerate("ab"):
        made = make_llama(tmp_path / name, seed)
        half = {n: t.bfloat16() for n, t in made.items()}
        half["model.norm.weight"] = made["model.norm.weight"]  # one that is kept wide
        save_file(half, tmp_path / name / "model.safetensors")
        path = tmp_path / name / "config.json"
        config = json.loads(path.read_text()) | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
        config["text_config"] = {"torch_dtype": "bfloat16", "hidden_size": 8}
        path.write_text(json.dumps(config))
        (tmp_path / name / "generation_config.json").write_text(
            '{"eos_token_id": 1, "torch_dtype": "bfloat16"}'
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", "bfloat16"),
        ("dtype: float32\n", "float32"),
        ("output: {dtype: float16}\n", "float16"),
        ("dtype: float64\noutput: {dtype: bfloat16}\n", "bfloat16"),
        ("dtype: float16\n", "float16"),
    ],
)
def test_every_file_says_the_type_that_most_of_the_weights_have(
    more: str, expected: str, folder: Path
) -> None:
    Blend(parse_recipe(HEAD + more)).save(folder / "out")
    config = json.loads((folder / "out" / "config.json").read_text())
    generation = json.loads((folder / "out" / "generation_config.json").read_text())
    found = [
        config["dtype"],
        config["torch_dtype"],
        config["text_config"]["torch_dtype"],
        generation["torch_dtype"],
    ]
    assert found == [expected] * 4
    weights = load_file(folder / "out" / "model.safetensors")
    assert weights["lm_head.weight"].dtype == getattr(torch, expected)
    wide = expected if more else "float32"  # without a wish each tensor keeps its own
    assert weights["model.norm.weight"].dtype == getattr(torch, wide)
    assert cuvee.verify(folder / "out") == []


def test_a_config_that_says_no_type_gets_one_and_a_generation_config_does_not(folder: Path) -> None:
    for name in "ab":
        config = json.loads((folder / name / "config.json").read_text())
        plain = {k: v for k, v in config.items() if k not in ("dtype", "torch_dtype", "text_config")}
        (folder / name / "config.json").write_text(json.dumps(plain))
        (folder / name / "generation_config.json").write_text('{"eos_token_id": 1}')
    Blend(parse_recipe(HEAD)).save(folder / "out")
    config = json.loads((folder / "out" / "config.json").read_text())
    assert (config["dtype"], "torch_dtype" in config) == ("bfloat16", False)
    assert json.loads((folder / "out" / "generation_config.json").read_text()) == {"eos_token_id": 1}


def test_switching_rules_off_does_not_change_what_a_plan_is(folder: Path) -> None:
    text = "version: 1\nexperts: {a: ./a}\nmerge: {method: passthrough}\noutput: {dtype: bfloat16}\n"
    recipe = parse_recipe(text)
    plans = []
    for off in ((), ("copy_passthrough",), ("collapse_casts", "copy_passthrough")):
        plan = Blend(recipe, options=PlanOptions(off)).build()
        plan.close()
        plans.append(plan)
    assert len({plan.digest for plan in plans}) == 1
    assert [t.action for t in plans[0].tensors] != [
        t.action for t in plans[2].tensors
    ]  # the work does change


def test_mergekit_s_architecture_of_a_model_and_revision_of_a_folder(folder: Path) -> None:
    config = json.loads((folder / "b" / "config.json").read_text())
    (folder / "b" / "config.json").write_text(
        json.dumps({**config, "architectures": ["MistralForCausalLM"], "model_type": "mistral"})
    )
    text = (
        "merge_method: linear\nparameters: {weight: 1}\n"
        "base_model: {model: ./b, override_architecture: LlamaForCausalLM}\n"
        "models:\n  - model: ./a@main\n  - model: {model: {path: ./b}, override_architecture: LlamaForCausalLM}\n"
    )
    plan = Blend(parse_recipe(text)).build()
    plan.close()
    assert (plan.family.name, plan.config and plan.config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert "CV-P112" in [d.code for d in plan.notes if d.severity == "warning"]
    with pytest.raises(cuvee.CuveeError, match="CV-P005"):
        Blend(parse_recipe(text.replace(", override_architecture: LlamaForCausalLM", ""))).build()
