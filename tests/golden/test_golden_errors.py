"""A gallery of wrong recipes: the full text of what a person reads, one golden file each, with the recipe above it.

Every code of recipes, plans and usage that a recipe can reach is in the gallery; a test says which are not and why.
"""

# ruff: noqa: E501 (recipes are written as people write them)

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cuvee.cli.codes import codes

OWN = "version: 1\nbase: ./base\nexperts:\n  math: ./math\n  code: ./code\n"
MK = "merge_method: ties\nbase_model: ./base\nmodels:\n  - {model: ./math, parameters: {weight: 1}}\n"
GALLERY: dict[str, str] = {
    # YAML
    "yaml_colon": "merge_method ties\nmodels: []\n",
    "yaml_quote": OWN + "merge: {method: 'ties}\n",
    "yaml_tab": "version: 1\nexperts:\n\tmath: ./math\n",
    "yaml_duplicate": OWN + "merge: {method: ties}\nbase: ./other\n",
    "yaml_tag": OWN + "merge: !!python/object:os.system {method: ties}\n",
    "yaml_deep": "version: " + "[" * 600 + "]" * 600 + "\n",
    "yaml_key": "? [a, b]\n: 1\nversion: 1\n",
    "yaml_empty": "# nothing\n",
    "yaml_list": "- a\n- b\n",
    "yaml_text": "linear\n",
    # own recipes: structure
    "own_unknown_key": OWN + "merge: {method: ties}\nouput: {dtype: float16}\n",
    "own_inner_key": OWN + "merge: {method: ties}\noutput: {shard_sise: 5GB}\n",
    "own_key_elsewhere": OWN + "merge: {method: ties}\nshard_size: 5GB\n",
    "own_missing_merge": OWN,
    "own_missing_method": OWN + "merge: {mehtod: ties}\n",
    "own_no_experts": "version: 1\nexperts: {}\nmerge: {method: linear}\n",
    "own_version": OWN.replace("version: 1", "version: 2") + "merge: {method: ties}\n",
    "own_curve_depths": OWN + "merge: {method: task_arithmetic, lambda: [[0.6, 0.2], [0.2, 1.0]]}\n",
    "own_method": OWN + "merge: {method: tise}\n",
    "own_method_far": OWN + "merge: {method: blend_everything}\n",
    "own_stage": OWN + "merge: [trimm, elect]\n",
    "own_stage_form": OWN + "merge: [{trim: {}, elect: {}}, 3]\n",
    "own_stage_parameters": OWN + "merge: [{trim: 0.3}, elect]\n",
    "own_parameter": OWN + "merge: {method: ties, densty: 0.3}\n",
    "own_parameter_range": OWN + "merge: {method: ties, density: 1.5}\n",
    "own_parameter_type": OWN + "merge: {method: ties, density: lots}\n",
    "own_parameter_choice": OWN + "merge: {method: ties, vote: wieghted}\n",
    "own_parameter_of_expert": OWN.replace("./math", "{source: ./math, wieght: 1}") + "merge: {method: ties}\n",
    "own_curve_shape": OWN + "merge: {method: ties, density: {curve: cosin, points: [0, 1]}}\n",
    "own_curve_points": OWN + "merge: {method: ties, density: {curve: cosine}}\n",
    "own_curve_empty": OWN + "merge: {method: ties, density: []}\n",
    "own_curve_range": OWN + "merge: {method: ties, density: [0.5, -0.5]}\n",
    "own_rule_key": OWN + "merge:\n  method: ties\n  density:\n    - {rol: mlp, value: 0.3}\n    - {value: 0.5}\n",
    "own_rule_value": OWN + "merge: {method: ties, density: [{role: mlp}]}\n",
    "own_rule_role": OWN + "merge: {method: ties, density: [{role: atention, value: 0.3}, {value: 0.5}]}\n",
    "own_rule_layers": OWN + "merge: {method: ties, density: [{layers: [2, 1], value: 0.3}, {value: 0.5}]}\n",
    "own_rule_mixed": OWN + "merge: {method: ties, density: [0.3, {value: 0.5}]}\n",
    "own_rule_module": OWN + "merge: {method: ties, density: [{module: [x], value: 1}, {value: 0.5}]}\n",
    "own_source_form": OWN.replace("./math", "{sorce: ./math}") + "merge: {method: ties}\n",
    "own_source_two": OWN.replace("./math", "{source: ./math, arithmetic: code}") + "merge: {method: ties}\n",
    "own_source_type": OWN.replace("./math", "[./math]") + "merge: {method: ties}\n",
    "own_source_key": OWN.replace("./math", "{source: {path: ./math, revison: x}}") + "merge: {method: ties}\n",
    "own_source_empty": OWN.replace("./math", "''") + "merge: {method: ties}\n",
    "own_name_base": OWN.replace("math:", "base:") + "merge: {method: ties}\n",
    "own_name_twice": OWN + "sources: {math: ./x}\nmerge: {method: ties}\n",
    "own_arithmetic": OWN.replace("./math", "{arithmetic: code * base}") + "merge: {method: ties}\n",
    "own_arithmetic_open": OWN.replace("./math", "{arithmetic: 2 * (code - base}") + "merge: {method: ties}\n",
    "own_arithmetic_number": OWN.replace("./math", "{arithmetic: code + 1}") + "merge: {method: ties}\n",
    "own_arithmetic_name": OWN.replace("./math", "{arithmetic: code + cod}") + "merge: {method: ties}\n",
    "own_layers_name": OWN + "merge: {method: ties}\nlayers: [{from: [math, cod], range: [0, 2]}]\n",
    "own_layers_range": OWN + "merge: {method: ties}\nlayers: [{from: {math: [0, two]}}]\n",
    "own_tokenizer_source": OWN + "merge: {method: ties}\ntokenizer: mth\n",
    "own_dtype": OWN + "merge: {method: ties}\ndtype: bflot16\n",
    "own_shard_size": OWN + "merge: {method: ties}\noutput: {shard_size: big}\n",
    "own_seed": OWN + "merge: {method: ties}\nseed: -1\n",
    "own_nested": OWN.replace("./math", "{recipe: {experts: {x: ./math}, merge: {method: tis}}}") + "merge: {method: ties}\n",
    "own_nested_missing": OWN.replace("./math", "{recipe: gone.yaml}") + "merge: {method: ties}\n",
    "own_circle": OWN.replace("./math", "{recipe: r.yaml}") + "merge: {method: ties}\n",
    "own_dus": "version: 1\nexperts: {a: ./math}\nmerge: {method: dus, layers: 2}\n",
    "own_dus_value": "version: 1\nexperts: {a: ./math}\nmerge: {method: dus, layers: 2, drop: -1}\n",
    "own_dus_two": OWN + "merge: {method: dus, layers: 2, drop: 1}\n",
    "own_layer_swap": OWN + "merge: {method: layer_swap, layers: 2, bottom: 2, top: 2}\n",
    "own_several": "version: 1\nexprts: {a: ./math}\nexperts: {b: {source: ./code, wieght: 1}}\n"
    "merge: {method: linear, weight: lots, normalise: false}\noutput: {dtype: int4}\n",
    # MergeKit's language
    "mk_method": MK.replace("ties", "tise", 1),
    "mk_method_ours": MK.replace("ties", "task_negation", 1),
    "mk_dtype": MK + "dytpe: bfloat16\n",
    "mk_dtype_value": MK + "dtype: bfloat\n",
    "mk_parameter": MK.replace("{weight: 1}", "{wieght: 1, densty: 0.5}"),
    "mk_parameter_type": MK.replace("{weight: 1}", "{weight: lots}"),
    "mk_filter_key": MK.replace("{weight: 1}", "{weight: [{fliter: mlp, value: 1}, {value: 2}]}"),
    "mk_filter_value": MK.replace("{weight: 1}", "{weight: [{filter: mlp}]}"),
    "mk_models_and_slices": MK + "slices:\n  - sources: [{model: ./math, layer_range: [0, 2]}]\n",
    "mk_nothing": "merge_method: linear\n",
    "mk_model_missing": "merge_method: linear\nmodels: [{parameters: {weight: 1}}]\n",
    "mk_layer_range": "merge_method: passthrough\nslices: [{sources: [{model: ./math, layer_range: [2, 0]}]}]\n",
    "mk_layer_range_missing": "merge_method: passthrough\nslices: [{sources: [{model: ./math}]}]\n",
    "mk_reference": MK.replace("./math", "a@b@c"),
    "mk_reference_key": MK.replace("./math", "{model: {paht: ./math}}"),
    "mk_tokenizers": MK + "tokenizer_source: union\ntokenizer: {source: base}\n",
    "mk_token": MK + "tokenizer: {tokens: {a: {source: {kind: model_token, model: ./math}}}}\n",
    "mk_residual": "merge_method: passthrough\nslices:\n  - sources: [{model: ./math, layer_range: [0, 9]}]\n    residual_weight: 1\n",
    "mk_documents_names": "name: a\nmerge_method: linear\nmodels: [{model: ./math}]\n---\nname: a\nmerge_method: linear\n",
    "mk_documents_two": MK + "---\n" + MK,
    "mk_documents_circle": "name: a\nmerge_method: linear\nmodels: [{model: b}]\n---\n"
    "name: b\nmerge_method: linear\nmodels: [{model: a}]\n---\nmerge_method: linear\nmodels: [{model: a}]\n",
    "mk_documents_roots": "name: a\nmerge_method: linear\nmodels: [{model: ./x}]\n---\nname: b\nmerge_method: linear\n",
    "mk_name_list": "name: [a]\nmerge_method: linear\nmodels: [{model: ./math}]\n---\nmerge_method: linear\n",
    "mk_several": "merge_method: ties\nbase_model: ./base\nmodels:\n  - model: ./math\n    parameters:\n      weight: lots\n"
    "      densty: 0.3\n  - modle: ./code\nout_dype: float16\ndtype: float17\n",
    # recipes that do not fit their checkpoints
    "plan_missing_model": MK.replace("./math", "./maht"),
    "plan_missing_base": OWN.replace("base: ./base\n", "") + "merge: {method: ties}\n",
    "plan_counts_three": OWN.replace("base: ./base\n", "") + "  chat: ./chat\nmerge: {method: slerp, t: 0.5}\n",
    "plan_twice": MK + "  - {model: ./math, parameters: {weight: 2}}\n",
    "plan_required": OWN.replace("base: ./base\n", "") + "merge: {method: slerp}\n",
    "plan_filter": OWN + "merge: {method: ties, density: [{name: mlp.gate*, value: 0.3}, {value: 0.5}]}\n",
    "plan_unused": OWN + "sources: {extra: ./chat}\nmerge: {method: ties}\n",
    "plan_unused_expert": OWN + "merge: {method: ties}\nlayers: [{from: [math], range: [0, 2]}]\n",
    "plan_range": "merge_method: passthrough\nslices: [{sources: [{model: ./math, layer_range: [0, 9]}]}]\n",
    "plan_lengths": "merge_method: linear\nslices:\n  - sources: [{model: ./math, layer_range: [0, 2], parameters: {weight: 1}},"
    " {model: ./deep, layer_range: [0, 3], parameters: {weight: 1}}]\n",
    "plan_depths": OWN.replace("./code", "./deep") + "merge: {method: ties}\n",
    "plan_missing_tensor": OWN.replace("./code", "./short") + "merge: {method: ties}\n",
    "plan_shapes": OWN.replace("./code", "./wide") + "merge: {method: ties}\n",
    "plan_architectures": OWN.replace("./code", "./gpt") + "merge: {method: ties}\n",
    "plan_module": "merge_method: linear\nmodules: {txt: {models: [{model: ./math, parameters: {weight: 1}}]}}\n",
    "plan_chain_none": OWN + "merge: [trim, scale]\n",
    "plan_chain_two": OWN + "merge: [elect, weighted_sum]\n",
    "plan_chain_order": OWN + "merge: [elect, trim]\n",
    "plan_chain_kinds": OWN + "merge: [trim, slerp]\n",
    "plan_chain_factors": OWN + "merge: [trim, robust_factors]\n",
    "own_decay_list": OWN.replace("base: ./base\n", "") + "merge: {method: wsm, decay: [0.9, high]}\n",
    "plan_window": OWN.replace("base: ./base\n", "") + "merge: {method: swa, start: 3}\n",
    "plan_space_two": OWN + "merge: [knots, core_space, elect]\n",
    "plan_space_never": OWN + "merge: [elect, leave]\n",
    "plan_space_base": OWN + "merge: [knots, keep_near, elect]\n",
    "plan_space_late": OWN + "merge: [elect, knots]\n",
    "plan_combination": OWN + "merge: {method: della, density: 0.1, epsilon: 0.5}\n",
    "plan_value": MK.replace("ties", "breadcrumbs", 1) + "parameters: {gamma: [0.1, 2]}\n",
    "plan_weight": MK.replace("ties", "linear", 1) + "  - {model: ./code}\n",
    "plan_sums": OWN.replace("./math", "{arithmetic: 0.5 * code + 0.5 * wide}") + "sources: {wide: ./wide}\nmerge: {method: ties}\n",
    "plan_tokenizer": MK + "tokenizer_source: union\n",
    "plan_chat_template": MK + "chat_template: chatlm\n",
    "plan_chat_template_syntax": MK + "chat_template: '{% for x in %}'\n",
    "plan_adapter": MK.replace("./math", "./base+./math"),
    "plan_scheme": MK.replace("./math", "ftp://bucket/x"),
    "plan_kinds": OWN.replace("./code", "./whole") + "merge: {method: ties}\n",
}  # fmt: skip


@pytest.fixture
def gallery(here: Path, make_llama: Any) -> Path:
    """Further models: of another width, without a tensor, with one of whole numbers, of another architecture."""
    from safetensors.torch import save_file

    make_llama(here / "wide", 3, width=16)
    tensors = make_llama(here / "short", 4)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, here / "short" / "model.safetensors")
    tensors = make_llama(here / "whole", 6)
    save_file(
        tensors | {"model.norm.weight": tensors["model.norm.weight"].long()},
        here / "whole" / "model.safetensors",
    )
    make_llama(here / "gpt", 5)
    config = here / "gpt" / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"mistral"').replace("LlamaFor", "MistralFor"))
    return here


@pytest.mark.parametrize("name", GALLERY)
def test_wrong_recipe(name: str, gallery: Path, cli: Any, golden: Any) -> None:
    text = GALLERY[name]
    (gallery / "r.yaml").write_text(text)
    outcome = cli("check", "r.yaml")
    assert outcome.code == 2
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    check_positions(outcome.err, text)
    shown = text if len(text) < 1000 else text[:60] + "…\n"
    golden(f"errors/{name}", f"{shown}\n{outcome.text}")


def check_positions(report: str, text: str) -> None:
    """Every place is in the file, the line shown is that line, and the caret underlines part of it."""
    lines = text.splitlines()
    for match in re.finditer(r"--> r\.yaml:(\d+):(\d+).*\n +(\d+) \| (.*)\n +\| ( *)(\^+)", report):
        number, column = int(match[1]), int(match[2])
        assert number == int(match[3])
        line = lines[number - 1] if number <= len(lines) else ""  # the end of the file
        if len(line) <= 160:
            assert match[4] == line.replace("\t", " ")
            assert len(match[5]) == column - 1
        assert len(match[5]) + len(match[6]) <= max(len(match[4]), 1) + 1


# Codes that no recipe file alone can reach.
ELSEWHERE = {
    "CV-P350": "a note of a run", "CV-P351": "a warning of a run",
    "CV-R017": "import of a recipe of a base alone", "CV-P110": "see test_arrangement", "CV-R110": "see test_arrangement",
    "CV-P111": "see test_own_recipes", "CV-P112": "a warning", "CV-P113": "a warning",
    "CV-R111": "an adapter on a document of the file", "CV-R112": "a warning of the import", "CV-R113": "see test_export",
    "CV-R060": "see own_method", "CV-R062": "two plug-ins of one name", "CV-R063": "a broken plug-in",
    "CV-P006": "a note about unknown architectures", "CV-P020": "a model of two layer stacks", "CV-P025": "a warning",
    "CV-P027": "modules that overlap", "CV-P037": "a note", "CV-P041": "a warning", "CV-P042": "a warning",
    "CV-P043": "a note", "CV-P100": "a warning", "CV-P101": "a note", "CV-P102": "a note",
    "CV-P150": "diffusion models", "CV-P151": "diffusion models", "CV-P152": "diffusion models",
    "CV-P153": "diffusion models", "CV-P154": "diffusion models", "CV-P155": "diffusion models",
    "CV-P156": "diffusion models", "CV-P160": "a note", "CV-P161": "see test_matrices_lacking", "CV-P174": "see test_adapter_out",
    "CV-P180": "see test_packages", "CV-P181": "see test_packages", "CV-P182": "see test_packages",
    "CV-R320": "a note of a draw", "CV-P280": "a note", "CV-P281": "a note", "CV-R180": "see test_packages", "CV-R181": "see test_source_package",
    "CV-P200": "see test_budget", "CV-P201": "a note", "CV-P202": "see test_budget", "CV-P203": "a note",
    "CV-P336": "a warning", "CV-P175": "a note", "CV-P176": "a warning", "CV-P190": "a warning",
    "CV-P330": "see test_locked_models", "CV-P331": "a warning",
    "CV-P050": "a saved plan", "CV-R030": "a warning", "CV-R031": "a note", "CV-P040": "models without embeddings",
}  # fmt: skip


def test_the_gallery_reaches_every_code_a_recipe_can_reach() -> None:
    folder = Path(__file__).parent / "errors"
    seen = {code for path in folder.glob("*.txt") for code in re.findall(r"CV-[A-Z]\d+", path.read_text())}
    wanted = {code for code in codes() if code[3] in "RP"} - ELSEWHERE.keys()
    assert wanted - seen == set()
    assert {path.stem for path in folder.glob("*.txt")} == GALLERY.keys()
